// This file holds the canonical forms of a request's path and host: the only
// forms that are matched, and that a proxy forwards, so that policy and
// application cannot read one request differently.

package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// CanonicalPath returns the path of a request target in origin-form (RFC 9112
// §3.2.1), without its query: percent-encodings of unreserved characters
// decoded and all others in upper case (RFC 3986 §6.2.2), other bytes that
// may not stand in a path encoded, runs of '/' merged, and "." and ".."
// segments resolved (RFC 3986 §5.2.4). Parameters after ';' are kept. The
// asterisk-form "*" is returned as it is.
//
// What two readers may take differently is an error, and such a request must
// be refused: an encoded '/', '\' or control byte, a raw control byte, space
// or '\', a broken encoding, a fragment, a segment that is "." or ".." in
// front of parameters, and a target that starts with anything but '/'.
func CanonicalPath(target string) (string, error) {
	path, _, _ := strings.Cut(target, "?")
	if path == "*" {
		return path, nil
	}
	if path == "" || path[0] != '/' {
		return "", errors.New("path does not start with '/'")
	}
	if isCanonicalPath(path) {
		return path, nil
	}
	encoded, err := canonicalEncoding(path)
	if err != nil {
		return "", err
	}
	return resolveSegments(encoded)
}

// isCanonicalPath reports whether nothing is to be done, without allocating.
func isCanonicalPath(path string) bool {
	for i := range len(path) {
		switch c := path[i]; {
		case c == '/':
			if i+1 < len(path) && (path[i+1] == '/' || path[i+1] == '.') {
				return false
			}
		case !isPathByte(c):
			return false
		}
	}
	return true
}

// isPathByte reports whether c may stand in a path unencoded: pchar of RFC
// 3986 §3.3 and '/'.
func isPathByte(c byte) bool {
	return isUnreserved(c) || strings.IndexByte("/!$&'()*+,;=:@", c) >= 0
}

func isUnreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

// canonicalEncoding gives every byte of a path, or of a part of one, its only
// spelling.
func canonicalEncoding(path string) (string, error) {
	const digits = "0123456789ABCDEF"
	b := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		c, encoded := path[i], false
		if c == '%' {
			if i+2 >= len(path) {
				return "", errors.New("path ends inside a percent-encoding")
			}
			high, low := unhex(path[i+1]), unhex(path[i+2])
			if high < 0 || low < 0 {
				return "", fmt.Errorf("path has %q, which is no percent-encoding", path[i:i+3])
			}
			c, encoded = byte(high<<4|low), true
			i += 2
		}
		switch {
		case c < ' ' || c == 0x7f || c == '\\' || !encoded && (c == ' ' || c == '#') || encoded && c == '/':
			if encoded {
				return "", fmt.Errorf("path has %%%02X", c)
			}
			return "", fmt.Errorf("path has %q", c)
		case isUnreserved(c) || !encoded && isPathByte(c):
			b = append(b, c)
		default:
			b = append(b, '%', digits[c>>4], digits[c&15])
		}
	}
	return string(b), nil
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// resolveSegments merges slashes and removes dot segments.
func resolveSegments(path string) (string, error) {
	var kept []string
	directory := false // the path ends in '/'
	for segment := range strings.SplitSeq(path[1:], "/") {
		name, _, hasParameters := strings.Cut(segment, ";")
		directory = false
		switch {
		case segment == "" || segment == ".":
			directory = true
		case segment == "..":
			directory = true
			kept = kept[:max(0, len(kept)-1)]
		case hasParameters && (name == "." || name == ".."):
			return "", fmt.Errorf("path has a segment %q", segment)
		default:
			kept = append(kept, segment)
		}
	}
	if len(kept) == 0 {
		return "/", nil
	}
	out := "/" + strings.Join(kept, "/")
	if directory {
		out += "/"
	}
	return out, nil
}

// CanonicalHost returns the host of a Host header or :authority without its
// port: names in lower case and without a trailing dot, addresses as
// net/netip prints them, those of IPv6 in brackets. A host with userinfo or
// with bytes that no name has is an error.
func CanonicalHost(host string) (string, error) {
	name := host
	if strings.HasPrefix(host, "[") {
		end := strings.IndexByte(host, ']')
		if end < 0 {
			return "", errors.New("host has no ']'")
		}
		if err := checkHostPort(host[end+1:]); err != nil {
			return "", err
		}
		addr, err := netip.ParseAddr(host[1:end])
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", errors.New("host in brackets is no IPv6 address")
		}
		return "[" + addr.String() + "]", nil
	}
	if i := strings.IndexByte(host, ':'); i >= 0 {
		if err := checkHostPort(host[i:]); err != nil {
			return "", err
		}
		name = host[:i]
	}
	name = strings.TrimSuffix(name, ".")
	if name == "" {
		return "", errors.New("host is empty")
	}
	if name[0] == '.' || strings.HasSuffix(name, ".") || strings.Contains(name, "..") {
		return "", errors.New("host has an empty label")
	}
	if err := checkServerName(name); err != nil {
		return "", fmt.Errorf("host %w", err)
	}
	return strings.ToLower(name), nil
}

// checkHostPort checks what may follow a host: nothing, or ':' and a port,
// which may be empty (RFC 3986 §3.2.3).
func checkHostPort(s string) error {
	if s == "" || s == ":" {
		return nil
	}
	if _, err := parsePort(strings.TrimPrefix(s, ":")); err != nil || s[0] != ':' {
		return errors.New("host has a port that is none")
	}
	return nil
}
