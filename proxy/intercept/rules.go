// This file holds Rules, what is intercepted and what is not, and their
// checks.

package intercept

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// The ports that a proxy takes redirected connections on unless told
// otherwise.
const (
	DefaultInboundPort  = 15006
	DefaultOutboundPort = 15001
)

// Rules say which TCP connections of a network namespace go to its proxy, in
// IPv4 and IPv6 alike. Connections that are open when rules come stay as they
// are. When the namespace's last NAT rule goes, the kernel stops translating,
// and connections that were redirected hang: a proxy drains before Cleanup.
type Rules struct {
	Inbound  *Inbound  // nil leaves connections from other machines alone
	Outbound *Outbound // nil leaves connections to other machines alone
}

// Inbound redirects connections that come in over the network to an address
// of this namespace. What is only routed through it, and what comes over
// loopback, passes.
type Inbound struct {
	To    uint16         // the proxy's transparent inbound port
	Only  []uint16       // ports that are intercepted; empty means all
	Ports []uint16       // ports that are not
	From  []netip.Prefix // sources that are not
}

// Outbound redirects connections that processes of this namespace open to
// other machines. Destinations of this namespace itself pass.
type Outbound struct {
	To    uint16         // the proxy's transparent outbound port
	Owner Owner          // the proxy's own connections, which pass
	Ports []uint16       // ports that are not intercepted
	Dest  []netip.Prefix // destinations that are not
	UIDs  []uint32       // users whose connections are not
}

// Owner tells the proxy's own connections by the user or the group that it
// runs as. Without either, what the proxy dials would come back to it.
type Owner struct {
	UID *uint32
	GID *uint32
}

// check reports what is wrong, and returns the rules sorted and without
// repetition, so that equal rules give equal text.
func (r Rules) check() (Rules, error) {
	if r.Inbound == nil && r.Outbound == nil {
		return Rules{}, errors.New("rules: neither direction is intercepted")
	}
	var out Rules
	if r.Inbound != nil {
		in := *r.Inbound
		if in.To == 0 {
			return Rules{}, errors.New("rules: inbound: the proxy's port is missing")
		}
		for _, p := range in.Only {
			if slices.Contains(in.Ports, p) {
				return Rules{}, fmt.Errorf("rules: inbound: port %d is both intercepted and excluded", p)
			}
		}
		in.Only, in.Ports, in.From = tidy(in.Only), tidy(in.Ports), prefixes(in.From)
		out.Inbound = &in
	}
	if r.Outbound != nil {
		to := *r.Outbound
		if to.To == 0 {
			return Rules{}, errors.New("rules: outbound: the proxy's port is missing")
		}
		if to.Owner.UID == nil && to.Owner.GID == nil {
			return Rules{}, errors.New("rules: outbound: neither the proxy's user nor its group is given, so that its own connections would come back to it")
		}
		to.Ports, to.Dest, to.UIDs = tidy(to.Ports), prefixes(to.Dest), tidy(to.UIDs)
		out.Outbound = &to
	}
	if r.Inbound != nil && r.Outbound != nil && r.Inbound.To == r.Outbound.To {
		return Rules{}, fmt.Errorf("rules: port %d is given for both directions", r.Inbound.To)
	}
	return out, nil
}

func tidy[T uint16 | uint32](all []T) []T {
	all = slices.Clone(all)
	slices.Sort(all)
	return slices.Compact(all)
}

func prefixes(all []netip.Prefix) []netip.Prefix {
	all = slices.Clone(all)
	for i, p := range all {
		all[i] = p.Masked()
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return slices.Compact(all)
}

// ParsePrefix reads an address or a block of addresses, IPv4 or IPv6. An
// IPv4 address written in IPv6 is the IPv4 address.
func ParsePrefix(text string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		if p.Addr().Is4In6() {
			return netip.Prefix{}, fmt.Errorf("%q is IPv4 written in IPv6; write it as IPv4", text)
		}
		if p != p.Masked() {
			return netip.Prefix{}, fmt.Errorf("%q has bits after its length; did you mean %s?", text, p.Masked())
		}
		return p, nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a block such as 10.0.0.0/8", text)
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), nil
}
