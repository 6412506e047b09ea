// This file holds conn: a connection as net/http sees it, with the guard in
// front and the requests that are open on it.

package request

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aval-id/aval/identity/policy"
)

// Peer is who speaks on a connection, as the handshake and the proxy found
// it.
type Peer struct {
	// Connection is what policies see of it. Its Peer is zero in plaintext.
	Connection policy.Connection
	// ID is its Peer as text, "" in plaintext.
	ID string
	// Serial is that of the peer's certificate, and Hash the hexadecimal
	// SHA-256 of it; both "" in plaintext.
	Serial, Hash string
	// Server is the SPIFFE ID that the proxy has shown.
	Server string
	// Forward is where its requests go, the application's host:port. Idle
	// connections to the application are shared by all peers with one Forward.
	Forward string
	// H2C makes every request go there as HTTP/2 without TLS (RFC 9113 §3.3).
	// Otherwise only those of gRPC do, which knows nothing else, and all
	// others go as HTTP/1.1.
	H2C bool
}

// conn wraps a connection. net/http reads and writes it; Close may come from
// anywhere and takes effect once.
type conn struct {
	net.Conn
	peer  Peer
	s     *Server
	pair  *Pair
	guard guard // the reader's

	refused atomic.Bool // by the guard
	// withdrawn counts the requests that the client took back before they had
	// an answer, less those that had one.
	withdrawn atomic.Int64
	once      sync.Once
	gone      func() // called once, after the connection is closed

	mu   sync.Mutex
	open map[*exchange]struct{} // guarded by mu
}

// Read reads and lets the guard read along.
func (c *conn) Read(b []byte) (int, error) {
	if c.guard.err != nil {
		return 0, c.guard.err
	}
	n, err := c.Conn.Read(b)
	if n > 0 && c.guard.place != beyond {
		m, refused := c.guard.pass(b[:n])
		if refused != nil {
			c.refused.Store(true)
			c.s.metrics.malformed.Inc()
			c.s.log.Debug("request refused as malformed", "source", c.RemoteAddr().String(), "error", refused)
			if m > 0 {
				return m, nil
			}
			return 0, refused
		}
	}
	return n, err
}

// CloseWrite tells the client that no more will come.
func (c *conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// Close ends the connection. A client that was refused gets a moment to read
// why: closing with bytes unread would reset it first.
func (c *conn) Close() error {
	var err error
	c.once.Do(func() {
		if c.refused.Load() {
			const most, longest = 64 << 10, 250 * time.Millisecond
			c.CloseWrite()
			c.Conn.SetReadDeadline(time.Now().Add(longest))
			io.CopyN(io.Discard, c.Conn, most)
		}
		err = c.Conn.Close()
		c.s.forget(c)
		c.gone()
	})
	return err
}

// cut ends the connection without regard for who reads or writes it.
func (c *conn) cut() {
	c.Conn.SetDeadline(time.Unix(1, 0))
	c.Close()
}

// answered and takenBack keep the balance of a client: one that opens streams
// only to reset them makes work for the application and reads nothing.
func (c *conn) answered() {
	if c.withdrawn.Load() > 0 {
		c.withdrawn.Add(-1)
	}
}

func (c *conn) takenBack() {
	if c.withdrawn.Add(1) > int64(resetsPerStream*c.s.cfg.Limits.Streams) {
		c.s.log.Warn("connection closed: its client resets what it asks for", "source", c.RemoteAddr().String())
		c.cut()
	}
}

func (c *conn) add(e *exchange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[e] = struct{}{}
}

func (c *conn) remove(e *exchange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, e)
}

func (c *conn) has(e *exchange) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.open[e]
	return ok
}

func (c *conn) exchanges() []*exchange {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*exchange, 0, len(c.open))
	for e := range c.open {
		all = append(all, e)
	}
	return all
}
