// This file holds the ledger: who came to which workload and port how, as the
// stored connection records say. It is the evidence on which a port may
// become strict.

package server

import (
	"net/netip"
	"sync"
	"time"

	"github.com/aval-id/aval/audit"
)

// Bounds of the ledger. What is beyond is counted without its client.
const (
	maxPlaces      = 20_000 // workloads on nodes
	maxPlacePorts  = 256    // ports of one of them
	maxPortClients = 1_024  // clients of one port
	maxSightings   = 200_000
	maxAddresses   = 16_384 // addresses whose identities are known
	maxIdentities  = 8      // of one address
)

// place is one workload on one node. What a node says counts only for the
// identities that it may hold, which is judged when the ledger is read.
type place struct{ server, node string }

// visitor is who came to a port, as far as it is known, and how it ended.
type visitor struct {
	cause    string     // causeMTLS, causePlaintext, causeForeignTLS, or the reason of a failure
	admitted bool       // it was let in
	id       string     // SPIFFE ID; proven only where cause is causeMTLS
	source   netip.Addr // of those that did not prove an identity
	protocol string     // audit.Event.Protocol
}

// The causes that are no reasons of a failure.
const (
	causeMTLS       = "mtls"
	causePlaintext  = "plaintext"
	causeForeignTLS = "foreign_tls"
)

// sighting is how often and when a visitor came.
type sighting struct {
	first, last time.Time
	count       uint64
}

func (s *sighting) add(first, last time.Time, n uint64) {
	if s.first.IsZero() || first.Before(s.first) {
		s.first = first
	}
	if last.After(s.last) {
		s.last = last
	}
	s.count += n
}

// portLedger is what came to one port of a place.
type portLedger struct {
	all      sighting
	visitors map[visitor]*sighting
	// unnamed are visitors beyond the bound, by cause and whether they were
	// admitted.
	unnamed map[visitor]*sighting
	// asked is what clients without identity asked for, by their address.
	asked map[netip.Addr]*askedFor
	// processes are those that came as a visitor, where that is known.
	processes map[visitor]counts
}

// placeLedger is what came to one place.
type placeLedger struct {
	all   sighting
	ports map[uint16]*portLedger
	// crowd is what came to ports beyond the bound.
	crowd portLedger
}

// ledger gathers what connection records say of workloads that take
// connections. It is safe for concurrent use.
type ledger struct {
	mu        sync.Mutex
	places    map[place]*placeLedger              // guarded by mu
	losses    map[string]*sighting                // guarded by mu: lost records, by node
	addresses map[netip.Addr]map[string]time.Time // guarded by mu: identities that were seen at an address, and when
	sightings int                                 // guarded by mu
	targets   int                                 // guarded by mu: targets of requests that are kept
	overflow  uint64                              // guarded by mu: records of places beyond the bound
	reading   bool                                // guarded by mu: the log of before the start is still being read
	fault     string                              // guarded by mu: why that failed
}

func newLedger() *ledger {
	return &ledger{places: map[place]*placeLedger{}, losses: map[string]*sighting{}, addresses: map[netip.Addr]map[string]time.Time{}}
}

// addAll takes stored records into the ledger. No record counts as later than
// now, whatever its node's clock says.
func (l *ledger) addAll(events []audit.Event, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range events {
		l.add(&events[i], now)
	}
}

// add takes one record. The caller holds mu.
func (l *ledger) add(e *audit.Event, now time.Time) {
	last, n := earlier(e.Time, now), max(1, e.Count)
	first := last
	if !e.FirstTime.IsZero() {
		first = earlier(e.FirstTime, last)
	}
	switch {
	case e.Kind == audit.KindLoss && e.Node != "":
		l.lose(e.Node, last, e.Lost)
		return
	case e.Kind == audit.KindRequest:
		l.ask(e, n)
		return
	case e.Kind != audit.KindConnection:
		return
	}
	l.learn(e, last)
	if e.Direction != audit.DirectionInbound || e.ServerID == "" || e.Reporter != e.ServerID || e.Node == "" {
		return // only the side that took the connection knows how it came
	}
	v, ok := visitorOf(e)
	if !ok {
		return
	}
	p := l.places[place{e.ServerID, e.Node}]
	if p == nil {
		if len(l.places) >= maxPlaces {
			l.overflow += n
			return
		}
		p = &placeLedger{ports: map[uint16]*portLedger{}}
		l.places[place{e.ServerID, e.Node}] = p
	}
	p.all.add(first, last, n)
	port := p.port(e.Port)
	l.visit(port, v, first, last, n)
	l.hold(port, v, e.ClientProcess, n)
}

func earlier(a, b time.Time) time.Time {
	if a.After(b) {
		return b
	}
	return a
}

func (l *ledger) lose(node string, at time.Time, n uint64) {
	s := l.losses[node]
	if s == nil {
		if len(l.losses) >= maxNodes {
			l.overflow += n
			return
		}
		s = new(sighting)
		l.losses[node] = s
	}
	s.add(at, at, n)
}

// port returns the ledger of a port, or that of all ports beyond the bound.
func (p *placeLedger) port(n uint16) *portLedger {
	port := p.ports[n]
	if port == nil {
		if len(p.ports) >= maxPlacePorts {
			return &p.crowd
		}
		port = &portLedger{}
		p.ports[n] = port
	}
	return port
}

// visit counts a visitor in. The caller holds mu.
func (l *ledger) visit(port *portLedger, v visitor, first, last time.Time, n uint64) {
	port.all.add(first, last, n)
	s := port.visitors[v]
	if s == nil && len(port.visitors) < maxPortClients && l.sightings < maxSightings {
		if port.visitors == nil {
			port.visitors = map[visitor]*sighting{}
		}
		s = new(sighting)
		port.visitors[v] = s
		l.sightings++
	}
	if s == nil {
		v.id, v.source, v.protocol = "", netip.Addr{}, ""
		if s = port.unnamed[v]; s == nil {
			if port.unnamed == nil {
				port.unnamed = map[visitor]*sighting{}
			}
			s = new(sighting)
			port.unnamed[v] = s
		}
	}
	s.add(first, last, n)
}

// visitorOf says who a record is about and how it came, and false where the
// record says nothing of that: the connection did not get that far.
func visitorOf(e *audit.Event) (visitor, bool) {
	v := visitor{protocol: e.Protocol, admitted: e.Verdict != audit.VerdictDenied}
	switch e.Reason {
	case audit.ReasonLimit, audit.ReasonShuttingDown, audit.ReasonNoSnapshot, audit.ReasonPolicyChanged:
		return v, false
	case audit.ReasonExpired:
		if e.Transport == "" {
			return v, false // the proxy's own SVID had ended
		}
	}
	switch {
	case e.Transport == audit.TransportPlaintext:
		v.cause = causePlaintext
	case e.Transport == audit.TransportTLSPassthrough:
		v.cause = causeForeignTLS
	case v.admitted:
		v.cause, v.id, v.protocol = causeMTLS, e.ClientID, ""
		return v, true
	default:
		v.cause, v.id = e.Reason, e.ClientID
	}
	v.source = addressOf(e.Source)
	return v, true
}

// addressOf takes the address out of ip:port or ip.
func addressOf(s string) netip.Addr {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap()
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap()
}

// learn remembers which identities live at which address: a caller that
// proved itself at its own, and who took a connection at the address that it
// was taken at. Loopback addresses say nothing. The caller holds mu.
func (l *ledger) learn(e *audit.Event, at time.Time) {
	if e.Transport != audit.TransportMTLS || e.Verdict != audit.VerdictAllowed || e.Direction != audit.DirectionInbound ||
		e.Reporter != e.ServerID {
		return
	}
	for _, pair := range [...]struct{ address, id string }{{e.Source, e.ClientID}, {e.Destination, e.ServerID}} {
		a := addressOf(pair.address)
		if !a.IsValid() || a.IsLoopback() || pair.id == "" {
			continue
		}
		ids := l.addresses[a]
		if ids == nil {
			if len(l.addresses) >= maxAddresses {
				continue
			}
			ids = map[string]time.Time{}
			l.addresses[a] = ids
		}
		if _, known := ids[pair.id]; known || len(ids) < maxIdentities {
			ids[pair.id] = at
		}
	}
}
