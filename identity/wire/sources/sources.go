// Package sources is who occupies a listener: how many handshakes are in
// progress, and how many connections and handshakes each source has.
//
// It owns the counting and the bounds. It leaves accepting, and what becomes
// of a connection over a bound, to its callers. It stands on the ground floor.
package sources

import (
	"fmt"
	"net/netip"
	"sync"
)

// Limits bound a listener. Zero means no bound.
type Limits struct {
	Handshakes        int // of all sources at once
	SourceConnections int // of one source
	SourceHandshakes  int // of one source at once
	// SpareLoopback counts no source for a loopback address: whoever is on
	// this machine shares it.
	SpareLoopback bool
}

// Sources counts connections by who opened them. It is safe for concurrent
// use.
type Sources struct {
	limits Limits

	mu      sync.Mutex
	shaking int                    // guarded by mu
	shares  map[netip.Prefix]share // guarded by mu; no entry is zero
}

type share struct{ connections, handshakes int }

// New returns a count of nobody.
func New(l Limits) *Sources { return &Sources{limits: l, shares: make(map[netip.Prefix]share)} }

// sourceOf is what counts as one source: who has one address of IPv6 has a
// whole /64.
func sourceOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 64
	if a.Is4() {
		bits = 32
	}
	p, _ := a.Prefix(bits) // invalid for an invalid address, which is one source too
	return p
}

func over(n, limit int) bool { return limit > 0 && n >= limit }

// Seat is what one connection occupies. It is used by one goroutine
// at a time. Nil is the seat of a connection that nobody counts.
type Seat struct {
	of      *Sources
	source  netip.Prefix
	charged bool
	shaking bool
}

// Seat takes a place among the handshakes, or says which bound it is over.
func (s *Sources) Seat() (*Seat, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if over(s.shaking, s.limits.Handshakes) {
		return nil, fmt.Errorf("more than %d handshakes at once", s.limits.Handshakes)
	}
	s.shaking++
	return &Seat{of: s, shaking: true}, nil
}

// Charge counts the seat for a source, or says which bound that is over.
func (t *Seat) Charge(a netip.Addr) error {
	if t == nil || t.charged || t.of.limits.SpareLoopback && a.Unmap().IsLoopback() {
		return nil
	}
	t.of.mu.Lock()
	defer t.of.mu.Unlock()
	source := sourceOf(a)
	sh := t.of.shares[source]
	switch {
	case over(sh.connections, t.of.limits.SourceConnections):
		return fmt.Errorf("more than %d connections of one source", t.of.limits.SourceConnections)
	case over(sh.handshakes, t.of.limits.SourceHandshakes):
		return fmt.Errorf("more than %d handshakes of one source at once", t.of.limits.SourceHandshakes)
	}
	sh.connections++
	if t.shaking {
		sh.handshakes++
	}
	t.of.shares[source] = sh
	t.source, t.charged = source, true
	return nil
}

// Decided gives the place among the handshakes back.
func (t *Seat) Decided() {
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

// Leave gives everything back.
func (t *Seat) Leave() {
	if t == nil {
		return
	}
	t.Decided()
	t.of.mu.Lock()
	defer t.of.mu.Unlock()
	if t.charged {
		t.charged = false
		t.of.change(t.source, -1, 0)
	}
}

// change adds to a share and forgets one that is empty. The caller holds mu.
func (s *Sources) change(source netip.Prefix, connections, handshakes int) {
	sh := s.shares[source]
	sh.connections += connections
	sh.handshakes += handshakes
	if sh == (share{}) {
		delete(s.shares, source)
		return
	}
	s.shares[source] = sh
}

// InProgress returns how many connections have no verdict yet.
func (s *Sources) InProgress() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shaking
}

// Of returns what the source of an address has.
func (s *Sources) Of(a netip.Addr) (connections, handshakes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.shares[sourceOf(a)]
	return sh.connections, sh.handshakes
}
