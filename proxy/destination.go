// This file holds the destinations that a transparent proxy knows the
// identity of, and the finding of the one that fits an address best.

package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/proxy/intercept"
)

// Destination is whom the proxy expects behind an address that processes
// dial. It speaks mutual TLS with exactly that identity, and with no other.
type Destination struct {
	Address Target      `json:"address"` // of which connections this is said
	ID      identity.ID `json:"id"`      // the SPIFFE ID that the other side must prove
	// Dial is dialled in place of the address: host:port, or :port for the
	// same host. Empty means the address itself.
	Dial       string   `json:"dial"`
	ServerName string   `json:"serverName"` // as in Outbound
	ALPN       []string `json:"alpn"`       // as in Outbound
}

// Target is an address or a block of addresses, with a port or for all ports:
// 10.0.0.7, 10.0.0.7:8080, 10.0.0.0/24, 10.0.0.0/24:8080, fd00::7,
// [fd00::7]:8080, [fd00::/64]:8080.
type Target struct {
	prefix netip.Prefix
	port   uint16 // zero means every port
}

// ParseTarget reads what String prints.
func ParseTarget(text string) (Target, error) {
	block, port := text, ""
	switch {
	case strings.HasPrefix(text, "["):
		inner, rest, closed := strings.Cut(text[1:], "]")
		if !closed || rest != "" && !strings.HasPrefix(rest, ":") {
			return Target{}, fmt.Errorf("%q is not [address]:port", text)
		}
		block, port = inner, rest
	case strings.Count(text, ":") == 1:
		i := strings.IndexByte(text, ':')
		block, port = text[:i], text[i:]
	}
	p, err := intercept.ParsePrefix(block)
	if err != nil {
		return Target{}, err
	}
	t := Target{prefix: p}
	if port != "" {
		n, err := strconv.ParseUint(port[1:], 10, 16)
		if err != nil || n == 0 {
			return Target{}, fmt.Errorf("%q has no port from 1 to 65535 after its colon", text)
		}
		t.port = uint16(n)
	}
	return t, nil
}

// UnmarshalText is ParseTarget.
func (t *Target) UnmarshalText(text []byte) (err error) {
	*t, err = ParseTarget(string(text))
	return err
}

// String prints the target as ParseTarget reads it.
func (t Target) String() string {
	if !t.prefix.IsValid() {
		return ""
	}
	block := t.prefix.String()
	if t.prefix.IsSingleIP() {
		block = t.prefix.Addr().String()
	}
	switch {
	case t.port == 0:
		return block
	case t.prefix.Addr().Is6():
		return "[" + block + "]:" + strconv.Itoa(int(t.port))
	}
	return block + ":" + strconv.Itoa(int(t.port))
}

// destinations finds the narrowest block that holds an address, and in one
// block the entry of the port before the one for all ports. It is immutable.
type destinations struct {
	all     map[Target]Destination
	lengths map[bool][]int // by "is IPv6": the lengths in use, longest first
}

func newDestinations(list []Destination) (*destinations, error) {
	d := &destinations{all: make(map[Target]Destination), lengths: make(map[bool][]int)}
	for i, one := range list {
		if err := one.check(); err != nil {
			return nil, fmt.Errorf("destinations[%d]: %w", i, err)
		}
		if _, twice := d.all[one.Address]; twice {
			return nil, fmt.Errorf("destinations[%d]: address: %s is given twice", i, one.Address)
		}
		d.all[one.Address] = one
		six := one.Address.prefix.Addr().Is6()
		d.lengths[six] = append(d.lengths[six], one.Address.prefix.Bits())
	}
	for six, lengths := range d.lengths {
		slices.SortFunc(lengths, func(a, b int) int { return b - a })
		d.lengths[six] = slices.Compact(lengths)
	}
	return d, nil
}

func (d *destinations) find(to netip.AddrPort) (Destination, bool) {
	address := to.Addr().WithZone("")
	for _, bits := range d.lengths[address.Is6()] {
		block, err := address.Prefix(bits)
		if err != nil {
			continue
		}
		for _, port := range []uint16{to.Port(), 0} {
			if one, ok := d.all[Target{block, port}]; ok {
				return one, true
			}
		}
	}
	return Destination{}, false
}

// dial is the address to connect to for a connection that was meant for to.
func (d Destination) dial(to netip.AddrPort) string {
	if port, ok := strings.CutPrefix(d.Dial, ":"); ok {
		return net.JoinHostPort(to.Addr().String(), port)
	}
	if d.Dial != "" {
		return d.Dial
	}
	return to.String()
}
