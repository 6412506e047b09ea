// This file holds Peer and Credentials, which take hold of the process behind
// each Unix connection when it is accepted.

package attest

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/wire/socket"
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

// Limits bound the connections of one endpoint. Besides, a user may have as
// many as are left free for the others, so that none takes more than half. A
// part is kept for users that have few, and another for root and the agent's
// own user.
type Limits struct {
	Connections       int // in total; zero means 8192
	ConnectionsPerUID int // zero means 4096; a smaller share may hold before
}

const (
	// reserved is the part of the connections kept for root, and that for
	// users that have few: one of so many each.
	reserved = 16
	// few is how many connections are few.
	few = 16
)

// Credentials take hold of the process behind each connection of a Unix
// socket.
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

// Transport is what a gRPC server asks for who is on a connection. The limits
// count over all of its connections.
func (c *Credentials) Transport() socket.Transport { return socket.Transport{Admit: c.admit} }

// admit takes hold of the peer.
func (c *Credentials) admit(conn *net.UnixConn, who socket.Peer) (net.Conn, credentials.AuthInfo, error) {
	p, err := peerOf(conn, who)
	if err != nil {
		return nil, nil, fmt.Errorf("peer: %w", err)
	}
	if err := c.take(who); err != nil {
		p.Close()
		return nil, nil, err
	}
	held := &heldConn{Conn: conn, release: sync.OnceFunc(func() {
		p.Close()
		c.give(p.UID)
	})}
	return held, p, nil
}

// Open returns how many connections are open.
func (c *Credentials) Open() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open
}

func (c *Credentials) take(who socket.Peer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	most, held := c.limits.Connections, c.byUID[who.UID]
	if !who.Owner() {
		most -= most / reserved
		if held >= few {
			most -= most / reserved
		}
	}
	free := most - c.open
	switch {
	case free <= 0:
		return fmt.Errorf("peer: limit of %d connections is reached", most)
	case held >= c.limits.ConnectionsPerUID:
		return fmt.Errorf("peer: limit of %d connections of uid %d is reached", c.limits.ConnectionsPerUID, who.UID)
	case !who.Owner() && held >= max(few, free):
		return fmt.Errorf("peer: uid %d has %d connections, and the %d that are free are for others", who.UID, held, free)
	}
	c.open++
	c.byUID[who.UID]++
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
func peerOf(conn *net.UnixConn, who socket.Peer) (*Peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var (
		fd    int
		fdErr error
	)
	if err := raw.Control(func(s uintptr) {
		fd, fdErr = unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	}); err != nil {
		return nil, err
	}
	p := &Peer{CommonAuthInfo: who.CommonAuthInfo, UID: who.UID, GID: who.GID}
	switch {
	case fdErr == nil:
		unix.CloseOnExec(fd)
		p.Process, err = fromPidfd(fd)
	case errors.Is(fdErr, unix.ENOPROTOOPT):
		p.Process, err = peerByPID(int(who.PID), who.UID)
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
