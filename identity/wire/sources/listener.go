// This file holds Listen, a listener within bounds.

package sources

import (
	"net"
	"net/netip"
	"sync"
)

// Listen accepts what stays within the bounds, and closes the rest at once.
// A connection counts as long as it is open, among the handshakes as well:
// Limits.Handshakes bounds all of them together.
func Listen(l net.Listener, bounds Limits) net.Listener { return &listener{l, New(bounds)} }

type listener struct {
	net.Listener
	sources *Sources
}

// Accept returns the next connection within the bounds.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		seat, err := l.sources.Take(c.RemoteAddr())
		if err != nil {
			c.Close()
			continue
		}
		return &seated{Conn: c, leave: sync.OnceFunc(seat.Leave)}, nil
	}
}

// Take is Seat and Charge for the address of a connection.
func (s *Sources) Take(from net.Addr) (*Seat, error) {
	seat, err := s.Seat()
	if err != nil {
		return nil, err
	}
	var a netip.Addr
	if tcp, ok := from.(*net.TCPAddr); ok {
		a = tcp.AddrPort().Addr()
	}
	if err := seat.Charge(a); err != nil {
		seat.Leave()
		return nil, err
	}
	return seat, nil
}

// seated gives its place back when it is closed.
type seated struct {
	net.Conn
	leave func()
}

// Close closes the connection.
func (c *seated) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
