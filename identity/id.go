// This file holds TrustDomain and ID: the SPIFFE ID grammar of SPIFFE-ID.md
// sections 2.1 to 2.3.

package identity

import (
	"fmt"
	"net/url"
	"strings"
)

// MaxIDBytes is the longest SPIFFE ID that is accepted (SPIFFE-ID.md §2.3).
const MaxIDBytes = 2048

// maxTrustDomainBytes bounds the trust domain, which must fit a host name.
const maxTrustDomainBytes = 255

const scheme = "spiffe://"

// ReservedPath is the first path segment of Aval's own roles. No registration
// yields an ID below it.
const ReservedPath = "/aval"

// Role says which part of the system an ID belongs to.
type Role uint8

// The roles an ID can have.
const (
	RoleWorkload Role = iota + 1
	RoleNode          // /aval/node/NAME
	RoleServer        // /aval/server/NAME
	RoleAdmin         // /aval/admin/NAME
	RoleReserved      // anything else under /aval
)

// String returns the role's name as records show it.
func (r Role) String() string {
	switch r {
	case RoleWorkload:
		return "workload"
	case RoleNode:
		return "node"
	case RoleServer:
		return "server"
	case RoleAdmin:
		return "admin"
	case RoleReserved:
		return "reserved"
	}
	return "none"
}

// TrustDomain is a trust domain's name, such as example.org. The zero value
// is invalid. Values compare with ==.
type TrustDomain struct{ name string }

// ParseTrustDomain parses a name without scheme (SPIFFE-ID.md §2.1): lower
// case letters, digits, dots, dashes and underscores; never folded.
func ParseTrustDomain(s string) (TrustDomain, error) {
	if s == "" {
		return TrustDomain{}, fmt.Errorf("trust domain is empty")
	}
	if len(s) > maxTrustDomainBytes {
		return TrustDomain{}, fmt.Errorf("trust domain is %d bytes, more than %d", len(s), maxTrustDomainBytes)
	}
	for i := range len(s) {
		if !isTrustDomainChar(s[i]) {
			return TrustDomain{}, fmt.Errorf("trust domain %q has %q: only a-z, 0-9, '.', '-' and '_' are allowed", s, s[i])
		}
	}
	return TrustDomain{s}, nil
}

// String returns the name without scheme, or "" for the zero value.
func (d TrustDomain) String() string { return d.name }

// IsZero reports whether d is the invalid zero value.
func (d TrustDomain) IsZero() bool { return d.name == "" }

// ID returns the trust domain's own SPIFFE ID, which has no path and belongs
// to its signing authorities (X509-SVID §4.2).
func (d TrustDomain) ID() ID { return ID{td: d} }

// NewID returns the ID with this path in d. The path starts with '/'.
func (d TrustDomain) NewID(path string) (ID, error) {
	if d.IsZero() {
		return ID{}, fmt.Errorf("SPIFFE ID with path %q: trust domain is empty", path)
	}
	if err := CheckPath(path); err != nil {
		return ID{}, err
	}
	if n := len(scheme) + len(d.name) + len(path); n > MaxIDBytes {
		return ID{}, fmt.Errorf("SPIFFE ID is %d bytes, more than %d", n, MaxIDBytes)
	}
	return ID{td: d, path: path}, nil
}

// ID is a SPIFFE ID. The zero value is invalid and stands for "no identity".
// Values compare with == and serve as map keys.
type ID struct {
	td   TrustDomain
	path string
}

// ParseID parses a SPIFFE ID such as spiffe://example.org/web.
func ParseID(s string) (ID, error) {
	if len(s) > MaxIDBytes {
		return ID{}, fmt.Errorf("SPIFFE ID is %d bytes, more than %d", len(s), MaxIDBytes)
	}
	rest, ok := strings.CutPrefix(s, scheme)
	if !ok {
		return ID{}, fmt.Errorf("SPIFFE ID %q does not start with %s", s, scheme)
	}
	name, path := rest, ""
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		name, path = rest[:i], rest[i:]
	}
	d, err := ParseTrustDomain(name)
	if err != nil {
		return ID{}, fmt.Errorf("SPIFFE ID %q: %w", s, err)
	}
	if path == "" {
		return d.ID(), nil
	}
	id, err := d.NewID(path)
	if err != nil {
		return ID{}, fmt.Errorf("SPIFFE ID %q: %w", s, err)
	}
	return id, nil
}

// IDFromURI parses a URI SAN. It looks at the URI as it prints, so a userinfo,
// port, query, fragment or percent-encoding is refused rather than dropped.
func IDFromURI(u *url.URL) (ID, error) {
	if u == nil {
		return ID{}, fmt.Errorf("SPIFFE ID: URI is missing")
	}
	return ParseID(u.String())
}

// CheckPath checks the path of a SPIFFE ID (SPIFFE-ID.md §2.2): segments of
// letters, digits, '.', '-' and '_', none empty, "." or "..".
func CheckPath(path string) error {
	if path == "" || path[0] != '/' {
		return fmt.Errorf("path %q does not start with '/'", path)
	}
	for seg := range strings.SplitSeq(path[1:], "/") {
		switch seg {
		case "":
			return fmt.Errorf("path %q has an empty segment or ends in '/'", path)
		case ".", "..":
			return fmt.Errorf("path %q has a %q segment", path, seg)
		}
		for i := range len(seg) {
			if !isPathChar(seg[i]) {
				return fmt.Errorf("path %q has %q: only letters, digits, '.', '-' and '_' are allowed", path, seg[i])
			}
		}
	}
	return nil
}

// TrustDomain returns the ID's trust domain.
func (id ID) TrustDomain() TrustDomain { return id.td }

// Path returns the path with its leading '/', or "" for a trust domain's ID.
func (id ID) Path() string { return id.path }

// IsZero reports whether id is the invalid zero value.
func (id ID) IsZero() bool { return id.td.IsZero() }

// String returns the URI, or "" for the zero value.
func (id ID) String() string {
	if id.IsZero() {
		return ""
	}
	return scheme + id.td.name + id.path
}

// URI returns the ID as a URL for a certificate's URI SAN.
func (id ID) URI() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: id.td.name, Path: id.path}
}

// MarshalText prints the ID.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText parses an ID; an empty text gives the zero value.
func (id *ID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*id = ID{}
		return nil
	}
	v, err := ParseID(string(b))
	if err != nil {
		return err
	}
	*id = v
	return nil
}

// Role returns the role that the path gives the ID. Paths outside
// ReservedPath are workloads; the trust domain's own ID has no role (zero).
func (id ID) Role() Role {
	if id.path == "" {
		return 0
	}
	rest, ok := strings.CutPrefix(id.path, ReservedPath)
	if !ok || (rest != "" && rest[0] != '/') {
		return RoleWorkload
	}
	for prefix, role := range map[string]Role{"/node/": RoleNode, "/server/": RoleServer, "/admin/": RoleAdmin} {
		if name, ok := strings.CutPrefix(rest, prefix); ok && name != "" && !strings.Contains(name, "/") {
			return role
		}
	}
	return RoleReserved
}

// ServiceAccount returns the namespace and service account of an ID whose
// path has exactly one run of segments ns/N/sa/S, read left to right. With
// none or several there is neither, so that a templated segment cannot forge
// one. It allocates nothing.
func (id ID) ServiceAccount() (namespace, account string, ok bool) {
	runs := 0
	for rest := strings.TrimPrefix(id.path, "/"); rest != ""; {
		first, afterFirst, _ := strings.Cut(rest, "/")
		if first == "ns" {
			ns, afterNamespace, _ := strings.Cut(afterFirst, "/")
			word, afterWord, _ := strings.Cut(afterNamespace, "/")
			name, afterName, _ := strings.Cut(afterWord, "/")
			if word == "sa" && name != "" {
				namespace, account, rest = ns, name, afterName
				runs++
				continue
			}
		}
		rest = afterFirst
	}
	if runs != 1 {
		return "", "", false
	}
	return namespace, account, true
}

// NodeID returns the ID of the node with this name.
func NodeID(d TrustDomain, name string) (ID, error) { return roleID(d, "/aval/node/", name) }

// ServerID returns the ID of the server with this name.
func ServerID(d TrustDomain, name string) (ID, error) { return roleID(d, "/aval/server/", name) }

func roleID(d TrustDomain, prefix, name string) (ID, error) {
	if strings.Contains(name, "/") {
		return ID{}, fmt.Errorf("name %q has a '/'", name)
	}
	return d.NewID(prefix + name)
}

func isTrustDomainChar(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_'
}

func isPathChar(c byte) bool { return isTrustDomainChar(c) || c >= 'A' && c <= 'Z' }
