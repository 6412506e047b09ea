// This file holds the list of hosts that keys may be fetched from, and which
// addresses they may have.

package jwks

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// host is one listed host.
type host struct {
	name  string // in lower case; an address in its shortest form
	port  string
	nets  []netip.Prefix // further addresses that it may have
	entry string         // as it was written
}

// defaultPort is that of https.
const defaultPort = "443"

// parseAllow reads entries HOST[:PORT][=CIDR[+CIDR…]] between commas or
// blanks.
func parseAllow(list string) ([]host, error) {
	var hosts []host
	for entry := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' }) {
		h, err := parseHost(entry)
		if err != nil {
			return nil, fmt.Errorf("allowed host %q: %w", entry, err)
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}

func parseHost(entry string) (host, error) {
	where, nets, has := strings.Cut(entry, "=")
	h := host{entry: entry}
	if strings.ContainsAny(where, "/@?#*") {
		return host{}, fmt.Errorf("is not HOST or HOST:PORT, such as issuer.example.org")
	}
	u, err := url.Parse("https://" + where)
	if err != nil || u.Hostname() == "" {
		return host{}, fmt.Errorf("is not HOST or HOST:PORT, such as issuer.example.org")
	}
	h.name, h.port = target(u)
	if n, err := strconv.ParseUint(h.port, 10, 16); err != nil || n == 0 {
		return host{}, fmt.Errorf("port %q is not from 1 to 65535", h.port)
	}
	if a, err := netip.ParseAddr(h.name); err == nil {
		h.nets = append(h.nets, netip.PrefixFrom(a, a.BitLen())) // whoever writes an address means it
	}
	if !has {
		return h, nil
	}
	for text := range strings.SplitSeq(nets, "+") {
		p, err := parseNet(text)
		if err != nil {
			return host{}, err
		}
		h.nets = append(h.nets, p)
	}
	return h, nil
}

func parseNet(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || p != p.Masked() || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a CIDR such as 10.0.0.0/8", text)
	}
	return p, nil
}

// target returns host and port of a URL in the form that is compared.
func target(u *url.URL) (name, port string) {
	name, port = strings.ToLower(u.Hostname()), u.Port()
	if a, err := netip.ParseAddr(name); err == nil {
		name = a.Unmap().String()
	}
	if port == "" {
		port = defaultPort
	}
	return name, port
}

// flagFor is the entry that would list a URL's host.
func flagFor(u *url.URL) string {
	name, port := target(u)
	if port == defaultPort {
		if strings.Contains(name, ":") {
			return "[" + name + "]"
		}
		return name
	}
	return net.JoinHostPort(name, port)
}

// admits reports whether keys may be asked for at an address.
func (h host) admits(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, p := range h.nets {
		if p.Contains(a) {
			return true
		}
	}
	return isPublic(a)
}

// inward are the blocks that lead into private networks, into this machine or
// to nobody (RFC 6890), and those that wrap an IPv4 address, which could be
// one of them.
var inward = prefixes("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
	"192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
	"224.0.0.0/4", "240.0.0.0/4",
	"::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
	"5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8")

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(list))
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func isPublic(a netip.Addr) bool {
	for _, p := range inward {
		if p.Contains(a) {
			return false
		}
	}
	return a.IsValid()
}
