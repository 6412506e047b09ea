// This file holds the high-water marks: for each authority the latest end of
// a leaf that it may have signed, written before any leaf exceeds it.

package server

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/ca/store"
)

// prefixMark is where the store keeps the marks, by root and authority.
const prefixMark = "highwater/"

// markSlack is how far a mark is written ahead, so that few issuances wait
// for one.
const markSlack = time.Hour

// highWater are the marks by authority. A mark is durable before it counts.
type highWater struct {
	store store.Writer

	mu    sync.Mutex
	marks map[authorityKey]time.Time // guarded by mu
}

// authorityKey names an authority below a root, both by hex SKI.
type authorityKey struct{ root, ski string }

func (k authorityKey) storeKey() string { return prefixMark + k.root + "/" + k.ski }

func keyOf(a *ca.Authority) authorityKey {
	return authorityKey{hex.EncodeToString(a.Certificate().AuthorityKeyId), a.SKI()}
}

// load reads the marks of a store, and forgets those that passed long ago.
func (h *highWater) load(ctx context.Context, r store.Reader, now time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.marks = map[authorityKey]time.Time{}
	entries, _, err := r.Scan(prefixMark, 0)
	if err != nil {
		return fmt.Errorf("high-water marks: %w", err)
	}
	var stale []store.Op
	for _, e := range entries {
		root, ski, ok := strings.Cut(strings.TrimPrefix(e.Key, prefixMark), "/")
		at, err := time.Parse(time.RFC3339, string(e.Value))
		if !ok || err != nil {
			return fmt.Errorf("high-water mark %s: %q is not a time", e.Key, clip(string(e.Value), 40))
		}
		if now.Sub(at) > 30*24*time.Hour && len(stale) < store.MaxOps {
			stale = append(stale, store.Delete(e.Key))
			continue
		}
		h.marks[authorityKey{root, ski}] = at
	}
	if len(stale) == 0 {
		return nil
	}
	_, err = h.store.Txn(ctx, nil, stale)
	return err
}

// reach makes sure that the mark of an authority lies at or after the end of
// every leaf that it signs from now on with a lifetime of at most ttl.
func (h *highWater) reach(ctx context.Context, a *ca.Authority, now time.Time, ttl time.Duration) error {
	end := a.Certificate().NotAfter
	need := now.Add(ttl)
	if need.After(end) {
		need = end
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	k := keyOf(a)
	if !h.marks[k].Before(need) {
		return nil
	}
	mark := need.Add(markSlack)
	if mark.After(end) {
		mark = end
	}
	return h.put(ctx, k, mark)
}

// raise lifts a mark to what the log says was issued.
func (h *highWater) raise(ctx context.Context, k authorityKey, at time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.marks[k].Before(at) {
		return nil
	}
	return h.put(ctx, k, at)
}

// put stores a mark. The caller holds mu.
func (h *highWater) put(ctx context.Context, k authorityKey, at time.Time) error {
	at = at.UTC().Truncate(time.Second)
	if _, err := h.store.Txn(ctx, nil, []store.Op{store.Put(k.storeKey(), []byte(at.Format(time.RFC3339)))}); err != nil {
		return &ca.Refusal{Cause: ca.CauseUnavailable, Reason: ca.ReasonNotRecorded, Err: fmt.Errorf("high-water mark of the authority %s: %w", k.ski, err)}
	}
	h.marks[k] = at
	return nil
}

// below returns the authorities that signed under a root, and the latest of
// their marks.
func (h *highWater) below(root string) (skis map[string]bool, latest time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	skis = map[string]bool{}
	for k, at := range h.marks {
		if k.root != root {
			continue
		}
		skis[k.ski] = true
		if at.After(latest) {
			latest = at
		}
	}
	return skis, latest
}
