// This file holds the rebuilding of the ledger from the connections log, and
// the copies of it that questions are answered from.

package server

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/aval-id/aval/audit"
)

// loadLedger reads what was in the connections log when the server started,
// up to entry end. Records that come meanwhile are added beside it; the order
// does not matter.
func (s *Server) loadLedger(ctx context.Context, end int64) error {
	const chunk = 1024
	var events []audit.Event
	flush := func() {
		s.ledger.addAll(events, time.Now())
		events = events[:0]
	}
	next := int64(0)
	for next < end {
		err := s.connections.Read(next, func(e audit.Entry) error {
			if e.Index >= end {
				return errStop
			}
			next = e.Index + 1
			if events = append(events, e.Event); len(events) == chunk {
				flush()
			}
			return ctx.Err()
		})
		if errors.Is(err, audit.ErrDropped) {
			next = max(next+1, s.connections.Stats().First)
			continue
		}
		if err != nil && !errors.Is(err, errStop) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			s.log.Error("reading of the connections log for the ledger", "error", err)
			s.ledger.loaded(err)
			return nil
		}
		break
	}
	flush()
	s.ledger.loaded(nil)
	return nil
}

// load says that the log is about to be read.
func (l *ledger) load() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reading = true
}

func (l *ledger) loaded(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reading = false
	if err != nil {
		l.fault = err.Error()
	}
}

// seen is one visitor with how often and when it came.
type seen struct {
	visitor
	sighting
	unnamed bool // it stands for several beyond the bound
}

// portView is a copy of what came to a port, of all the places asked for.
type portView struct {
	all      sighting
	visitors []seen
	asked    map[netip.Addr]askedFor
	// processes are those that came as a visitor, where that is known.
	processes map[visitor]counts
}

// ledgerView is a copy of what is known of one identity.
type ledgerView struct {
	all   sighting
	ports map[uint16]*portView // port 0 is those beyond the bound, where there are any
	nodes []string
	// lost is when records of one of the nodes were lost, and how many.
	lost sighting
	// untrusted counts records of nodes that may not hold the identity.
	untrusted uint64
}

// view copies what the nodes that entitled accepts say of an identity.
func (l *ledger) view(id string, nodes []string, entitled func(node string) bool) ledgerView {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := ledgerView{ports: map[uint16]*portView{}}
	for _, node := range nodes {
		p := l.places[place{id, node}]
		if p == nil {
			continue
		}
		if !entitled(node) {
			v.untrusted += p.all.count
			continue
		}
		v.nodes = append(v.nodes, node)
		v.all.add(p.all.first, p.all.last, p.all.count)
		for n, port := range p.ports {
			v.add(n, port)
		}
		if p.crowd.all.count > 0 {
			v.add(0, &p.crowd)
		}
		if s := l.losses[node]; s != nil {
			v.lost.add(s.first, s.last, s.count)
		}
	}
	slices.Sort(v.nodes)
	return v
}

func (v *ledgerView) add(n uint16, from *portLedger) {
	port := v.ports[n]
	if port == nil {
		port = &portView{asked: map[netip.Addr]askedFor{}, processes: map[visitor]counts{}}
		v.ports[n] = port
	}
	port.all.add(from.all.first, from.all.last, from.all.count)
	for source, a := range from.asked {
		port.asked[source] = port.asked[source].plus(a)
	}
	for who, c := range from.processes {
		port.processes[who] = port.processes[who].plus(c)
	}
	for unnamed, m := range map[bool]map[visitor]*sighting{false: from.visitors, true: from.unnamed} {
		for who, s := range m {
			port.visitors = append(port.visitors, seen{who, *s, unnamed})
		}
	}
}

// nodesOf returns the nodes that reported for each identity.
func (l *ledger) nodesOf() map[string][]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[string][]string{}
	for p := range l.places {
		out[p.server] = append(out[p.server], p.node)
	}
	return out
}

// at returns the identities that were seen at an address, the latest first.
func (l *ledger) at(a netip.Addr) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := l.addresses[a]
	return slices.SortedFunc(maps.Keys(ids), func(x, y string) int {
		if c := ids[y].Compare(ids[x]); c != 0 {
			return c
		}
		if x < y {
			return -1
		}
		return 1
	})
}

// state says whether the log is still being read, why that failed, and how
// many records went uncounted for the bounds.
func (l *ledger) state() (reading bool, fault string, overflow uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reading, l.fault, l.overflow
}
