// This file holds the keys of issuers of tokens: which are wanted, the last
// good set of each, and how a new set is recorded, stored and put in force,
// in this order.

package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca/jwks"
	"github.com/aval-id/aval/ca/store"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/jwt"
)

const (
	prefixKeySet = "jwks/"
	// fetchesAtOnce bounds the sources that are asked at the same time.
	fetchesAtOnce = 8
	// maxKeyIDs bounds the key IDs of one set that records and status repeat.
	maxKeyIDs = 16
)

// keySet is the last good set of one source. It is immutable.
type keySet struct {
	keys    *jwt.Keys
	changed time.Time // when it came to be in force
}

// keyRing is the sets in force, by URI. It is immutable.
type keyRing map[string]keySet

// storedKeySet is a set as the store holds it.
type storedKeySet struct {
	URI     string          `json:"uri"`
	Keys    json.RawMessage `json:"keys"`
	Changed time.Time       `json:"changed"`
}

// keySets keeps the keys that RequestAuthentications name. What was fetched
// once stays in force until something newer was, over restarts too.
type keySets struct {
	source   *jwks.Source
	store    store.Store
	record   func(context.Context, []audit.Event) error // durable before it returns
	wanted   func() map[string]sought
	changed  func() // wakes the sessions; never blocks
	refresh  time.Duration
	log      *slog.Logger
	fetches  chan struct{} // holds one for each fetch that is under way
	woken    chan struct{} // the documents changed; holds one
	now      atomic.Pointer[keyRing]
	attempts fetchCounts

	mu    sync.Mutex
	state map[string]*followed // guarded by mu
}

// sought is a source that documents name.
type sought struct {
	timeout   time.Duration
	documents []string // "ns/name", in order
}

// followed is how the server stands with one source.
type followed struct {
	sought
	fetched time.Time // the last time that it answered well
	fault   string    // of the last try
	poke    chan struct{}
	stop    context.CancelFunc
	ended   chan struct{}
}

func storeKeyOf(uri string) string {
	sum := sha256.Sum256([]byte(uri))
	return prefixKeySet + hex.EncodeToString(sum[:])
}

// soughtKeys reads what the documents of the moment want.
func (d *documents) soughtKeys() map[string]sought {
	out := map[string]sought{}
	for k, h := range d.now.Load().docs {
		if k.Kind != document.RequestAuthentication {
			continue
		}
		for uri, timeout := range h.keySets {
			s := out[uri]
			s.timeout = max(s.timeout, timeout)
			s.documents = append(s.documents, k.Path())
			out[uri] = s
		}
	}
	for _, s := range out {
		slices.Sort(s.documents)
	}
	return out
}

// load puts the stored sets in force.
func (k *keySets) load() error {
	ring := keyRing{}
	defer func() { k.now.Store(&ring) }()
	entries, _, err := k.store.Scan(prefixKeySet, 0)
	if err != nil {
		return err
	}
	for _, e := range entries {
		var kept storedKeySet
		if err := json.Unmarshal(e.Value, &kept); err != nil {
			return fmt.Errorf("stored keys %s: %w", e.Key, err)
		}
		keys, err := jwt.ReadKeys(kept.Keys)
		if err != nil {
			// Tokens of this issuer are refused until it is asked anew.
			k.log.Error("stored keys cannot be read", "uri", kept.URI, "error", err)
			continue
		}
		ring[kept.URI] = keySet{keys: keys, changed: kept.Changed}
	}
	return nil
}

// wake tells run that the documents changed. It never blocks.
func (k *keySets) wake() { poke(k.woken) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run follows each source that is wanted, and forgets those that are not any
// more, until ctx ends.
func (k *keySets) run(ctx context.Context) error {
	defer k.follow(ctx, nil)
	var watching watcher
	defer watching.stop()
	for {
		wanted := k.wanted()
		k.follow(ctx, wanted)
		if err := k.forget(ctx, wanted); err != nil {
			k.log.Error("forget keys that no document names", "error", err)
		}
		watching.set(ctx, k, wanted)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-k.woken:
		}
	}
}

// follow starts and stops the loops of single sources.
func (k *keySets) follow(ctx context.Context, wanted map[string]sought) {
	for _, f := range k.leave(wanted) {
		f.stop()
		<-f.ended
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for uri, s := range wanted {
		if k.state[uri] != nil {
			continue
		}
		own, stop := context.WithCancel(ctx)
		f := &followed{sought: s, poke: make(chan struct{}, 1), stop: stop, ended: make(chan struct{})}
		if held, ok := (*k.now.Load())[uri]; ok {
			f.fetched = held.changed
		}
		k.state[uri] = f
		go func() {
			defer close(f.ended)
			k.keep(own, uri, f, s.timeout)
		}()
	}
}

// leave takes out the sources that are not wanted any more, or differently,
// and returns them.
func (k *keySets) leave(wanted map[string]sought) []*followed {
	k.mu.Lock()
	defer k.mu.Unlock()
	var left []*followed
	for uri, f := range k.state {
		if s, ok := wanted[uri]; ok && s.timeout == f.timeout {
			f.sought = s
			continue
		}
		left = append(left, f)
		delete(k.state, uri)
	}
	return left
}

// keep asks one source again and again: after the refresh interval, sooner
// after a failure or a change of its file.
func (k *keySets) keep(ctx context.Context, uri string, f *followed, timeout time.Duration) {
	for attempt := 0; ; {
		err := k.fetch(ctx, uri, f, timeout)
		if ctx.Err() != nil {
			return
		}
		wait := spread(k.refresh)
		if err != nil {
			wait = k.backoff(attempt)
			attempt++
		} else {
			attempt = 0
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-f.poke:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// fetch asks one source once and notes what came of it.
func (k *keySets) fetch(ctx context.Context, uri string, f *followed, timeout time.Duration) error {
	select {
	case k.fetches <- struct{}{}:
		defer func() { <-k.fetches }()
	case <-ctx.Done():
		return ctx.Err()
	}
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	keys, err := k.source.Fetch(bounded, uri)
	if err == nil {
		err = k.accept(ctx, uri, keys)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	k.attempts.count(err)
	k.mu.Lock()
	before := f.fault
	if f.fault = ""; err != nil {
		f.fault = clip(err.Error(), 512)
	} else {
		f.fetched = time.Now()
	}
	news := f.fault != before
	k.mu.Unlock()
	switch {
	case err != nil && news:
		_, held := (*k.now.Load())[uri]
		k.log.Warn("keys of an issuer were not to be had; the last ones stay in force", "uri", uri, "held", held, "error", err)
	case err == nil && news:
		k.log.Info("keys of an issuer are to be had again", "uri", uri)
	}
	return err
}

// accept puts a set in force where it differs from the one that is: after its
// record is durable, and it is stored.
func (k *keySets) accept(ctx context.Context, uri string, keys *jwt.Keys) error {
	held, ok := (*k.now.Load())[uri]
	if ok && string(held.keys.JSON()) == string(keys.JSON()) {
		return nil
	}
	now := time.Now()
	sum := sha256.Sum256(keys.JSON())
	event := audit.Event{Time: now, Kind: audit.KindIssuerKeys, Verdict: audit.VerdictDone,
		DocumentSHA256: hex.EncodeToString(sum[:]), Detail: fmt.Sprintf("%d keys of %s%s", keys.Len(), clip(uri, 1024), named(keys))}
	if err := k.record(ctx, []audit.Event{event}); err != nil {
		return fmt.Errorf("record of new keys: %w", err)
	}
	raw, err := json.Marshal(storedKeySet{URI: uri, Keys: keys.JSON(), Changed: now})
	if err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	if _, err := k.store.Txn(ctx, nil, []store.Op{store.Put(storeKeyOf(uri), raw)}); err != nil {
		return fmt.Errorf("store new keys: %w", err)
	}
	k.swap(func(ring keyRing) { ring[uri] = keySet{keys: keys, changed: now} })
	k.log.Info("new keys of an issuer", "uri", uri, "keys", keys.Len())
	return nil
}

// named lists the key IDs of a set for a person.
func named(keys *jwt.Keys) string {
	ids := keys.IDs()
	if len(ids) == 0 {
		return ""
	}
	more := ""
	if len(ids) > maxKeyIDs {
		ids, more = ids[:maxKeyIDs], " and others"
	}
	return ": " + strings.Join(ids, ", ") + more
}

// swap changes the ring of the moment and wakes the sessions.
func (k *keySets) swap(change func(keyRing)) {
	k.mu.Lock()
	next := maps.Clone(*k.now.Load())
	change(next)
	k.now.Store(&next)
	k.mu.Unlock()
	k.changed()
}

// forget drops the sets that no document names any more.
func (k *keySets) forget(ctx context.Context, wanted map[string]sought) error {
	var ops []store.Op
	var gone []string
	for uri := range *k.now.Load() {
		if _, ok := wanted[uri]; !ok {
			ops = append(ops, store.Delete(storeKeyOf(uri)))
			gone = append(gone, uri)
		}
	}
	if len(ops) == 0 {
		return nil
	}
	if _, err := k.store.Txn(ctx, nil, ops); err != nil {
		return err
	}
	k.swap(func(ring keyRing) {
		for _, uri := range gone {
			delete(ring, uri)
		}
	})
	return nil
}
