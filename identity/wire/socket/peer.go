// This file holds Peer, who is on a connection, and Transport, which tells
// gRPC.

package socket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// Peer is the process that opened a connection, as it was then (unix(7)
// SO_PEERCRED, SO_PEERGROUPS).
type Peer struct {
	credentials.CommonAuthInfo
	UID, GID uint32 // effective
	PID      int32
	Groups   []uint32 // supplementary
}

// AuthType names the kind of authentication to gRPC.
func (Peer) AuthType() string { return "unix" }

// String prints the peer as records name an actor.
func (p Peer) String() string { return fmt.Sprintf("uid=%d pid=%d", p.UID, p.PID) }

// Owner reports whether the peer is root or the user of this process.
func (p Peer) Owner() bool { return p.UID == 0 || p.UID == uint32(os.Geteuid()) }

// PeerOf asks the kernel who opened a connection.
func PeerOf(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	var p Peer
	var failed error
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			failed = os.NewSyscallError("getsockopt SO_PEERCRED", err)
			return
		}
		p.UID, p.GID, p.PID = cred.Uid, cred.Gid, cred.Pid
		p.Groups, failed = peerGroups(fd)
	})
	if err := errors.Join(err, failed); err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	p.SecurityLevel = credentials.PrivacyAndIntegrity
	return p, nil
}

// maxGroups is the kernel's bound on supplementary groups (NGROUPS_MAX).
const maxGroups = 65536

func peerGroups(fd uintptr) ([]uint32, error) {
	for n := 64; n <= maxGroups; n *= 32 {
		groups := make([]uint32, n)
		size := uint32(n * 4)
		_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch errno {
		case 0:
			return groups[:size/4], nil
		case unix.ERANGE:
		default:
			return nil, os.NewSyscallError("getsockopt SO_PEERGROUPS", errno)
		}
	}
	return nil, os.NewSyscallError("getsockopt SO_PEERGROUPS", unix.ERANGE)
}

// Transport is gRPC's credentials of a server on a Unix socket. It speaks no
// TLS and reads nothing: the kernel vouches for the peer.
type Transport struct {
	// Admit takes a connection, with what calls on it are told of the peer, or
	// refuses it. Zero admits everybody, and tells of the Peer.
	Admit func(*net.UnixConn, Peer) (net.Conn, credentials.AuthInfo, error)
}

// ServerHandshake finds out who the peer is; nothing is exchanged. A
// connection that is refused is closed.
func (t Transport) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, nil, fmt.Errorf("connection is a %T, not a Unix socket's", c)
	}
	p, err := PeerOf(u)
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	if t.Admit == nil {
		return c, p, nil
	}
	admitted, who, err := t.Admit(u, p)
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	return admitted, who, nil
}

// ClientHandshake is not offered.
func (Transport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("socket: the transport of a server cannot dial")
}

// Info names the protocol.
func (Transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix"}
}

// Clone returns the transport, which holds nothing of one connection.
func (t Transport) Clone() credentials.TransportCredentials { return t }

// OverrideServerName does nothing: a Unix socket has no server name.
func (Transport) OverrideServerName(string) error { return nil }
