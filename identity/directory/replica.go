// This file holds Replica, what a node holds of a registry, changed by deltas.

package directory

import (
	"fmt"
	"maps"
	"slices"
)

// Replica is the reader's end of deltas. The zero value holds nothing. It is
// not safe for concurrent use.
//
// What it held before a reset stays until a complete delta has come: a server
// that has just started, and does not know yet where everybody listens, takes
// no endpoint away from the proxies, which would go on in plaintext.
type Replica struct {
	entries  map[Key]Endpoint
	stale    map[Key]bool // held from before a reset, and not sent again
	started  bool         // a reset has come on this stream
	shown    bool         // a complete delta has come on some stream
	revision uint64
}

// Begin says that a new stream begins: its first delta must be a reset.
func (r *Replica) Begin() { r.started = false }

// Apply takes one delta and reports whether there is a new set to show. The
// fault is a part that was left out: the stream did not begin with the whole,
// or there is too much of it.
func (r *Replica) Apply(d *Delta) (changed bool, fault error) {
	if d.Reset {
		r.started = true
		r.stale = make(map[Key]bool, len(r.entries))
		for k := range r.entries {
			r.stale[k] = true
		}
	}
	if !r.started {
		return false, fmt.Errorf("endpoints at %d without the whole before them", d.Revision)
	}
	if r.entries == nil {
		r.entries = make(map[Key]Endpoint)
	}
	for _, k := range d.Deletes {
		delete(r.entries, k)
		delete(r.stale, k)
	}
	for _, e := range d.Upserts {
		if len(r.entries) >= 2*MaxTotal {
			fault = fmt.Errorf("endpoint %s is one too many", e.Key)
			continue
		}
		r.entries[e.Key] = e
		delete(r.stale, e.Key)
	}
	if d.Complete {
		r.shown = true
		for k := range r.stale {
			delete(r.entries, k)
		}
		r.stale = nil
	}
	r.revision = d.Revision
	return r.shown, fault
}

// Set returns what is held, and false while nothing complete has come yet.
func (r *Replica) Set() (*Set, bool) {
	if !r.shown {
		return nil, false
	}
	return NewSet(slices.Collect(maps.Values(r.entries))), true
}

// Revision is that of the last delta.
func (r *Replica) Revision() uint64 { return r.revision }
