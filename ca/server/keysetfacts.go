// This file holds what is around the sources of keys: their pace, the watch
// of their files, and what operators and metrics are told of them.

package server

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/aval-id/aval/ca/jwks"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/rotation"
)

// spread is an interval give or take a tenth, so that many servers do not ask
// an issuer together.
func spread(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1)
}

// backoff is the wait after a failure, never longer than without one.
func (k *keySets) backoff(attempt int) time.Duration {
	return rotation.Backoff(attempt, min(time.Second, k.refresh), k.refresh)
}

// pokeFiles makes every file be read again.
func (k *keySets) pokeFiles() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for uri, f := range k.state {
		if strings.HasPrefix(uri, "file:") {
			poke(f.poke)
		}
	}
}

// watcher follows the directories of the files that are wanted.
type watcher struct {
	dirs []string
	end  context.CancelFunc
	all  sync.WaitGroup
}

func (w *watcher) stop() {
	if w.end != nil {
		w.end()
		w.all.Wait()
		w.end = nil
	}
}

// set follows other directories.
func (w *watcher) set(ctx context.Context, k *keySets, wanted map[string]sought) {
	seen := map[string]bool{}
	for uri := range wanted {
		if dir, ok := k.source.Dir(uri); ok {
			seen[dir] = true
		}
	}
	dirs := slices.Sorted(maps.Keys(seen))
	if slices.Equal(dirs, w.dirs) {
		return
	}
	w.stop()
	w.dirs = dirs
	own, end := context.WithCancel(ctx)
	w.end = end
	for _, dir := range dirs {
		w.all.Go(func() { k.watch(own, dir) })
	}
}

// watch reads the files of a directory again whenever it changes. Where the
// kernel doesn't watch it, because it isn't there or for want of watches, it
// is asked again after the refresh interval.
func (k *keySets) watch(ctx context.Context, dir string) {
	for ctx.Err() == nil {
		err := jwks.Watch(ctx, dir, k.pokeFiles)
		if ctx.Err() != nil {
			return
		}
		k.log.Warn("files of keys are not watched; they are read after each refresh interval", "error", err)
		if !rotation.Pause(ctx, spread(k.refresh)) {
			return
		}
	}
}

// fetchCounts counts fetches.
type fetchCounts struct{ good, failed atomic.Uint64 }

func (c *fetchCounts) count(err error) {
	if err != nil {
		c.failed.Add(1)
		return
	}
	c.good.Add(1)
}

// states says how the server stands with each source, by URI.
func (k *keySets) states() []*wire.KeySetState {
	ring := *k.now.Load()
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []*wire.KeySetState
	for _, uri := range slices.Sorted(maps.Keys(k.state)) {
		f := k.state[uri]
		st := &wire.KeySetState{Uri: uri, Documents: f.documents, Error: f.fault, Fetched: millis(f.fetched)}
		if held, ok := ring[uri]; ok {
			st.Keys, st.Changed = uint32(held.keys.Len()), millis(held.changed)
			ids := held.keys.IDs()
			st.KeyIds = ids[:min(len(ids), maxKeyIDs)]
		}
		out = append(out, st)
	}
	return out
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// collectors are the metrics of sources. No label names one: a URI may hold
// what only its operator should know.
func (k *keySets) collectors() []prometheus.Collector {
	fetches := func(result string, n *atomic.Uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "aval_server_jwks_fetches_total",
			Help: "Fetches of the keys of issuers of tokens, by result: ok or failed.", ConstLabels: prometheus.Labels{"result": result}},
			func() float64 { return float64(n.Load()) })
	}
	sources := func(state string, is func(*wire.KeySetState) bool) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "aval_server_jwks_sources",
			Help: "Sources of keys by state: fresh, stale (the last fetch failed, older keys are in force), or missing (no keys yet, so no token is valid).", ConstLabels: prometheus.Labels{"state": state}},
			func() float64 {
				n := 0
				for _, st := range k.states() {
					if is(st) {
						n++
					}
				}
				return float64(n)
			})
	}
	return []prometheus.Collector{
		fetches("ok", &k.attempts.good), fetches("failed", &k.attempts.failed),
		sources("fresh", func(st *wire.KeySetState) bool { return st.GetKeys() > 0 && st.GetError() == "" }),
		sources("stale", func(st *wire.KeySetState) bool { return st.GetKeys() > 0 && st.GetError() != "" }),
		sources("missing", func(st *wire.KeySetState) bool { return st.GetKeys() == 0 }),
	}
}
