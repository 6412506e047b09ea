// This file holds the admin socket: its file, and who a caller is by the
// kernel's word.

package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca"
)

// unixPeer is the process that opened a connection (unix(7) SO_PEERCRED).
type unixPeer struct {
	credentials.CommonAuthInfo
	uid, gid uint32
	pid      int32
	groups   []uint32
}

// AuthType names the kind of authentication.
func (unixPeer) AuthType() string { return "unix" }

// String prints the peer as records name an actor.
func (p unixPeer) String() string { return fmt.Sprintf("uid=%d pid=%d", p.uid, p.pid) }

// adminTransport asks the kernel who opened a connection.
type adminTransport struct{}

// ServerHandshake reads the peer's credentials; nothing is exchanged.
func (adminTransport) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, ok := raw.(*net.UnixConn)
	if !ok {
		return nil, nil, fmt.Errorf("admin socket: connection is a %T", raw)
	}
	p, err := peerOf(conn)
	if err != nil {
		raw.Close()
		return nil, nil, fmt.Errorf("admin socket: peer credentials: %w", err)
	}
	p.SecurityLevel = credentials.PrivacyAndIntegrity
	return raw, p, nil
}

func peerOf(conn *net.UnixConn) (unixPeer, error) {
	rc, err := conn.SyscallConn()
	if err != nil {
		return unixPeer{}, err
	}
	var p unixPeer
	var failed error
	err = rc.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			failed = err
			return
		}
		p.uid, p.gid, p.pid = cred.Uid, cred.Gid, cred.Pid
		p.groups, failed = peerGroups(fd)
	})
	return p, errors.Join(err, failed)
}

// maxGroups is the kernel's bound on supplementary groups (NGROUPS_MAX).
const maxGroups = 65536

// peerGroups returns the supplementary groups that the peer had when it
// connected (SO_PEERGROUPS).
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
			return nil, errno
		}
	}
	return nil, unix.ERANGE
}

// ClientHandshake is not offered.
func (adminTransport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("the admin transport serves only")
}

// Info names the protocol.
func (adminTransport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix"}
}

// Clone returns the transport.
func (t adminTransport) Clone() credentials.TransportCredentials { return t }

// OverrideServerName does nothing on a server.
func (adminTransport) OverrideServerName(string) error { return nil }

// listenAdmin makes the socket: for its owner alone, or for the admin group
// as well. A socket that a dead server left is removed, a live one is refused;
// so is a directory in which others could replace it.
func listenAdmin(path string, group *uint32) (net.Listener, error) {
	if len(path) > 107 {
		return nil, fmt.Errorf("admin socket: path of %d bytes, more than the 107 that Linux allows", len(path))
	}
	if err := checkSocketDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// Until its mode is set, the socket is its owner's alone.
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	mode := os.FileMode(0o600)
	if group != nil {
		mode = 0o660
		if err := os.Chown(path, -1, int(*group)); err != nil {
			l.Close()
			return nil, fmt.Errorf("admin socket: %w", err)
		}
	}
	if err := os.Chmod(path, mode); err != nil {
		l.Close()
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	return l, nil
}

func checkSocketDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	perm := fi.Mode().Perm()
	if perm&0o022 != 0 && fi.Mode()&os.ModeSticky == 0 {
		return fmt.Errorf("admin socket: %s has mode %04o: others could replace the socket; chmod go-w it", dir, perm)
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && st.Uid != uint32(os.Getuid()) {
		return fmt.Errorf("admin socket: %s belongs to uid %d, not to this server or root", dir, st.Uid)
	}
	return nil
}

func removeStale(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	if fi.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("admin socket: %s is there and not a socket", path)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return fmt.Errorf("admin socket: another process serves %s", path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	return nil
}

// groupID looks up a group by name or number; nil for none.
func groupID(name string) (*uint32, error) {
	if name == "" {
		return nil, nil
	}
	text := name
	if g, err := user.LookupGroup(name); err == nil {
		text = g.Gid
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("admin group %q is not known", name)
	}
	gid := uint32(n)
	return &gid, nil
}

// operator returns the caller if it may use the admin API: uid 0, the
// server's own uid, or a member of the admin group.
func (s *Server) operator(ctx context.Context) (unixPeer, error) {
	p, _ := peer.FromContext(ctx)
	caller, ok := p.AuthInfo.(unixPeer)
	if !ok {
		return unixPeer{}, status.Error(codes.PermissionDenied, "the caller is not known")
	}
	switch {
	case caller.uid == 0, caller.uid == uint32(os.Getuid()):
		return caller, nil
	case s.adminGroup != nil && (caller.gid == *s.adminGroup || slices.Contains(caller.groups, *s.adminGroup)):
		return caller, nil
	}
	return caller, status.Errorf(codes.PermissionDenied, "uid %d may not use the admin socket", caller.uid)
}

// allowOperator refuses and records callers that may not use the admin API.
func (s *Server) allowOperator(ctx context.Context, method string) error {
	caller, err := s.operator(ctx)
	if err != nil {
		s.refusals.note(AuthorityLog, fmt.Sprint(caller.uid), audit.Event{Time: time.Now(), Kind: audit.KindRefused,
			Verdict: audit.VerdictDenied, Reason: ca.ReasonNoPermission, Actor: caller.String(), Detail: "admin API: " + method})
	}
	return err
}

func (s *Server) unaryOperator(ctx context.Context, req any, call *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := s.allowOperator(ctx, call.FullMethod); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (s *Server) streamOperator(srv any, stream grpc.ServerStream, call *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := s.allowOperator(stream.Context(), call.FullMethod); err != nil {
		return err
	}
	return next(srv, stream)
}

// actor names the caller in records.
func (s *Server) actor(ctx context.Context) string {
	caller, err := s.operator(ctx)
	if err != nil {
		return ""
	}
	return caller.String()
}
