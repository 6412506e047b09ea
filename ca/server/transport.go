// This file holds the node listener's transport: the limits before and during
// the TLS handshake, and the record of every handshake that failed.

package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/mtls"
	"github.com/aval-id/aval/identity/wire/sources"
)

var (
	errTooManyConnections = errors.New("too many connections")
	errTooManyHandshakes  = errors.New("too many handshakes at once")
	errTooManyStrangers   = errors.New("too many connections without a certificate")
	errTooMuch            = errors.New("a peer without a certificate sent more than one call needs")
)

// limitListener closes connections beyond a limit at once instead of letting
// them wait.
type limitListener struct {
	net.Listener
	limit  int64
	open   atomic.Int64
	refuse func(net.Conn, error)
}

// Accept returns the next connection within the limit.
func (l *limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.limit {
			return &countedConn{Conn: c, open: &l.open}, nil
		}
		l.open.Add(-1)
		l.refuse(c, errTooManyConnections)
		c.Close()
	}
}

type countedConn struct {
	net.Conn
	once sync.Once
	open *atomic.Int64
}

// Close gives the connection's place back.
func (c *countedConn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

// tlsPeer is what a handshake found out about a peer.
type tlsPeer struct {
	credentials.CommonAuthInfo
	state tls.ConnectionState
}

// AuthType names the kind of authentication.
func (tlsPeer) AuthType() string { return "tls" }

// nodeTransport does the TLS handshakes of the node listener.
type nodeTransport struct {
	config  *tls.Config
	timeout time.Duration
	// handshakes counts those in progress, strangers the open connections
	// without a certificate. One source has a quarter of either at most.
	handshakes, strangers *sources.Sources
	refuse                func(net.Conn, error)
}

// newNodeTransport bounds handshakes and strangers to a quarter of the
// connections each.
func newNodeTransport(config *tls.Config, c Config, refuse func(net.Conn, error)) *nodeTransport {
	bounds := sources.Limits{Handshakes: max(1, c.MaxConnections/4), SourceHandshakes: c.MaxHandshakesPerSource,
		SpareLoopback: c.MaxHandshakesPerSource == 0}
	if bounds.SourceHandshakes == 0 {
		bounds.SourceHandshakes = max(1, bounds.Handshakes/4)
	}
	return &nodeTransport{config: config, timeout: c.HandshakeTimeout, refuse: refuse,
		handshakes: sources.New(bounds), strangers: sources.New(bounds)}
}

// seat takes a place for a connection, or says which bound it is over.
func seat(of *sources.Sources, c net.Conn, full error) (*sources.Seat, error) {
	s, err := of.Take(c.RemoteAddr())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", full, err)
	}
	return s, nil
}

// A peer without a certificate can make one call, which is short. Beyond that
// it is cut off, so that it holds neither memory nor a connection.
const (
	strangerBytes    = 128 << 10 // that it may send
	strangerTimeouts = 3         // its time, in handshake timeouts
)

// strangerConn is a connection of a peer without a certificate.
type strangerConn struct {
	net.Conn
	left  int64 // owned by the one reader
	timer *time.Timer
	once  sync.Once
	give  func()
}

// Read reads as long as the peer has not sent too much.
func (c *strangerConn) Read(b []byte) (int, error) {
	if c.left <= 0 {
		return 0, errTooMuch
	}
	n, err := c.Conn.Read(b[:min(int64(len(b)), c.left)])
	c.left -= int64(n)
	return n, err
}

// Close gives the connection's place back.
func (c *strangerConn) Close() error {
	c.timer.Stop()
	c.once.Do(c.give)
	return c.Conn.Close()
}

// stranger wraps the connection of a peer without a certificate, if there is
// a place for one.
func (t *nodeTransport) stranger(conn net.Conn) (net.Conn, error) {
	place, err := seat(t.strangers, conn, errTooManyStrangers)
	if err != nil {
		return nil, err
	}
	return &strangerConn{Conn: conn, left: strangerBytes, give: place.Leave,
		// The transport above sees the end and closes its side.
		timer: time.AfterFunc(strangerTimeouts*t.timeout, func() { conn.Close() })}, nil
}

// ServerHandshake does one handshake within its deadline.
func (t *nodeTransport) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	place, err := seat(t.handshakes, raw, errTooManyHandshakes)
	if err != nil {
		t.refuse(raw, err)
		raw.Close()
		return nil, nil, err
	}
	defer place.Leave()
	conn := tls.Server(raw, t.config)
	raw.SetDeadline(time.Now().Add(t.timeout))
	if err := conn.Handshake(); err != nil {
		t.refuse(raw, err)
		raw.Close()
		return nil, nil, err
	}
	raw.SetDeadline(time.Time{})
	peer := tlsPeer{state: conn.ConnectionState()}
	peer.SecurityLevel = credentials.PrivacyAndIntegrity
	if len(peer.state.PeerCertificates) > 0 {
		return conn, peer, nil
	}
	limited, err := t.stranger(conn)
	if err != nil {
		t.refuse(raw, err)
		raw.Close()
		return nil, nil, err
	}
	return limited, peer, nil
}

// ClientHandshake is not offered.
func (t *nodeTransport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("the node transport serves only")
}

// Info names the protocol.
func (t *nodeTransport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone returns the same transport, which holds nothing of one connection.
func (t *nodeTransport) Clone() credentials.TransportCredentials { return t }

// OverrideServerName does nothing on a server.
func (t *nodeTransport) OverrideServerName(string) error { return nil }

// refuseConnection records a connection that did not get through its
// handshake, in the connections log: whoever can reach the port can cause it.
func (s *Server) refuseConnection(c net.Conn, err error) {
	e := audit.Event{
		Time: time.Now(), Kind: audit.KindConnection, Verdict: audit.VerdictDenied,
		Direction: audit.DirectionInbound, Reason: connectionReason(err),
		Source: c.RemoteAddr().String(), Destination: c.LocalAddr().String(),
		Detail: "node listener",
	}
	if e.Reason == audit.ReasonLimit {
		e.Detail += ": " + err.Error()
	}
	if creds := s.Credentials(); creds.HasSVID() {
		e.ServerID = creds.SVID.ID.String()
	}
	if r, ok := errors.AsType[*mtls.Rejection](err); ok {
		e.ClientID, e.ClientSerial = r.ID.String(), r.Serial
	}
	s.refusals.note(ConnectionsLog, hostOf(e.Source)+" "+e.ClientID, e)
}

func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

// connectionReason sorts the error of a handshake into the closed list.
func connectionReason(err error) audit.Reason {
	if r, ok := errors.AsType[*mtls.Rejection](err); ok {
		return r.Reason
	}
	if alert, ok := errors.AsType[tls.AlertError](err); ok && alert == 70 { // protocol_version
		return audit.ReasonTLSVersion
	}
	netErr, isNet := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, errTooManyConnections), errors.Is(err, errTooManyHandshakes), errors.Is(err, errTooManyStrangers):
		return audit.ReasonLimit
	case errors.Is(err, os.ErrDeadlineExceeded), isNet && netErr.Timeout():
		return audit.ReasonHandshakeTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return audit.ReasonReset
	case strings.Contains(err.Error(), "unsupported versions"), strings.Contains(err.Error(), "protocol version"):
		return audit.ReasonTLSVersion
	}
	return audit.ReasonHandshakeFailed
}
