// This file brings a request into the form that the index compares.

package policy

import (
	"net/netip"
	"strings"
)

// facts is a request in the form that is compared. It refers to the request.
type facts struct {
	request *Request
	http    *HTTP
	jwt     *JWT
	domain  string // of the peer; "" in plaintext
	path    string // of the peer, with its leading '/'
	foreign bool   // the peer is authenticated and of another domain

	asked      bool // for the account
	account    account
	hasAccount bool // the peer is of the own domain and names an account
}

// facts looks at a request. With peer false its peer is taken as unknown.
func (s *Set) facts(r *Request, peer bool) facts {
	f := facts{request: r, http: r.HTTP, jwt: r.JWT}
	if peer && !r.Peer.IsZero() {
		f.domain, f.path = r.Peer.TrustDomain().String(), r.Peer.Path()
		f.foreign = r.Peer.TrustDomain() != s.domain
	}
	return f
}

// serviceAccount returns the namespace and service account of a peer of the
// own trust domain.
func (f *facts) serviceAccount() (account, bool) {
	if !f.asked {
		f.asked = true
		if f.domain != "" && !f.foreign {
			f.account.namespace, f.account.name, f.hasAccount = f.request.Peer.ServiceAccount()
		}
	}
	return f.account, f.hasAccount
}

// sni returns the server name as it is compared.
func (f *facts) sni() string { return strings.TrimSuffix(f.request.SNI, ".") }

// address returns the address that a names: IPv4 for IPv4 in IPv6, and
// without a zone, which would keep it out of every block.
func (f *facts) address(a attribute) netip.Addr {
	var addr netip.Addr
	switch a {
	case attrSourceIP:
		addr = f.request.Source
	case attrRemoteIP:
		if addr = f.request.Remote; !addr.IsValid() {
			addr = f.request.Source
		}
	case attrDestinationIP:
		addr = f.request.Destination
	}
	if addr.Is4() {
		return addr
	}
	return addr.Unmap().WithZone("")
}

// header returns the value of a header. Those that HTTP/2 writes as
// pseudo-headers (RFC 9113 §8.3.1) are known from elsewhere.
func (h *HTTP) header(name string) string {
	switch name {
	case "host", ":authority":
		return h.Host
	case ":method":
		return h.Method
	}
	if h.Header == nil {
		return ""
	}
	value, _ := h.Header(name)
	return value
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
