// This file holds the configuration of transparent mode, in which the kernel
// hands the proxy connections that were meant for others.

package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/proxy/intercept"
)

// Transparent is the interception of a whole network namespace's connections.
// The rules that redirect them are made by intercept.Host.Setup, from Rules.
type Transparent struct {
	// User and Group are the proxy's own, as a name or a number: what they
	// dial is never redirected. Outbound needs one of them, and New refuses
	// to run as anyone else.
	User  string `json:"user"`
	Group string `json:"group"`
	// Inbound and Outbound are the directions; nil leaves one alone.
	Inbound  *TransparentInbound  `json:"inbound"`
	Outbound *TransparentOutbound `json:"outbound"`
}

// Forward says which address of the application an intercepted connection is
// forwarded to. The port is the one that its client dialled.
type Forward string

const (
	// ForwardOriginal is the address that the client dialled: what listens
	// on loopback alone stays out of reach, as it was.
	ForwardOriginal Forward = "original"
	// ForwardLoopback is 127.0.0.1 or ::1: applications may listen on
	// loopback alone. It opens every service on loopback to the network, as
	// far as policies let it.
	ForwardLoopback Forward = "loopback"
)

// TransparentInbound takes connections from other machines to any port. The
// port that policies match is the one that the client dialled.
type TransparentInbound struct {
	Port    uint16  `json:"port"`    // that the kernel redirects to; zero means intercept.DefaultInboundPort
	Forward Forward `json:"forward"` // empty means ForwardOriginal
	// Ports are settings of single ports; others are ProtocolAuto.
	Ports []TransparentPort `json:"ports"`
	// Only lists the ports that are intercepted; empty means all.
	Only []uint16 `json:"only"`
	// Exclude is left alone by the rules. Ports of listeners of this proxy
	// are left alone anyhow.
	Exclude struct {
		Ports   []uint16  `json:"ports"`
		Sources []Network `json:"sources"`
	} `json:"exclude"`

	declared map[uint16]Inbound // of Ports, checked
}

// TransparentPort is what an intercepted port of the application speaks.
type TransparentPort struct {
	Port     uint16   `json:"port"`
	Protocol Protocol `json:"protocol"` // empty means ProtocolAuto
	ALPN     []string `json:"alpn"`     // as in Inbound

	ForwardProtocol   string               `json:"forwardProtocol"`   // as in Inbound
	SendProxyProtocol ProxyProtocolVersion `json:"sendProxyProtocol"` // as in Inbound
}

// inbound is the port as a listener in front of the application has it, but
// for the address to forward to, which each connection brings.
func (p TransparentPort) inbound() (Inbound, error) {
	in := Inbound{Port: p.Port, Protocol: p.Protocol, ALPN: p.ALPN, ForwardProtocol: p.ForwardProtocol, SendProxyProtocol: p.SendProxyProtocol}
	orDefault(&in.Protocol, ProtocolAuto)
	if err := in.Protocol.check(); err != nil {
		return Inbound{}, err
	}
	in, err := in.withRequests()
	if err != nil {
		return Inbound{}, err
	}
	return in.withProxyProtocol()
}

// Unknown says what becomes of a connection to a destination that no identity
// is configured for.
type Unknown string

const (
	// UnknownPassthrough forwards it as it is. It is recorded as plaintext.
	UnknownPassthrough Unknown = "passthrough"
	// UnknownRefuse closes and records it.
	UnknownRefuse Unknown = "refuse"
)

// TransparentOutbound takes connections of the namespace's processes to other
// machines.
type TransparentOutbound struct {
	Port         uint16        `json:"port"`    // that the kernel redirects to, on loopback; zero means intercept.DefaultOutboundPort
	Unknown      Unknown       `json:"unknown"` // empty means UnknownPassthrough
	Destinations []Destination `json:"destinations"`
	// Exclude is left alone by the rules.
	Exclude struct {
		Ports        []uint16  `json:"ports"`
		Destinations []Network `json:"destinations"`
		UIDs         []uint32  `json:"uids"`
	} `json:"exclude"`
}

// Network is a block of addresses, written 10.0.0.0/8, or one address.
type Network struct{ netip.Prefix }

// UnmarshalText reads an address or a block.
func (n *Network) UnmarshalText(text []byte) (err error) {
	n.Prefix, err = intercept.ParsePrefix(string(text))
	return err
}

// withDefaults returns the settings with zeros replaced, or what is wrong.
func (t Transparent) withDefaults() (*Transparent, error) {
	if t.Inbound == nil && t.Outbound == nil {
		return nil, errors.New("neither inbound nor outbound is given")
	}
	if t.Inbound != nil {
		in := *t.Inbound
		if err := in.check(); err != nil {
			return nil, fmt.Errorf("inbound: %w", err)
		}
		t.Inbound = &in
	}
	if t.Outbound != nil {
		out := *t.Outbound
		if err := out.check(); err != nil {
			return nil, fmt.Errorf("outbound: %w", err)
		}
		if t.User == "" && t.Group == "" {
			return nil, errors.New("outbound: user or group is missing: what the proxy dials is told apart by one of them")
		}
		t.Outbound = &out
	}
	if t.Inbound != nil && t.Outbound != nil && t.Inbound.Port == t.Outbound.Port {
		return nil, fmt.Errorf("port %d is given for both directions", t.Inbound.Port)
	}
	return &t, nil
}

func (in *TransparentInbound) check() error {
	orDefault(&in.Port, intercept.DefaultInboundPort)
	orDefault(&in.Forward, ForwardOriginal)
	if in.Forward != ForwardOriginal && in.Forward != ForwardLoopback {
		return fmt.Errorf("forward: %q is neither %s nor %s", in.Forward, ForwardOriginal, ForwardLoopback)
	}
	seen := make(map[uint16]bool)
	in.declared = make(map[uint16]Inbound, len(in.Ports))
	for i, p := range in.Ports {
		if p.Port == 0 || seen[p.Port] {
			return fmt.Errorf("ports[%d]: port %d is missing or repeated", i, p.Port)
		}
		seen[p.Port] = true
		one, err := p.inbound()
		if err != nil {
			return fmt.Errorf("ports[%d]: %w", i, err)
		}
		in.declared[p.Port] = one
	}
	return nil
}

func (out *TransparentOutbound) check() error {
	orDefault(&out.Port, intercept.DefaultOutboundPort)
	orDefault(&out.Unknown, UnknownPassthrough)
	if out.Unknown != UnknownPassthrough && out.Unknown != UnknownRefuse {
		return fmt.Errorf("unknown: %q is neither %s nor %s", out.Unknown, UnknownPassthrough, UnknownRefuse)
	}
	_, err := newDestinations(out.Destinations)
	return err
}

// calls reports whether the workload's own calls go through the proxy.
func (c Config) calls() bool {
	return len(c.Outbound) > 0 || c.Transparent != nil && c.Transparent.Outbound != nil
}

// listener returns what a connection that was going to an address of the
// application is served as: a listener in front of it.
func (in *TransparentInbound) listener(to netip.AddrPort) *Inbound {
	l, declared := in.declared[to.Port()]
	if !declared {
		l = Inbound{Port: to.Port(), Protocol: ProtocolAuto, ProxyProtocol: ProxyProtocolOff}
	}
	l.Forward = to.String()
	if in.Forward == ForwardLoopback {
		host := "127.0.0.1"
		if to.Addr().Is6() {
			host = "::1"
		}
		l.Forward = net.JoinHostPort(host, strconv.Itoa(int(to.Port())))
	}
	return &l
}

// Rules returns the interception rules that belong to the config: its
// transparent ports, its user and group, its exclusions, and the ports of its
// other inbound listeners, which are excluded. A config without a transparent
// section has none, and that is an error. Names of users and groups are
// looked up on this machine.
func (c Config) Rules() (intercept.Rules, error) {
	c, err := c.withDefaults()
	if err != nil {
		return intercept.Rules{}, err
	}
	t := c.Transparent
	if t == nil {
		return intercept.Rules{}, errors.New("the configuration has no transparent section")
	}
	var r intercept.Rules
	if in := t.Inbound; in != nil {
		r.Inbound = &intercept.Inbound{To: in.Port, Only: in.Only, From: blocks(in.Exclude.Sources)}
		r.Inbound.Ports = append(r.Inbound.Ports, in.Exclude.Ports...)
		for _, l := range c.Inbound {
			if port, err := portOf("listen", l.Listen); err == nil && port != 0 {
				r.Inbound.Ports = append(r.Inbound.Ports, port)
			}
		}
	}
	if out := t.Outbound; out != nil {
		owner, err := t.owner()
		if err != nil {
			return intercept.Rules{}, err
		}
		r.Outbound = &intercept.Outbound{To: out.Port, Owner: owner, Ports: out.Exclude.Ports,
			Dest: blocks(out.Exclude.Destinations), UIDs: out.Exclude.UIDs}
	}
	return r, nil
}

func blocks(all []Network) []netip.Prefix {
	out := make([]netip.Prefix, len(all))
	for i, n := range all {
		out[i] = n.Prefix
	}
	return out
}

// owner looks up the user and the group.
func (t *Transparent) owner() (intercept.Owner, error) { return LookupOwner(t.User, t.Group) }

// LookupOwner finds the numbers of a user and a group, each a name, a number
// or empty.
func LookupOwner(userName, groupName string) (intercept.Owner, error) {
	var o intercept.Owner
	var err error
	if userName != "" {
		o.UID, err = lookup(userName, func() (string, error) {
			u, err := user.Lookup(userName)
			if err != nil {
				return "", err
			}
			return u.Uid, nil
		})
	}
	if groupName != "" && err == nil {
		o.GID, err = lookup(groupName, func() (string, error) {
			g, err := user.LookupGroup(groupName)
			if err != nil {
				return "", err
			}
			return g.Gid, nil
		})
	}
	return o, err
}

func lookup(name string, find func() (string, error)) (*uint32, error) {
	n, err := strconv.ParseUint(name, 10, 32)
	if err != nil {
		text, err := find()
		if err != nil {
			return nil, fmt.Errorf("look up %q: %w", name, err)
		}
		if n, err = strconv.ParseUint(text, 10, 32); err != nil {
			return nil, fmt.Errorf("look up %q: %w", name, err)
		}
	}
	id := uint32(n)
	return &id, nil
}

// checkOwner refuses to run as a user and group whose connections the rules
// would redirect.
func (t *Transparent) checkOwner() error {
	if t == nil || t.Outbound == nil {
		return nil
	}
	o, err := t.owner()
	if err != nil {
		return err
	}
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	if o.UID != nil && *o.UID == uid || o.GID != nil && *o.GID == gid {
		return nil
	}
	return fmt.Errorf("this process runs as uid %d, gid %d, and not as user %q or group %q: its own connections would be redirected to it", uid, gid, t.User, t.Group)
}

// redirectedPort is where redirected connections arrive.
type redirectedPort struct {
	address   string
	direction string
	optional  bool // missing where the machine has no such family
}

// listeners returns where a transparent proxy listens: for inbound on every
// address, since the kernel redirects to that of the interface, for outbound
// on loopback.
func (t *Transparent) listeners() []redirectedPort {
	var out []redirectedPort
	if t == nil {
		return nil
	}
	if t.Inbound != nil {
		out = append(out, redirectedPort{":" + strconv.Itoa(int(t.Inbound.Port)), audit.DirectionInbound, false})
	}
	if t.Outbound != nil {
		port := strconv.Itoa(int(t.Outbound.Port))
		out = append(out, redirectedPort{net.JoinHostPort("127.0.0.1", port), audit.DirectionOutbound, false},
			redirectedPort{net.JoinHostPort("::1", port), audit.DirectionOutbound, true})
	}
	return out
}

// lacksFamily reports that the machine, or its namespace, has no IPv6.
func lacksFamily(err error) bool {
	return errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)
}

func (d Destination) check() error {
	if d.ID.IsZero() {
		return errors.New("id: the destination's SPIFFE ID is missing")
	}
	if d.ID.Role() != identity.RoleWorkload {
		return fmt.Errorf("id: %s is not a workload's", d.ID)
	}
	if !d.Address.prefix.IsValid() {
		return errors.New("address: is missing")
	}
	if d.Dial == "" {
		return nil
	}
	if port, err := portOf("dial", d.Dial); err != nil {
		return err
	} else if port == 0 {
		return fmt.Errorf("dial: %q has no port to dial", d.Dial)
	}
	return nil
}
