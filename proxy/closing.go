// This file holds the record of a connection's end: its bytes and its
// duration. The verdict is recorded when it is made, so that a record never
// waits for a connection to end.

package proxy

import (
	"net/netip"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/proxy/request"
)

// life is what the record of the end repeats of the beginning, so that the
// two can be joined: identities, serials, addresses. It is immutable.
type life struct {
	began                      time.Time
	direction, transport       string
	clientID, serverID         string
	clientSerial, serverSerial string
	source                     netip.AddrPort
	destination, policy        string
	protocol                   string
	port                       uint16
	pair                       *request.Pair
}

// remember keeps what the record of the end repeats of e, and counts the
// beginning.
func (p *Proxy) remember(l *link, e *audit.Event, source netip.AddrPort) {
	client, _ := identity.ParseID(e.ClientID) // zero in plaintext
	server, _ := identity.ParseID(e.ServerID)
	by := request.ByDestination
	if e.Direction == audit.DirectionOutbound {
		by = request.BySource
	}
	pair := p.requestMetrics.Pairs.Of(client, server, by)
	pair.Opened()
	l.life.Store(&life{
		pair:  pair,
		began: e.Time, direction: e.Direction, transport: e.Transport,
		clientID: e.ClientID, serverID: e.ServerID, clientSerial: e.ClientSerial, serverSerial: e.ServerSerial,
		source: source, destination: e.Destination, policy: e.Policy, protocol: e.Protocol, port: e.Port,
	})
}

// because says why the link ends; the first reason counts. Without one it has
// closed in order.
func (l *link) because(reason audit.Reason) { l.ending.CompareAndSwap(nil, &reason) }

// recordBeginning records that a connection was let in.
func (p *Proxy) recordBeginning(l *link, e *audit.Event, source netip.AddrPort) {
	p.remember(l, e, source)
	p.record(e, source)
}

// recordEnd records the end of a connection whose beginning was recorded.
func (p *Proxy) recordEnd(l *link, now time.Time) {
	a := l.life.Load()
	if a == nil {
		return
	}
	e := &audit.Event{
		Time: now, Kind: audit.KindConnectionClosed, Verdict: audit.VerdictDone, Reason: audit.ReasonClosed,
		Direction: a.direction, Transport: a.transport, ClientID: a.clientID, ServerID: a.serverID,
		ClientSerial: a.clientSerial, ServerSerial: a.serverSerial, Source: a.source.String(), Destination: a.destination,
		Policy: a.policy, Protocol: a.protocol, Port: a.port, DurationMS: max(0, now.Sub(a.began).Milliseconds()),
	}
	if reason := l.ending.Load(); reason != nil {
		e.Reason = *reason
	}
	e.BytesIn, e.BytesOut = l.moved()
	a.pair.Closed(e.BytesIn, e.BytesOut)
	p.reporter.add(e, a.source.Addr())
}

// moved returns the application's bytes so far, from and to the dialling
// side.
func (l *link) moved() (in, out uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if out = l.served.Load(); l.far != nil {
		out = l.far.moved.Load()
	}
	return l.near.moved.Load(), out
}
