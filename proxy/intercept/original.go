// This file holds OriginalDestination, where a redirected connection was
// going.

package intercept

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// ErrNotRedirected says that a connection came to the proxy's port by itself.
var ErrNotRedirected = errors.New("connection was not redirected: it was opened to the proxy's own port")

// ip6OriginalDst is IP6T_SO_ORIGINAL_DST of linux/netfilter_ipv6/ip6_tables.h,
// the same number as the one for IPv4.
const ip6OriginalDst = unix.SO_ORIGINAL_DST

// OriginalDestination returns the address that the client of a redirected
// connection dialled, as the kernel's connection tracking remembers it. It
// returns ErrNotRedirected where that is the address the connection arrived
// at, or nothing is remembered. The connection must not be of an MPTCP
// listener: the kernel does not answer for those.
func OriginalDestination(c *net.TCPConn) (netip.AddrPort, error) {
	local, ok := c.LocalAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, errors.New("original destination: connection has no local address")
	}
	here := local.AddrPort()
	here = netip.AddrPortFrom(here.Addr().Unmap(), here.Port())
	sys, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	var to netip.AddrPort
	var asked error
	err = sys.Control(func(fd uintptr) {
		if here.Addr().Is4() {
			to, asked = original4(int(fd))
		} else {
			to, asked = original6(int(fd))
		}
	})
	if err == nil {
		err = asked
	}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOPROTOOPT), err == nil && to == here:
		return netip.AddrPort{}, ErrNotRedirected
	case err != nil:
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	return to, nil
}

// original4 reads a sockaddr_in. IPv6Mreq is the smallest structure that x/sys
// passes to getsockopt whole and that one fits in.
func original4(fd int) (netip.AddrPort, error) {
	m, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, unix.SO_ORIGINAL_DST)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockopt", err)
	}
	// sa_family (2), port (2, network order), address (4).
	b := m.Multiaddr
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4])), nil
}

// original6 reads a sockaddr_in6, which IPv6MTUInfo begins with.
func original6(fd int) (netip.AddrPort, error) {
	m, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, ip6OriginalDst)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockopt", err)
	}
	a := netip.AddrFrom16(m.Addr.Addr)
	if a.IsLinkLocalUnicast() && m.Addr.Scope_id != 0 {
		a = a.WithZone(strconv.FormatUint(uint64(m.Addr.Scope_id), 10))
	}
	var port [2]byte
	binary.NativeEndian.PutUint16(port[:], m.Addr.Port)
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port[:])), nil
}
