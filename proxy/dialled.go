// This file holds dialled, by which a transparent proxy tells a connection
// that it opened itself and was handed back.

package proxy

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// dialled knows the local addresses of the connections that this proxy has
// opened, from before the other side can see them until they close. The rules
// let the proxy's own connections pass; where they are wrong, or are not ours,
// this is what keeps a connection from running in circles.
type dialled struct {
	mu   sync.Mutex
	from map[netip.AddrPort]struct{} // guarded by mu
}

// has reports whether a connection from that address is the proxy's own.
func (d *dialled) has(from netip.AddrPort) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.from[plainAddr(from)]
	return ok
}

func (d *dialled) forget(all ...netip.AddrPort) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range all {
		delete(d.from, a)
	}
}

// dial connects, and forgets the connection's address by the returned
// function.
func (d *dialled) dial(ctx context.Context, dialer net.Dialer, address string) (net.Conn, func(), error) {
	var mu sync.Mutex
	var begun []netip.AddrPort // guarded by mu: a name may have several addresses
	dialer.Control = func(_, address string, c syscall.RawConn) error {
		from, err := d.connect(address, c)
		if from.IsValid() {
			mu.Lock()
			begun = append(begun, from)
			mu.Unlock()
		}
		return err
	}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	mu.Lock()
	defer mu.Unlock()
	if err != nil {
		d.forget(begun...)
		return nil, nil, err
	}
	kept := plainAddr(addrOf(conn.LocalAddr()))
	d.forget(slices.DeleteFunc(begun, func(a netip.AddrPort) bool { return a == kept })...)
	return conn, func() { d.forget(kept) }, nil
}

// connect begins the connection and learns the address that the kernel chose
// for it, while has waits: whoever accepts the connection finds it. The
// dialler's own connect comes after it, and finds it begun or done.
func (d *dialled) connect(address string, c syscall.RawConn) (from netip.AddrPort, err error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	begin := func(fd uintptr) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if err = unix.Connect(int(fd), sockaddr(to)); err != nil && err != unix.EINPROGRESS {
			err = os.NewSyscallError("connect", err)
			return
		}
		var sa unix.Sockaddr
		if sa, err = unix.Getsockname(int(fd)); err != nil {
			err = os.NewSyscallError("getsockname", err)
			return
		}
		from = addrPort(sa)
		d.from[from] = struct{}{}
	}
	if cerr := c.Control(begin); cerr != nil {
		return from, cerr
	}
	return from, err
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	six := &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if zone := a.Addr().Zone(); zone != "" {
		if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
			six.ZoneId = uint32(n)
		} else if i, err := net.InterfaceByName(zone); err == nil {
			six.ZoneId = uint32(i.Index)
		}
	}
	return six
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// plainAddr is an address without its zone, as both ends write it.
func plainAddr(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().WithZone("").Unmap(), a.Port())
}
