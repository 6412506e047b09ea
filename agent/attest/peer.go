// This file holds Peer and Credentials: gRPC transport credentials that take
// hold of the process behind each Unix connection when it is accepted.

package attest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/aval-id/aval/identity"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// Peer is the process behind a connection: the one that called connect. Its
// hold on the process ends with the connection.
type Peer struct {
	credentials.CommonAuthInfo
	*Process
	UID, GID uint32 // effective, at the time of connect

	// reporter remembers which identity the peer watches on this
	// connection, for the records that it sends on the same one.
	reporter atomic.Pointer[string]
}

// AuthType names the kind of authentication to gRPC.
func (*Peer) AuthType() string { return "unix-peer" }

// Attributes reads the attributes of the process. Its effective ids must be
// those that connected: whoever runs a set-user-ID program on a connection of
// its own, and leaves the talking to another process, does not become that
// program's user.
func (p *Peer) Attributes(hashes *Hashes) (identity.Attributes, error) {
	a, err := p.Process.Attributes(hashes)
	if err != nil {
		return nil, err
	}
	for name, id := range map[string]uint32{UID: p.UID, GID: p.GID} {
		if at := strconv.FormatUint(uint64(id), 10); !slices.Equal(a[name], []string{at}) {
			return nil, fmt.Errorf("process %d has %s %s, the connection came from %s: %w", p.pid, name, a[name], at, errForeign)
		}
	}
	return a, nil
}

// errForeign says that a process is not any more what it was when it
// connected.
var errForeign = errors.New("it changed its user or group")

// Watch remembers the identity that the peer follows on this connection.
func (p *Peer) Watch(id string) { p.reporter.Store(&id) }

// Watched returns the identity last given to Watch, or "".
func (p *Peer) Watched() string {
	if id := p.reporter.Load(); id != nil {
		return *id
	}
	return ""
}

// Limits bound the connections of one endpoint.
type Limits struct {
	Connections       int // in total; zero means 8192
	ConnectionsPerUID int // zero means 4096
}

// Credentials are server-side transport credentials for a Unix socket. They
// speak no TLS: the kernel vouches for the peer.
type Credentials struct {
	limits Limits

	mu    sync.Mutex
	open  int
	byUID map[uint32]int
}

// NewCredentials returns credentials that admit connections up to the limits.
func NewCredentials(limits Limits) *Credentials {
	if limits.Connections <= 0 {
		limits.Connections = 8192
	}
	if limits.ConnectionsPerUID <= 0 {
		limits.ConnectionsPerUID = 4096
	}
	return &Credentials{limits: limits, byUID: make(map[uint32]int)}
}

// ServerHandshake takes hold of the peer. It reads nothing from conn.
func (c *Credentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, nil, fmt.Errorf("peer of a %T: not a Unix connection", conn)
	}
	p, err := peerOf(uc)
	if err != nil {
		return nil, nil, fmt.Errorf("peer: %w", err)
	}
	if err := c.take(p.UID); err != nil {
		p.Close()
		return nil, nil, err
	}
	held := &heldConn{Conn: conn, release: sync.OnceFunc(func() {
		p.Close()
		c.give(p.UID)
	})}
	return held, p, nil
}

// ClientHandshake is refused: these are a server's credentials.
func (c *Credentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("attest: credentials of a server cannot dial")
}

// Info describes the protocol to gRPC.
func (c *Credentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix-peer"}
}

// Clone returns c: its limits count over all of its connections.
func (c *Credentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName does nothing: a Unix socket has no server name.
func (c *Credentials) OverrideServerName(string) error { return nil }

// Open returns how many connections are open.
func (c *Credentials) Open() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open
}

func (c *Credentials) take(uid uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open >= c.limits.Connections {
		return fmt.Errorf("peer: limit of %d connections is reached", c.limits.Connections)
	}
	if c.byUID[uid] >= c.limits.ConnectionsPerUID {
		return fmt.Errorf("peer: limit of %d connections of uid %d is reached", c.limits.ConnectionsPerUID, uid)
	}
	c.open++
	c.byUID[uid]++
	return nil
}

func (c *Credentials) give(uid uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	if c.byUID[uid]--; c.byUID[uid] <= 0 {
		delete(c.byUID, uid)
	}
}

// heldConn lets go of the peer's process when it is closed.
type heldConn struct {
	net.Conn
	release func()
}

// Close closes the connection and lets go of the process.
func (c *heldConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// peerOf asks the kernel for the process that connected. SO_PEERPIDFD (Linux
// 6.5) names it without a race. Older kernels give its pid: the process that
// has the pid now is taken, and must have the uid that connected.
func peerOf(conn *net.UnixConn) (*Peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var (
		cred    *unix.Ucred
		credErr error
		fd      int
		fdErr   error
	)
	if err := raw.Control(func(s uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(s), unix.SOL_SOCKET, unix.SO_PEERCRED)
		fd, fdErr = unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	}); err != nil {
		return nil, err
	}
	if credErr != nil {
		if fdErr == nil {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("SO_PEERCRED: %w", credErr)
	}
	p := &Peer{UID: cred.Uid, GID: cred.Gid}
	switch {
	case fdErr == nil:
		unix.CloseOnExec(fd)
		p.Process, err = fromPidfd(fd)
	case errors.Is(fdErr, unix.ENOPROTOOPT):
		p.Process, err = peerByPID(int(cred.Pid), cred.Uid)
	default: // the peer has ended
		err = fmt.Errorf("SO_PEERPIDFD: %w (%w)", ErrGone, fdErr)
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// peerByPID takes hold of a peer on a kernel without SO_PEERPIDFD.
func peerByPID(pid int, uid uint32) (*Process, error) {
	p, err := Open(pid)
	if err != nil {
		return nil, err
	}
	r, err := p.read()
	if err == nil {
		err = p.Alive()
	}
	if err == nil && r.uid != fmt.Sprint(uid) {
		err = fmt.Errorf("process %d has uid %s, the connection came from uid %d: %w", pid, r.uid, uid, ErrGone)
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}
