// This file brings a request into the form that the index compares.

package policy

import (
	"net/netip"
	"strings"
)

// facts is a request in the form that is compared. It refers to the request.
type facts struct {
	domain      string // of the peer; "" in plaintext
	path        string // of the peer, with its leading '/'
	account     account
	hasAccount  bool // the peer is of the own domain and names an account
	foreign     bool // the peer is authenticated and of another domain
	source      netip.Addr
	remote      netip.Addr
	destination netip.Addr
	port        uint16
	sni         string
	http        *HTTP
	jwt         *JWT
}

// facts looks at a request. With peer false its peer is taken as unknown.
func (s *Set) facts(r *Request, peer bool) facts {
	f := facts{
		source:      plainAddr(r.Source),
		remote:      plainAddr(r.Remote),
		destination: plainAddr(r.Destination),
		port:        r.Port,
		sni:         strings.TrimSuffix(r.SNI, "."),
		http:        r.HTTP,
		jwt:         r.JWT,
	}
	if !f.remote.IsValid() {
		f.remote = f.source
	}
	if !peer || r.Peer.IsZero() {
		return f
	}
	f.domain, f.path = r.Peer.TrustDomain().String(), r.Peer.Path()
	f.foreign = r.Peer.TrustDomain() != s.domain
	if !f.foreign {
		f.account.namespace, f.account.name, f.hasAccount = r.Peer.ServiceAccount()
	}
	return f
}

// plainAddr makes IPv4 of IPv4 in IPv6, and drops the zone, which would keep
// an address out of every block.
func plainAddr(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// address returns the address that a names.
func (f *facts) address(a attribute) netip.Addr {
	switch a {
	case attrSourceIP:
		return f.source
	case attrRemoteIP:
		return f.remote
	case attrDestinationIP:
		return f.destination
	}
	return netip.Addr{}
}

// claim walks to a claim whose steps are joined with claimSep.
func (t *JWT) claim(steps string) any {
	claims := t.Claims
	for {
		step, rest, more := strings.Cut(steps, claimSep)
		value, ok := claims[step]
		if !ok || !more {
			return value
		}
		if claims, ok = value.(map[string]any); !ok {
			return nil
		}
		steps = rest
	}
}
