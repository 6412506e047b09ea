// This file holds Replica, what a node holds of a registry, changed by deltas.

package directory

import (
	"fmt"
	"maps"
	"slices"

	"github.com/aval-id/aval/identity/wire"
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

// Apply takes one delta. It reports whether there is a new set to show. Faults
// are entries that cannot be read; they are left out.
func (r *Replica) Apply(d *wire.EndpointDelta) (changed bool, faults []error) {
	if d.GetReset_() {
		r.started = true
		r.stale = make(map[Key]bool, len(r.entries))
		for k := range r.entries {
			r.stale[k] = true
		}
	}
	if !r.started {
		return false, []error{fmt.Errorf("endpoints at %d without the whole before them", d.GetRevision())}
	}
	if r.entries == nil {
		r.entries = make(map[Key]Endpoint)
	}
	for _, w := range d.GetDeletes() {
		k, err := ParseKey(w)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		delete(r.entries, k)
		delete(r.stale, k)
	}
	for _, w := range d.GetUpserts() {
		e, err := Parse(w)
		if err == nil && len(r.entries) >= 2*MaxTotal {
			err = fmt.Errorf("endpoint %s is one too many", e.Key)
		}
		if err != nil {
			faults = append(faults, err)
			continue
		}
		r.entries[e.Key] = e
		delete(r.stale, e.Key)
	}
	if d.GetComplete() {
		r.shown = true
		for k := range r.stale {
			delete(r.entries, k)
		}
		r.stale = nil
	}
	r.revision = d.GetRevision()
	return r.shown, faults
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
