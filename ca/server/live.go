// This file holds the index of SVIDs that are still valid, by node. It is
// rebuilt from the authority log at each start.

package server

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
)

// liveSVID is one certificate that its node may still hold.
type liveSVID struct {
	id       string
	serial   string
	issuer   string // hex SKI
	issued   time.Time
	notAfter time.Time
}

// liveIndex says which SVIDs live how long on which node.
type liveIndex struct {
	mu     sync.Mutex
	byNode map[string][]liveSVID // by the node's SPIFFE ID, in order of issue
}

// add takes an issuance into the index.
func (x *liveIndex) add(e audit.Event, now time.Time) {
	if e.Kind != audit.KindIssuance || e.Role != audit.RoleWorkload || e.Node == "" || !now.Before(e.NotAfter) {
		return
	}
	x.put(e.Node, liveSVID{e.SPIFFEID, e.Serial, e.Issuer, e.Time, e.NotAfter}, now)
}

func (x *liveIndex) put(node string, v liveSVID, now time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.byNode == nil {
		x.byNode = map[string][]liveSVID{}
	}
	list := x.byNode[node]
	// Where the oldest ended, the list is cleaned; that is rare enough.
	if len(list) > 0 && !now.Before(list[0].notAfter) {
		list = slices.DeleteFunc(list, func(o liveSVID) bool { return !now.Before(o.notAfter) })
	}
	x.byNode[node] = append(list, v)
}

// of returns the SVIDs of a node that are valid at now, by ID.
func (x *liveIndex) of(node identity.ID, now time.Time) []liveSVID {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []liveSVID
	for _, v := range x.byNode[node.String()] {
		if now.Before(v.notAfter) {
			out = append(out, v)
		}
	}
	slices.SortStableFunc(out, func(a, b liveSVID) int { return strings.Compare(a.id, b.id) })
	return out
}

// pick returns the live SVIDs that want picks, by node, ID and end.
func (x *liveIndex) pick(now time.Time, want func(node string, v liveSVID) bool) []exposed {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []exposed
	for node, list := range x.byNode {
		for _, v := range list {
			if now.Before(v.notAfter) && want(node, v) {
				out = append(out, exposed{node, v})
			}
		}
	}
	slices.SortFunc(out, func(a, b exposed) int {
		return cmp.Or(strings.Compare(a.node, b.node), strings.Compare(a.id, b.id), a.notAfter.Compare(b.notAfter))
	})
	return out
}

// exposed is a live SVID with its node.
type exposed struct {
	node string
	liveSVID
}

var errStop = errors.New("enough was read")

// readSince calls fn with the events of a log from about a time on, oldest
// first, until fn returns false. Events are in order of time but for the
// moments between their making and their writing, which slack covers.
func readSince(log *audit.Log, since time.Time, fn func(audit.Event) bool) error {
	const slack = 10 * time.Minute
	from, err := indexAt(log, since.Add(-slack))
	if err != nil {
		return err
	}
	err = log.Read(from, func(e audit.Entry) error {
		if !fn(e.Event) {
			return errStop
		}
		return nil
	})
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// indexAt finds the first entry at or after a time by halving. Entries that
// were dropped count as before it.
func indexAt(log *audit.Log, at time.Time) (int64, error) {
	low, high := int64(0), log.Size()
	for low < high {
		mid := low + (high-low)/2
		var seen time.Time
		err := log.Read(mid, func(e audit.Entry) error {
			seen = e.Time
			return errStop
		})
		switch {
		case errors.Is(err, audit.ErrDropped):
			low = mid + 1
		case err != nil && !errors.Is(err, errStop):
			return 0, err
		case seen.Before(at):
			low = mid + 1
		default:
			high = mid
		}
	}
	return low, nil
}

// count returns how many SVIDs are valid at now, on all nodes.
func (x *liveIndex) count(now time.Time) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := 0
	for _, list := range x.byNode {
		for _, v := range list {
			if now.Before(v.notAfter) {
				n++
			}
		}
	}
	return n
}
