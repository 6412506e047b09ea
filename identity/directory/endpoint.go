// This file holds Endpoint, its parser and its bounds.

package directory

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/policy"
	"github.com/aval-id/aval/identity/wire"
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

// Endpoint is an address and a port where a workload takes connections. It is
// immutable.
type Endpoint struct {
	Key
	Registration string // namespace/name
	Except       []uint16
	Mode         policy.Mode // in force on its ports
	PortModes    map[uint16]policy.Mode
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

// Parse reads what Wire gives. A mode that only newer programs know counts as
// STRICT, so that it never lets plaintext through.
func Parse(w *wire.Endpoint) (Endpoint, error) {
	key, err := ParseKey(&wire.EndpointKey{Node: w.GetNode(), SpiffeId: w.GetSpiffeId(), Address: w.GetAddress(), Port: w.GetPort()})
	if err != nil {
		return Endpoint{}, fmt.Errorf("endpoint: %w", err)
	}
	e := Endpoint{Key: key, Registration: w.GetRegistration(), Mode: parseMode(w.GetMode()), Protocol: w.GetProtocol(), ALPN: w.GetAlpn()}
	fail := func(format string, args ...any) (Endpoint, error) {
		return Endpoint{}, fmt.Errorf("endpoint %s: %w", e.Key, fmt.Errorf(format, args...))
	}
	if len(e.Registration) > maxPath || len(e.Protocol) > maxName || len(e.ALPN) > maxALPN ||
		slices.ContainsFunc(e.ALPN, func(s string) bool { return len(s) > maxName }) {
		return fail("registration, protocol or alpn is too long")
	}
	if len(w.GetExcept()) > MaxPorts || len(w.GetPortModes()) > MaxPorts {
		return fail("more than %d exceptions", MaxPorts)
	}
	if e.Port != 0 && (len(w.GetExcept()) > 0 || len(w.GetPortModes()) > 0) {
		return fail("exceptions have no meaning for a single port")
	}
	for _, p := range w.GetExcept() {
		port, err := parsePort(p)
		if err != nil {
			return fail("except: %w", err)
		}
		e.Except = append(e.Except, port)
	}
	slices.Sort(e.Except)
	e.Except = slices.Compact(e.Except)
	for p, mode := range w.GetPortModes() {
		port, err := parsePort(p)
		if err != nil {
			return fail("port_modes: %w", err)
		}
		if e.PortModes == nil {
			e.PortModes = make(map[uint16]policy.Mode)
		}
		e.PortModes[port] = parseMode(mode)
	}
	return e, nil
}

func parsePort(n uint32) (uint16, error) {
	if n == 0 || n > 65535 {
		return 0, fmt.Errorf("port %d is not from 1 to 65535", n)
	}
	return uint16(n), nil
}

func parseMode(s string) policy.Mode {
	if m, err := policy.ParseMode(s); err == nil && m != policy.Unset {
		return m
	}
	return policy.Strict
}

// ParseKey reads what Key.Wire gives.
func ParseKey(w *wire.EndpointKey) (k Key, err error) {
	if k.ID, err = identity.ParseID(w.GetSpiffeId()); err != nil {
		return Key{}, fmt.Errorf("spiffe_id: %w", err)
	}
	if k.ID.Role() != identity.RoleWorkload {
		return Key{}, fmt.Errorf("spiffe_id: %s is not a workload's", k.ID)
	}
	if w.GetNode() != "" {
		if k.Node, err = identity.ParseID(w.GetNode()); err != nil {
			return Key{}, fmt.Errorf("node: %w", err)
		}
		if k.Node.Role() != identity.RoleNode {
			return Key{}, fmt.Errorf("node: %s is not a node's", k.Node)
		}
	}
	if k.Address, err = ParseAddress(w.GetAddress()); err != nil {
		return Key{}, fmt.Errorf("address: %w", err)
	}
	if w.GetPort() > 65535 {
		return Key{}, fmt.Errorf("port: %d is not from 0 to 65535", w.GetPort())
	}
	k.Port = uint16(w.GetPort())
	return k, nil
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

// Wire gives the endpoint its wire form.
func (e Endpoint) Wire() *wire.Endpoint {
	k := e.Key.Wire()
	w := &wire.Endpoint{Node: k.Node, Registration: e.Registration, SpiffeId: k.SpiffeId, Address: k.Address, Port: k.Port,
		Mode: e.Mode.String(), Protocol: e.Protocol, Alpn: e.ALPN}
	for _, p := range e.Except {
		w.Except = append(w.Except, uint32(p))
	}
	for p, m := range e.PortModes {
		if w.PortModes == nil {
			w.PortModes = make(map[uint32]string)
		}
		w.PortModes[uint32(p)] = m.String()
	}
	return w
}

// Wire gives the key its wire form.
func (k Key) Wire() *wire.EndpointKey {
	w := &wire.EndpointKey{SpiffeId: k.ID.String(), Address: k.Address.String(), Port: uint32(k.Port)}
	if !k.Node.IsZero() {
		w.Node = k.Node.String()
	}
	return w
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
	return mode != policy.Disable
}
