// This file holds what proxies hold: which snapshot each of them put to use
// last. A rollover of authorities waits for the one that is behind.

package endpoint

import (
	"encoding/hex"
	"maps"
	"slices"
	"sync"

	"github.com/aval-id/aval/identity"
)

// Holdings says what the proxies on this socket hold.
type Holdings struct {
	Bundles [][32]byte // of the own trust domain, besides the newest
	Issuers []string   // subject key identifiers of the issuers of their SVIDs
	Lagging []string   // SPIFFE IDs of those that hold an older bundle, or none yet
}

// sent is one snapshot on its way to a proxy or in its use.
type sent struct {
	tag    uint64
	bundle [32]byte
	issuer string
}

// watcher is one Watch stream.
type watcher struct {
	id    string
	acks  bool
	held  sent   // that is in use; zero before the first
	ahead []sent // sent after it
}

// holdings follows the Watch streams. The zero value is ready but for
// changed.
type holdings struct {
	changed func()

	mu       sync.Mutex
	tag      uint64                // guarded by mu: the last one given
	watchers map[*watcher]struct{} // guarded by mu
}

func (h *holdings) open(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.watchers == nil {
		h.watchers = map[*watcher]struct{}{}
	}
	h.watchers[w] = struct{}{}
}

// close forgets a stream. Its proxy opens another at once, or is gone.
func (h *holdings) close(w *watcher) {
	h.mu.Lock()
	delete(h.watchers, w)
	h.mu.Unlock()
	h.changed()
}

// next gives a snapshot its tag, and notes that it is on its way.
func (h *holdings) next(w *watcher, svid identity.SVID, bundle identity.Bundle) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tag++
	w.id = svid.ID.String()
	s := sent{tag: h.tag, bundle: bundle.Hash(), issuer: hex.EncodeToString(svid.Leaf().AuthorityKeyId)}
	if w.acks {
		w.ahead = append(w.ahead[max(0, len(w.ahead)-maxAhead):], s)
	} else {
		w.held = s
	}
	h.changed()
	return h.tag
}

// maxAhead bounds what is remembered of a proxy that takes nothing.
const maxAhead = 64

// took notes that the proxy of one of the IDs uses the snapshot of a tag.
func (h *holdings) took(tag uint64, may func(id string) bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		i := slices.IndexFunc(w.ahead, func(s sent) bool { return s.tag == tag })
		if i < 0 || !may(w.id) {
			continue
		}
		w.held = w.ahead[i]
		w.ahead = slices.Clone(w.ahead[i+1:])
		h.changed()
		return true
	}
	return false
}

// Holdings returns what the proxies hold, where newest is the bundle that all
// should.
func (s *Server) Holdings(newest identity.Bundle) Holdings {
	h := &s.holdings
	h.mu.Lock()
	defer h.mu.Unlock()
	issuers, bundles, lagging := map[string]bool{}, map[[32]byte]bool{}, map[string]bool{}
	for w := range h.watchers {
		if w.held.tag == 0 {
			if len(w.ahead) > 0 {
				lagging[w.id] = true
			}
			continue
		}
		issuers[w.held.issuer] = true
		if w.held.bundle != newest.Hash() {
			bundles[w.held.bundle] = true
			lagging[w.id] = true
		}
	}
	out := Holdings{Issuers: slices.Sorted(maps.Keys(issuers)), Lagging: slices.Sorted(maps.Keys(lagging))}
	for b := range bundles {
		out.Bundles = append(out.Bundles, b)
	}
	slices.SortFunc(out.Bundles, func(a, b [32]byte) int { return slices.Compare(a[:], b[:]) })
	return out
}
