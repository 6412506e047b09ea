// This file holds what the ledger keeps so that people recognise a client
// without identity: which processes it is, and a sample of what it asks for.

package server

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/aval-id/aval/audit"
)

// Bounds of the sample.
const (
	maxAskedTargets = 3      // of one client on one port
	maxProcesses    = 8      // of one client on one port
	maxTargets      = 30_000 // of both, of all clients
	maxTargetText   = 200
	maxProcessText  = 768
)

// askedFor is what came from one address to a port.
type askedFor struct {
	count   uint64
	targets counts // of the first few
}

// counts says how often something came.
type counts map[string]uint64

// count counts, unless that would be more than most told apart. The caller
// holds mu.
func (l *ledger) count(c counts, what string, n uint64, most int) {
	if _, known := c[what]; !known {
		if len(c) >= most || l.targets >= maxTargets {
			return
		}
		l.targets++
	}
	c[what] += n
}

// hold counts the process that a visitor is. The caller holds mu.
func (l *ledger) hold(port *portLedger, v visitor, process string, n uint64) {
	if process == "" || port.visitors[v] == nil || l.targets >= maxTargets {
		return
	}
	if port.processes == nil {
		port.processes = map[visitor]counts{}
	}
	if port.processes[v] == nil {
		port.processes[v] = counts{}
	}
	l.count(port.processes[v], clip(process, maxProcessText), n, maxProcesses)
}

// ask counts a record of requests without identity in, where its port is
// known from connections. The caller holds mu.
func (l *ledger) ask(e *audit.Event, n uint64) {
	if e.Transport != audit.TransportPlaintext || e.Direction != audit.DirectionInbound || e.Reporter != e.ServerID || e.Node == "" {
		return
	}
	p, source := l.places[place{e.ServerID, e.Node}], addressOf(e.Source)
	if p == nil || p.ports[e.Port] == nil || !source.IsValid() {
		return
	}
	port := p.ports[e.Port]
	a := port.asked[source]
	if a == nil {
		if len(port.asked) >= maxPortClients || l.targets >= maxTargets {
			return
		}
		if port.asked == nil {
			port.asked = map[netip.Addr]*askedFor{}
		}
		a = &askedFor{targets: counts{}}
		port.asked[source] = a
	}
	a.count += n
	target := clip(cmp.Or(e.Method, "*")+" "+cmp.Or(e.Host, "*")+cmp.Or(e.Path, "/*"), maxTargetText)
	l.count(a.targets, target, n, maxAskedTargets)
}

// plus adds copies: what is in a ledger is not shared with readers.
func (a askedFor) plus(b *askedFor) askedFor {
	return askedFor{a.count + b.count, a.targets.plus(b.targets)}
}

func (c counts) plus(more counts) counts {
	sum := maps.Clone(c)
	if sum == nil {
		sum = counts{}
	}
	for what, n := range more {
		sum[what] += n
	}
	return sum
}

// most returns what is counted, the most frequent first.
func (c counts) most() []string {
	return slices.SortedFunc(maps.Keys(c), func(x, y string) int {
		return cmp.Or(cmp.Compare(c[y], c[x]), cmp.Compare(x, y))
	})
}
