// This file holds Journal, a registry with the memory of how it changed, from
// which the deltas of each reader are made.

package directory

import (
	"maps"
	"slices"
)

// Delta changes what a reader holds. What it held stays in use after a reset
// until the next complete delta, which drops what has not come again since.
type Delta struct {
	Revision        uint64
	Reset, Complete bool
	Upserts         []Endpoint
	Deletes         []Key
}

const (
	// maxRecent bounds the changes that are remembered. A reader that is
	// further behind gets everything again.
	maxRecent = 8192
	// perDelta bounds the endpoints of one delta.
	perDelta = 2000
)

// Journal is a registry that changes. The zero value is empty. It is not safe
// for concurrent use.
type Journal struct {
	entries  map[Key]Endpoint
	revision uint64
	recent   []changedKey // oldest first
	floor    uint64       // what changed up to here is not remembered
}

type changedKey struct {
	revision uint64
	key      Key
}

// Put adds an endpoint or replaces the one of its key, and reports whether
// anything changed.
func (j *Journal) Put(e Endpoint) bool {
	if old, ok := j.entries[e.Key]; ok && old.Equal(e) {
		return false
	}
	if j.entries == nil {
		j.entries = make(map[Key]Endpoint)
	}
	j.entries[e.Key] = e
	j.note(e.Key)
	return true
}

// Delete removes an endpoint and reports whether it was there.
func (j *Journal) Delete(k Key) bool {
	if _, ok := j.entries[k]; !ok {
		return false
	}
	delete(j.entries, k)
	j.note(k)
	return true
}

func (j *Journal) note(k Key) {
	j.revision++
	j.recent = append(j.recent, changedKey{j.revision, k})
	if len(j.recent) >= 2*maxRecent {
		drop := len(j.recent) - maxRecent
		j.floor = j.recent[drop-1].revision
		j.recent = slices.Clone(j.recent[drop:])
	}
}

// Len is the number of endpoints.
func (j *Journal) Len() int { return len(j.entries) }

// Revision grows with each change.
func (j *Journal) Revision() uint64 { return j.revision }

// Has reports whether the key is there.
func (j *Journal) Has(k Key) bool {
	_, ok := j.entries[k]
	return ok
}

// Reader is how far one reader has come. The zero value has read nothing.
type Reader struct {
	at       uint64
	started  bool
	complete bool
}

// Read returns the deltas that bring a reader up to the moment, none where it
// is there, and moves it on. With settled false the registry may still miss
// what its nodes have not told yet, and no delta is complete.
func (j *Journal) Read(r *Reader, settled bool) []*Delta {
	if r.started && r.at == j.revision && (r.complete || !settled) {
		return nil
	}
	var list []*Delta
	delta := func() *Delta {
		if n := len(list); n > 0 && len(list[n-1].Upserts)+len(list[n-1].Deletes) < perDelta {
			return list[n-1]
		}
		list = append(list, &Delta{Revision: j.revision})
		return list[len(list)-1]
	}
	delta()
	if !r.started || r.at < j.floor {
		list[0].Reset = true
		r.complete = false
		for _, k := range slices.SortedFunc(maps.Keys(j.entries), Compare) {
			d := delta()
			d.Upserts = append(d.Upserts, j.entries[k])
		}
	} else {
		i, _ := slices.BinarySearchFunc(j.recent, r.at+1, func(c changedKey, at uint64) int {
			if c.revision < at {
				return -1
			}
			return 1
		})
		seen := make(map[Key]bool)
		for _, c := range j.recent[i:] {
			if seen[c.key] {
				continue
			}
			seen[c.key] = true
			d := delta()
			if e, ok := j.entries[c.key]; ok {
				d.Upserts = append(d.Upserts, e)
			} else {
				d.Deletes = append(d.Deletes, c.key)
			}
		}
	}
	r.started, r.at, r.complete = true, j.revision, r.complete || settled
	list[len(list)-1].Complete = r.complete
	return list
}
