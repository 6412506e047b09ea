// This file holds the attributes of a request that policies name, and term:
// one attribute compared with a list of values. Sources, operations and
// conditions are all made of terms.

package policy

import (
	"net/netip"
	"strings"
)

// attribute is what a term looks at.
type attribute uint8

const (
	attrPrincipal attribute = iota + 1
	attrNamespace
	attrServiceAccount
	attrTrustDomain
	attrSourceIP
	attrRemoteIP
	attrDestinationIP
	attrDestinationPort
	attrSNI
	attrHost
	attrMethod
	attrPath
	attrHeader // of the term's name
	attrRequestPrincipal
	attrAudiences
	attrPresenter
	attrClaim     // at the term's name
	lastAttribute = attrClaim
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

// ofHTTP reports whether only requests of HTTP have the attribute.
func (a attribute) ofHTTP() bool { return a >= attrHost && a <= attrClaim }

// ofRequests reports whether Settings.Requests must be set for a policy that
// names the attribute.
func (a attribute) ofRequests() bool { return a.ofHTTP() || a == attrRemoteIP }

// folded reports whether letters match without regard to case: names of hosts
// (RFC 4343).
func (a attribute) folded() bool { return a == attrSNI || a == attrHost }

// account is a namespace and a service account in it.
type account struct{ namespace, name string }

// term holds if the attribute matches one of the values, or, with not, if it
// matches none. Which of the lists is used depends on the attribute.
type term struct {
	attribute attribute
	name      string // of attrHeader, in lower case; of attrClaim, its steps joined with claimSep
	not       bool
	text      patterns
	accounts  []account
	blocks    []netip.Prefix
	ports     []uint16
}

// claimSep stands between the steps to a nested claim. No step has it.
const claimSep = "\x00"

// clause is terms that must all hold.
type clause []term

// domains returns the trust domains that a source writes out: those that are
// the first segment of a principal, and trustDomains without '*'.
func (c clause) domains() []string {
	var out []string
	for i := range c {
		t := &c[i]
		switch {
		case t.not:
		case t.attribute == attrTrustDomain:
			out = append(out, t.text.exact...)
		case t.attribute == attrPrincipal:
			for _, s := range t.text.exact {
				domain, _, _ := strings.Cut(s, "/")
				out = append(out, domain)
			}
			for _, s := range t.text.prefixes {
				if domain, _, whole := strings.Cut(s, "/"); whole {
					out = append(out, domain)
				}
			}
		}
	}
	return out
}

// patterns is a list of texts: exact, abc* (prefix), *abc (suffix), *
// (anything that is not empty), and for paths templates.
type patterns struct {
	any       bool
	exact     []string
	prefixes  []string
	suffixes  []string
	templates []template
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
		p.exact = append(p.exact, value)
	}
}

// template is a path in which {*} stands for one segment that is not empty
// and {**}, which comes last of the two, for any text.
type template struct {
	segments []string // before {**}; oneSegment stands for {*}
	rest     bool     // there is a {**}
	tail     string   // what must follow {**}, with its leading '/', or ""
}

const (
	oneSegment  = "{*}"
	anySegments = "{**}"
)

// String returns the template as it is written.
func (t template) String() string {
	s := "/" + strings.Join(t.segments, "/")
	if !t.rest {
		return s
	}
	if len(t.segments) == 0 {
		s = ""
	}
	return s + "/" + anySegments + t.tail
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

func lowered(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return r >= 'A' && r <= 'Z' }) < 0 {
		return s
	}
	b := []byte(s)
	for i := range b {
		b[i] = lower(b[i])
	}
	return string(b)
}
