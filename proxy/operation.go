// This file holds the settings by which a proxy is operated: the PROXY
// protocol, what happens to open connections, and sockets passed on by
// others.

package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/aval-id/aval/proxy/proxyprotocol"
)

// ProxyProtocol says what an inbound listener makes of PROXY protocol headers.
type ProxyProtocol string

// What an inbound listener makes of PROXY protocol headers.
const (
	// ProxyProtocolOff knows no headers: one is the application's business.
	ProxyProtocolOff ProxyProtocol = "off"
	// ProxyProtocolAccept believes a header of a trusted source and also
	// takes connections without one. A header of any other source is refused.
	ProxyProtocolAccept ProxyProtocol = "accept"
	// ProxyProtocolRequire takes connections of trusted sources with a header
	// and no others.
	ProxyProtocolRequire ProxyProtocol = "require"
)

// ProxyProtocolVersion is the version of the headers that are sent.
type ProxyProtocolVersion string

// The versions of the PROXY protocol; empty sends no header.
const (
	ProxyProtocolV1 ProxyProtocolVersion = "v1"
	ProxyProtocolV2 ProxyProtocolVersion = "v2"
)

func (v ProxyProtocolVersion) check() error {
	switch v {
	case "", ProxyProtocolV1, ProxyProtocolV2:
		return nil
	}
	return fmt.Errorf("sendProxyProtocol: %q is neither %s nor %s", v, ProxyProtocolV1, ProxyProtocolV2)
}

// header returns the bytes to send, none for the empty version.
func (v ProxyProtocolVersion) header(source, destination netip.AddrPort) []byte {
	h := proxyprotocol.Header{Version: 1, Source: source, Destination: destination}
	switch v {
	case ProxyProtocolV1:
	case ProxyProtocolV2:
		h.Version = 2
	default:
		return nil
	}
	return h.Append(nil)
}

// Action is what happens to open connections when their reason has ended.
type Action string

// What happens to open connections.
const (
	// Keep lets them go on.
	Keep Action = "keep"
	// Drain closes each as soon as it is quiet for a second, and at the
	// latest after Limits.Drain.
	Drain Action = "drain"
	// Cut closes them at once.
	Cut Action = "cut"
)

func (a Action) withDefault(field string) (Action, error) {
	switch a {
	case "":
		return Keep, nil
	case Keep, Drain, Cut:
		return a, nil
	}
	return "", fmt.Errorf("%s: %q is none of %s, %s, %s", field, a, Keep, Drain, Cut)
}

// orCut is withDefault for what is cut unless set otherwise, and has no reason
// to wait for quiet.
func (a Action) orCut(field string) (Action, error) {
	switch a {
	case "":
		return Cut, nil
	case Keep, Cut:
		return a, nil
	}
	return "", fmt.Errorf("%s: %q is neither %s nor %s", field, a, Cut, Keep)
}

// Socket is a listener that is open already, such as one that systemd passed
// on. It serves the Inbound or Outbound of the same name, or else the one
// whose listen address it has.
type Socket struct {
	Name     string
	Listener *net.TCPListener
}

// withOperation checks the settings of this file.
func (c Config) withOperation() (Config, error) {
	var err error
	if c.OnPeerExpiry, err = c.OnPeerExpiry.withDefault("onPeerExpiry"); err != nil {
		return Config{}, err
	}
	if c.OnIdentityLost, err = c.OnIdentityLost.withDefault("onIdentityLost"); err != nil {
		return Config{}, err
	}
	if c.OnPolicyChange, err = c.OnPolicyChange.orCut("onPolicyChange"); err != nil {
		return Config{}, err
	}
	if c.OnRevocation, err = c.OnRevocation.orCut("onRevocation"); err != nil {
		return Config{}, err
	}
	if c.Admin != "" {
		if c.Admin, err = socketPath("admin", c.Admin); err != nil {
			return Config{}, err
		}
	}
	named := map[string]bool{}
	for _, name := range c.names() {
		if name != "" && named[name] {
			return Config{}, fmt.Errorf("name: two listeners are called %q", name)
		}
		named[name] = true
	}
	return c, nil
}

// names returns the listeners' names, inbound before outbound.
func (c Config) names() []string {
	var names []string
	for _, l := range c.Inbound {
		names = append(names, l.Name)
	}
	for _, l := range c.Outbound {
		names = append(names, l.Name)
	}
	return names
}

func (l Inbound) withProxyProtocol() (Inbound, error) {
	switch l.ProxyProtocol {
	case "":
		l.ProxyProtocol = ProxyProtocolOff
	case ProxyProtocolOff, ProxyProtocolAccept, ProxyProtocolRequire:
	default:
		return Inbound{}, fmt.Errorf("proxyProtocol: %q is none of %s, %s, %s", l.ProxyProtocol,
			ProxyProtocolOff, ProxyProtocolAccept, ProxyProtocolRequire)
	}
	switch on := l.ProxyProtocol != ProxyProtocolOff; {
	case on && len(l.TrustedProxies) == 0:
		return Inbound{}, fmt.Errorf("trustedProxies: proxyProtocol is %s, and no address may send a header", l.ProxyProtocol)
	case !on && len(l.TrustedProxies) > 0:
		return Inbound{}, fmt.Errorf("trustedProxies: proxyProtocol is %s, so that nobody's header is read", l.ProxyProtocol)
	}
	trusted := slices.Clone(l.TrustedProxies)
	for i, prefix := range trusted {
		if !prefix.IsValid() {
			return Inbound{}, fmt.Errorf("trustedProxies[%d]: an address with the length of its prefix is missing, such as 10.0.0.0/8", i)
		}
		if prefix.Addr().Is4In6() {
			return Inbound{}, fmt.Errorf("trustedProxies[%d]: %s: write the IPv4 prefix", i, prefix)
		}
		trusted[i] = prefix.Masked()
	}
	l.TrustedProxies = trusted
	return l, l.SendProxyProtocol.check()
}

// trusts reports whether a header from this address is believed.
func (l *Inbound) trusts(a netip.Addr) bool {
	return l != nil && l.ProxyProtocol != ProxyProtocolOff &&
		slices.ContainsFunc(l.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(a.WithZone("")) })
}
