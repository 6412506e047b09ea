// This file holds the bounds on what inbound connections may occupy, in total
// and for each source.

package proxy

import (
	"fmt"
	"net/netip"
	"sync"
)

// sources counts inbound connections by who opened them.
type sources struct {
	connections, handshakes int  // of one source
	inFlight                int  // handshakes of all sources
	sparing                 bool // loopback is not a source, since nothing was set for sources

	mu      sync.Mutex
	shaking int                    // guarded by mu
	shares  map[netip.Prefix]share // guarded by mu; no entry is zero
}

type share struct{ connections, handshakes int }

func newSources(l Limits) *sources {
	s := &sources{inFlight: l.MaxHandshakes, connections: l.MaxConnectionsPerSource, handshakes: l.MaxHandshakesPerSource,
		sparing: l.MaxConnectionsPerSource == 0 && l.MaxHandshakesPerSource == 0, shares: make(map[netip.Prefix]share)}
	orDefault(&s.connections, max(1, l.MaxConnections/2))
	orDefault(&s.handshakes, max(1, l.MaxHandshakes/4))
	return s
}

// sourceOf is what counts as one source: who has one address of IPv6 has a
// whole /64.
func sourceOf(a netip.Addr) netip.Prefix {
	bits := 64
	if a.Is4() {
		bits = 32
	}
	p, _ := a.WithZone("").Prefix(bits) // invalid for an invalid address, which is one source too
	return p
}

// seat is what one inbound connection occupies. It is used by one goroutine
// at a time. Nil is the seat of a connection that nobody counts.
type seat struct {
	of      *sources
	source  netip.Prefix
	charged bool
	shaking bool
}

// seat takes a place among the handshakes, or says which bound it is over.
func (s *sources) seat() (*seat, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shaking >= s.inFlight {
		return nil, fmt.Errorf("more than %d handshakes at once", s.inFlight)
	}
	s.shaking++
	return &seat{of: s, shaking: true}, nil
}

// charge counts the seat for a source, or says which bound that is over.
func (t *seat) charge(a netip.Addr) error {
	if t == nil || t.charged || t.of.sparing && a.IsLoopback() {
		return nil
	}
	t.of.mu.Lock()
	defer t.of.mu.Unlock()
	source := sourceOf(a)
	sh := t.of.shares[source]
	switch {
	case sh.connections >= t.of.connections:
		return fmt.Errorf("more than %d connections of one source", t.of.connections)
	case sh.handshakes >= t.of.handshakes:
		return fmt.Errorf("more than %d handshakes of one source at once", t.of.handshakes)
	}
	sh.connections++
	if t.shaking {
		sh.handshakes++
	}
	t.of.shares[source] = sh
	t.source, t.charged = source, true
	return nil
}

// decided gives the place among the handshakes back.
func (t *seat) decided() {
	if t == nil || !t.shaking {
		return
	}
	t.of.mu.Lock()
	defer t.of.mu.Unlock()
	t.shaking = false
	t.of.shaking--
	if t.charged {
		t.of.change(t.source, 0, -1)
	}
}

// leave gives everything back.
func (t *seat) leave() {
	if t == nil {
		return
	}
	t.decided()
	t.of.mu.Lock()
	defer t.of.mu.Unlock()
	if t.charged {
		t.charged = false
		t.of.change(t.source, -1, 0)
	}
}

// change adds to a share and forgets one that is empty. The caller holds mu.
func (s *sources) change(source netip.Prefix, connections, handshakes int) {
	sh := s.shares[source]
	sh.connections += connections
	sh.handshakes += handshakes
	if sh == (share{}) {
		delete(s.shares, source)
		return
	}
	s.shares[source] = sh
}

// inProgress returns how many inbound connections have no verdict yet.
func (s *sources) inProgress() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shaking
}
