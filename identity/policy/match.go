// This file holds the matcher: one term compares one attribute of a
// connection with a list of values. Sources, operations and conditions are
// all made of terms.

package policy

import (
	"net/netip"
	"strings"

	"github.com/aval-id/aval/identity"
)

// attribute is what a term looks at.
type attribute uint8

const (
	attrPrincipal attribute = iota + 1
	attrNamespace
	attrServiceAccount
	attrTrustDomain
	attrSourceIP
	attrDestinationIP
	attrDestinationPort
	attrSNI
)

// identifies reports whether the attribute is part of the peer's identity, so
// that a plaintext peer has none of it.
func (a attribute) identifies() bool {
	switch a {
	case attrPrincipal, attrNamespace, attrServiceAccount, attrTrustDomain:
		return true
	}
	return false
}

// facts is a connection in the form that terms compare.
type facts struct {
	peer        identity.ID
	domain      string // of the peer; "" in plaintext
	path        string // of the peer, with its leading '/'
	account     account
	hasAccount  bool // the peer is of the own domain and names an account
	foreign     bool // the peer is authenticated and of another domain
	source      netip.Addr
	destination netip.Addr
	port        uint16
	sni         string
}

// account is a namespace and a service account in it.
type account struct{ namespace, name string }

// term holds if the attribute matches one of the values, or, with not, if it
// matches none.
type term struct {
	attribute attribute
	not       bool
	ids       map[identity.ID]struct{} // of attrPrincipal, the exact ones
	text      patterns                 // of the attributes that are text
	accounts  map[account]struct{}     // of attrServiceAccount
	blocks    []netip.Prefix           // of addresses
	ports     map[uint16]struct{}      // of attrDestinationPort
}

// holds reports whether t is true of f. Where t cannot be known, because the
// attribute is unknown to this evaluator or the address is missing, the
// answer is unknown, which callers set to what fails closed.
func (t *term) holds(f *facts, unknown bool) bool {
	var match bool
	switch t.attribute {
	case attrPrincipal:
		match = t.matchesPrincipal(f)
	case attrNamespace:
		match = f.hasAccount && t.text.match(f.account.namespace)
	case attrServiceAccount:
		if f.hasAccount {
			_, match = t.accounts[f.account]
		}
	case attrTrustDomain:
		match = t.text.match(f.domain)
	case attrSourceIP, attrDestinationIP:
		addr := f.source
		if t.attribute == attrDestinationIP {
			addr = f.destination
		}
		if !addr.IsValid() {
			return unknown
		}
		match = contains(t.blocks, addr)
	case attrDestinationPort:
		_, match = t.ports[f.port]
	case attrSNI:
		match = t.text.matchFold(f.sni)
	default:
		return unknown
	}
	return match != t.not
}

// matchesPrincipal matches the SPIFFE ID without its scheme.
func (t *term) matchesPrincipal(f *facts) bool {
	if f.peer.IsZero() {
		return false
	}
	if _, ok := t.ids[f.peer]; ok || t.text.any {
		return true
	}
	for _, p := range t.text.prefixes {
		if hasPrefix(f.domain, f.path, p) {
			return true
		}
	}
	for _, s := range t.text.suffixes {
		if hasSuffix(f.domain, f.path, s) {
			return true
		}
	}
	return false
}

// writesOut reports whether t is a positive source value that matches the
// peer and has its trust domain written out: a principal whose first segment
// is the domain, or the domain itself.
func (t *term) writesOut(f *facts) bool {
	if t.not {
		return false
	}
	switch t.attribute {
	case attrTrustDomain:
		_, ok := t.text.exact[f.domain]
		return ok
	case attrPrincipal:
		if _, ok := t.ids[f.peer]; ok {
			return true
		}
		for _, p := range t.text.prefixes {
			if strings.IndexByte(p, '/') == len(f.domain) && hasPrefix(f.domain, f.path, p) {
				return true
			}
		}
	}
	return false
}

// hasPrefix reports whether a+b starts with p, without joining them.
func hasPrefix(a, b, p string) bool {
	if len(p) <= len(a) {
		return strings.HasPrefix(a, p)
	}
	return strings.HasPrefix(p, a) && strings.HasPrefix(b, p[len(a):])
}

// hasSuffix reports whether a+b ends with s, without joining them.
func hasSuffix(a, b, s string) bool {
	if len(s) <= len(b) {
		return strings.HasSuffix(b, s)
	}
	return strings.HasSuffix(s, b) && strings.HasSuffix(a, s[:len(s)-len(b)])
}

func contains(blocks []netip.Prefix, addr netip.Addr) bool {
	for _, b := range blocks {
		if b.Contains(addr) {
			return true
		}
	}
	return false
}

// patterns is a list of texts: exact, abc* (prefix), *abc (suffix) and *
// (anything that is not empty).
type patterns struct {
	any      bool
	exact    map[string]struct{}
	prefixes []string
	suffixes []string
}

func (p *patterns) add(value string) {
	switch {
	case value == "*":
		p.any = true
	case strings.HasSuffix(value, "*"):
		p.prefixes = append(p.prefixes, strings.TrimSuffix(value, "*"))
	case strings.HasPrefix(value, "*"):
		p.suffixes = append(p.suffixes, strings.TrimPrefix(value, "*"))
	default:
		if p.exact == nil {
			p.exact = map[string]struct{}{}
		}
		p.exact[value] = struct{}{}
	}
}

func (p *patterns) match(s string) bool {
	if s == "" {
		return false
	}
	if _, ok := p.exact[s]; ok || p.any {
		return true
	}
	for _, prefix := range p.prefixes {
		if strings.HasPrefix(s, prefix) {
			return true
		}
	}
	for _, suffix := range p.suffixes {
		if strings.HasSuffix(s, suffix) {
			return true
		}
	}
	return false
}

// matchFold matches without regard to the case of letters, as DNS names are
// compared (RFC 4343).
func (p *patterns) matchFold(s string) bool {
	if s == "" {
		return false
	}
	if p.any {
		return true
	}
	for exact := range p.exact {
		if equalFold(s, exact) {
			return true
		}
	}
	for _, prefix := range p.prefixes {
		if len(s) >= len(prefix) && equalFold(s[:len(prefix)], prefix) {
			return true
		}
	}
	for _, suffix := range p.suffixes {
		if len(s) >= len(suffix) && equalFold(s[len(s)-len(suffix):], suffix) {
			return true
		}
	}
	return false
}

// equalFold compares with only the letters of ASCII folded.
func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}
