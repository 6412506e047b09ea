// This file parses the values of a term: principals, namespaces, service
// accounts, trust domains, addresses, ports and server names.

package policy

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/aval-id/aval/identity"
)

var (
	errNoPort   = errors.New("is not a port")
	errEmpty    = errors.New("is empty")
	errWildcard = errors.New("has a '*' that is neither its first nor its last character")
)

const spiffeScheme = "spiffe://"

// maxSNIBytes bounds a DNS name (RFC 1035 §2.3.4).
const maxSNIBytes = 255

// allowedValues says for each attribute what a value looks like.
var allowedValues = map[attribute]string{
	attrPrincipal:        "a SPIFFE ID without spiffe://, such as example.org/ns/shop/sa/web; PREFIX*, *SUFFIX or *",
	attrNamespace:        "a namespace; PREFIX*, *SUFFIX or *",
	attrServiceAccount:   "NAMESPACE/ACCOUNT, or ACCOUNT in the policy's namespace",
	attrTrustDomain:      "a trust domain such as example.org; PREFIX*, *SUFFIX or *",
	attrSourceIP:         "an address or a CIDR block",
	attrRemoteIP:         "an address or a CIDR block",
	attrDestinationIP:    "an address or a CIDR block",
	attrDestinationPort:  "a port from 1 to 65535",
	attrSNI:              "a server name; PREFIX*, *SUFFIX or *",
	attrHost:             "a host without port; PREFIX*, *SUFFIX or *",
	attrMethod:           "a method such as GET; PREFIX*, *SUFFIX or *",
	attrPath:             "a path such as /api/items; PREFIX*, *SUFFIX, * or a template such as /api/{*}/items or /api/{**}",
	attrHeader:           "a value; PREFIX*, *SUFFIX or *",
	attrRequestPrincipal: "ISSUER/SUBJECT of a token; PREFIX*, *SUFFIX or *",
	attrAudiences:        "an audience; PREFIX*, *SUFFIX or *",
	attrPresenter:        "a presenter; PREFIX*, *SUFFIX or *",
	attrClaim:            "a value; PREFIX*, *SUFFIX or *",
}

// term parses the values of one list into t. Faults are kept at each value's
// place.
func (p *parser) term(t term, values []string, path string) term {
	if t.attribute.ofRequests() {
		if !p.settings.Requests {
			p.fault(path, "", "", unsupported)
			return t
		}
		p.needs = max(p.needs, requestsVersion)
	}
	if t.attribute.ofHTTP() {
		p.fields = append(p.fields, path)
	}
	if len(values) == 0 {
		p.fault(path, "", allowedValues[t.attribute], "has no values")
	}
	for i, value := range values {
		at := fmt.Sprintf("%s[%d]", path, i)
		if err := p.value(&t, value, at); err != nil {
			p.fault(at, value, allowedValues[t.attribute], "%w", err)
		}
	}
	return t
}

func (p *parser) value(t *term, value, path string) error {
	if value == "" {
		return errEmpty
	}
	switch t.attribute {
	case attrPrincipal:
		return p.principal(t, value, path)
	case attrNamespace:
		return addPattern(&t.text, value, checkSegment)
	case attrServiceAccount:
		return addAccount(t, value, p.doc.Key().Namespace)
	case attrTrustDomain:
		return addPattern(&t.text, value, func(s string) error {
			_, err := identity.ParseTrustDomain(s)
			return err
		})
	case attrSourceIP, attrRemoteIP, attrDestinationIP:
		block, err := parseBlock(value)
		t.blocks = append(t.blocks, block)
		return err
	case attrDestinationPort:
		port, err := parsePort(value)
		t.ports = append(t.ports, port)
		return err
	case attrSNI:
		return addPattern(&t.text, lowered(strings.TrimSuffix(value, ".")), checkServerName)
	case attrHost:
		return p.host(t, value, path)
	case attrMethod:
		return p.method(t, value, path)
	case attrPath:
		return p.path(t, value, path)
	case attrHeader, attrRequestPrincipal, attrAudiences, attrPresenter, attrClaim:
		return addPattern(&t.text, value, checkText)
	}
	return fmt.Errorf("attribute %d is unknown", t.attribute)
}

// principal adds a SPIFFE ID or a pattern of one. Patterns that no SPIFFE ID
// can match are refused.
func (p *parser) principal(t *term, value, path string) error {
	value = strings.TrimPrefix(value, spiffeScheme)
	prefix, isPrefix := strings.CutSuffix(value, "*")
	suffix, isSuffix := strings.CutPrefix(value, "*")
	var err error
	switch {
	case value == "":
		return errEmpty
	case value == "*":
	case isPrefix:
		if strings.Contains(prefix, "*") {
			return errWildcard
		}
		// Any character completes a prefix to an ID.
		_, err = identity.ParseID(spiffeScheme + prefix + "x")
		if !strings.HasSuffix(prefix, "/") {
			p.warnSegment(path, value, prefix)
		}
	case isSuffix:
		if strings.Contains(suffix, "*") {
			return errWildcard
		}
		_, err = identity.ParseID(spiffeScheme + "x/x" + suffix)
	case strings.Contains(value, "*"):
		return errWildcard
	default:
		_, err = identity.ParseID(spiffeScheme + value)
	}
	t.text.add(value)
	return err
}

func (p *parser) warnSegment(path, value, prefix string) {
	p.warn(path, "the prefix %q ends inside a segment: it also takes in every longer name, such as %q; end it with \"/*\" to mean only what is below", value, prefix+"b")
}

// addPattern adds an exact text or a pattern; check looks at the part without
// its '*'.
func addPattern(p *patterns, value string, check func(string) error) error {
	part := value
	if rest, ok := strings.CutSuffix(value, "*"); ok {
		part = rest
	} else if rest, ok := strings.CutPrefix(value, "*"); ok {
		part = rest
	}
	if strings.Contains(part, "*") {
		return errWildcard
	}
	if part == "" && value != "*" {
		return errEmpty
	}
	if value != "*" {
		if err := check(part); err != nil {
			return err
		}
	}
	p.add(value)
	return nil
}

// checkSegment checks a part of one path segment of a SPIFFE ID.
func checkSegment(s string) error {
	if strings.Contains(s, "/") {
		return errors.New("has a '/'")
	}
	// A neighbour keeps a part such as "." from being taken for a whole
	// segment.
	return identity.CheckPath("/x" + s)
}

func addAccount(t *term, value, namespace string) error {
	name := value
	if ns, rest, ok := strings.Cut(value, "/"); ok {
		namespace, name = ns, rest
	}
	for _, part := range []string{namespace, name} {
		if strings.Contains(part, "*") {
			return errors.New("has a '*', which service accounts do not take")
		}
		if strings.Contains(part, "/") {
			return errors.New("has more than one '/'")
		}
		if err := identity.CheckPath("/" + part); err != nil {
			return err
		}
	}
	t.accounts = append(t.accounts, account{namespace, name})
	return nil
}

// parseBlock parses a CIDR block or one address. IPv4 addresses mapped into
// IPv6 become IPv4.
func parseBlock(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return netip.Prefix{}, errors.New("is not an address")
		}
		if addr.Zone() != "" {
			return netip.Prefix{}, errors.New("has a zone, which is not matched")
		}
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	block, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, errors.New("is not a CIDR block")
	}
	if block.Addr().Is4In6() {
		if block.Bits() < 96 {
			return netip.Prefix{}, errors.New("is wider than the IPv4 addresses in IPv6 (::ffff:0:0/96)")
		}
		block = netip.PrefixFrom(block.Addr().Unmap(), block.Bits()-96)
	}
	return block.Masked(), nil
}

func checkServerName(s string) error {
	if len(s) > maxSNIBytes {
		return fmt.Errorf("is %d bytes, more than %d", len(s), maxSNIBytes)
	}
	for i := range len(s) {
		c := lower(s[i])
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return fmt.Errorf("has %q: only letters, digits, '-', '_' and '.' are allowed", s[i])
		}
	}
	return nil
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
