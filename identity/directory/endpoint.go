// This file holds Endpoint, its checks and its bounds.

package directory

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/aval-id/aval/identity"
)

// The bounds of what one side may tell another.
const (
	MaxPerProxy = 256    // endpoints that a proxy announces
	MaxPerNode  = 2048   // endpoints that a node reports
	MaxTotal    = 50_000 // endpoints of a registry
	MaxPorts    = 128    // exceptions of an endpoint, of each kind
	maxALPN     = 8
	maxName     = 64
	maxPath     = 256
)

// Disable is the only mode in which a port is dialled in plaintext. Every other
// one means mutual TLS, also one that only newer programs know.
const Disable = "DISABLE"

// Endpoint is an address and a port where a workload takes connections. It is
// immutable.
type Endpoint struct {
	Key
	Registration string // namespace/name
	Except       []uint16
	Mode         string // in force on its ports
	PortModes    map[uint16]string
	Protocol     string
	ALPN         []string
}

// Key tells endpoints apart. Node is zero until a server has said it.
type Key struct {
	Node    identity.ID
	ID      identity.ID
	Address netip.Addr
	Port    uint16 // 0 is every port that Except does not name
}

// Check returns the endpoint with its exceptions in order, or what is wrong
// with it.
func (e Endpoint) Check() (Endpoint, error) {
	fail := func(format string, args ...any) (Endpoint, error) {
		return Endpoint{}, fmt.Errorf("endpoint %s: %w", e.Key, fmt.Errorf(format, args...))
	}
	long := func(s string) bool { return len(s) > maxName }
	switch {
	case len(e.Registration) > maxPath || long(e.Protocol) || long(e.Mode) || len(e.ALPN) > maxALPN || slices.ContainsFunc(e.ALPN, long):
		return fail("registration, mode, protocol or alpn is too long")
	case len(e.Except) > MaxPorts || len(e.PortModes) > MaxPorts:
		return fail("more than %d exceptions", MaxPorts)
	case e.Port != 0 && len(e.Except)+len(e.PortModes) > 0:
		return fail("exceptions have no meaning for a single port")
	case slices.Contains(e.Except, 0):
		return fail("except: port 0 is not from 1 to 65535")
	}
	for port, mode := range e.PortModes {
		if port == 0 || long(mode) {
			return fail("port_modes: port %d or its mode cannot be", port)
		}
	}
	e.Except = slices.Clone(e.Except)
	slices.Sort(e.Except)
	e.Except = slices.Compact(e.Except)
	return e, e.Key.Check()
}

// Check reports what is wrong with the key.
func (k Key) Check() error {
	switch {
	case k.ID.Role() != identity.RoleWorkload:
		return fmt.Errorf("spiffe_id: %q is not a workload's", k.ID)
	case !k.Node.IsZero() && k.Node.Role() != identity.RoleNode:
		return fmt.Errorf("node: %s is not a node's", k.Node)
	case !Dialable(k.Address):
		return fmt.Errorf("address: %s means another machine to everybody, or none", k.Address)
	}
	return nil
}

// ParseAddress reads an address that others can dial. An IPv4 address mapped
// into IPv6 is the IPv4 address.
func ParseAddress(text string) (netip.Addr, error) {
	if len(text) > maxName {
		return netip.Addr{}, errors.New("is too long")
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, err
	}
	if a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%s belongs to one machine's interface", a)
	}
	a = a.Unmap()
	if !Dialable(a) {
		return netip.Addr{}, fmt.Errorf("%s means another machine to everybody, or none", a)
	}
	return a, nil
}

// Dialable reports whether an address means one machine to all: it is not
// unspecified, loopback, link-local, multicast, broadcast, or an IPv4 address
// mapped into IPv6.
func Dialable(a netip.Addr) bool {
	broadcast := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	return a.IsValid() && a.Zone() == "" && !a.Is4In6() && a.IsGlobalUnicast() && a != broadcast
}

// String prints who is where.
func (k Key) String() string {
	if k.Port == 0 {
		return fmt.Sprintf("%s at %s", k.ID, k.Address)
	}
	return fmt.Sprintf("%s at %s", k.ID, netip.AddrPortFrom(k.Address, k.Port))
}

// Equal reports whether both say the same.
func (e Endpoint) Equal(o Endpoint) bool {
	return e.Key == o.Key && e.Registration == o.Registration && e.Mode == o.Mode && e.Protocol == o.Protocol &&
		slices.Equal(e.Except, o.Except) && maps.Equal(e.PortModes, o.PortModes) && slices.Equal(e.ALPN, o.ALPN)
}

// Covers reports whether connections to the port of its address are its.
func (e Endpoint) Covers(port uint16) bool {
	if e.Port != 0 {
		return e.Port == port
	}
	_, except := slices.BinarySearch(e.Except, port)
	return !except
}

// Overlaps reports whether some port of one address is both's.
func (e Endpoint) Overlaps(o Endpoint) bool {
	switch {
	case e.Address != o.Address:
		return false
	case e.Port != 0:
		return o.Covers(e.Port)
	case o.Port != 0:
		return e.Covers(o.Port)
	}
	return true // exceptions are few
}

// Mutual reports whether a port is dialled with mutual TLS: in every mode but
// DISABLE.
func (e Endpoint) Mutual(port uint16) bool {
	mode := e.Mode
	if m, ok := e.PortModes[port]; ok {
		mode = m
	}
	return mode != Disable
}
