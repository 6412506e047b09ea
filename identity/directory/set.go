// This file holds Set, which finds who is expected behind an address.

package directory

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/aval-id/aval/identity"
)

// Set is a registry of one moment, for lookups. It is immutable; nil is empty.
type Set struct {
	byAddress map[netip.Addr][]Endpoint
	size      int
}

// Answer is whom a registry expects behind an address and port.
type Answer struct {
	// IDs are the identities that count, in order. There are several where
	// workloads share an address, as behind one that is served by many.
	IDs []identity.ID
	// Mutual says that the connection must be mutual TLS with one of IDs. It
	// is false only where every endpoint there has the mode DISABLE.
	Mutual bool
}

// NewSet indexes endpoints.
func NewSet(all []Endpoint) *Set {
	s := &Set{byAddress: make(map[netip.Addr][]Endpoint), size: len(all)}
	for _, e := range all {
		s.byAddress[e.Address] = append(s.byAddress[e.Address], e)
	}
	return s
}

// Len is the number of endpoints.
func (s *Set) Len() int {
	if s == nil {
		return 0
	}
	return s.size
}

// Find returns who is expected at an address and port. An endpoint of the very
// port counts before those of every port. It reports false where none is.
func (s *Set) Find(to netip.AddrPort) (a Answer, ok bool) {
	if s == nil {
		return Answer{}, false
	}
	exact := false
	for _, e := range s.byAddress[to.Addr().WithZone("").Unmap()] {
		if !e.Covers(to.Port()) {
			continue
		}
		// Whose port it is, the narrower claim says; plaintext takes all: who
		// shares an address with another can't take its TLS away.
		a.Mutual = a.Mutual || e.Mutual(to.Port())
		if exact && e.Port == 0 {
			continue
		}
		if e.Port != 0 && !exact {
			exact, a.IDs = true, nil
		}
		if !slices.Contains(a.IDs, e.ID) {
			a.IDs = append(a.IDs, e.ID)
		}
	}
	slices.SortFunc(a.IDs, func(x, y identity.ID) int { return strings.Compare(x.String(), y.String()) })
	return a, len(a.IDs) > 0
}

// All returns the endpoints by address, port, identity and node.
func (s *Set) All() []Endpoint {
	if s == nil {
		return nil
	}
	out := make([]Endpoint, 0, s.size)
	for _, list := range s.byAddress {
		out = append(out, list...)
	}
	slices.SortFunc(out, func(a, b Endpoint) int { return Compare(a.Key, b.Key) })
	return out
}

// Compare orders keys by address, port, identity and node.
func Compare(a, b Key) int {
	return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port),
		strings.Compare(a.ID.String(), b.ID.String()), strings.Compare(a.Node.String(), b.Node.String()))
}
