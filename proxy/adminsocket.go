// This file holds the admin socket's file and the check of who calls.

package proxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// maxSocketPath is what fits into an address (unix(7)).
const maxSocketPath = 107

// listenAdmin makes the socket for its owner alone, or returns nil where none
// is set. A dead proxy's socket is replaced, a live one's is not.
func (p *Proxy) listenAdmin() (net.Listener, error) {
	path := p.cfg.Admin
	if path == "" {
		return nil, nil
	}
	if err := checkDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	if err := clearSocket(path); err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	// Connecting needs the right to write. Nobody else has it even before the
	// mode is set: the socket is made in a directory of its own, and moved.
	dir, err := os.MkdirTemp(filepath.Dir(path), ".admin")
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	defer os.RemoveAll(dir)
	made := filepath.Join(dir, "s")
	if len(made) > maxSocketPath {
		return nil, fmt.Errorf("admin socket: %s is longer by %d bytes than Linux and the making of it allow", path, len(made)-maxSocketPath)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(made, 0o600); err == nil {
		err = os.Rename(made, path)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	return adminListener{l, path}, nil
}

// adminListener removes its file when it closes.
type adminListener struct {
	*net.UnixListener
	path string
}

// Close stops listening.
func (l adminListener) Close() error {
	err := l.UnixListener.Close()
	if err == nil {
		err = os.Remove(l.path)
	}
	return err
}

// checkDir refuses a directory in which others could replace the socket.
func checkDir(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	if fi.Mode().Perm()&0o022 != 0 && fi.Mode()&os.ModeSticky == 0 {
		return fmt.Errorf("%s has mode %04o: others could replace the socket; chmod go-w it", dir, fi.Mode().Perm())
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Getuid() {
		return fmt.Errorf("%s belongs to uid %d, not to this proxy or root", dir, st.Uid)
	}
	return nil
}

// clearSocket removes what a dead proxy left, and nothing else.
func clearSocket(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and not a socket", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
		return fmt.Errorf("%s is in use: another proxy runs with it", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// ownersOnly asks the kernel who opened a connection (unix(7) SO_PEERCRED),
// and closes those of anyone but root and the proxy's own user. The socket's
// mode says the same; a descriptor that was handed on does not.
type ownersOnly struct{}

// ownerAuth is the proof that the check was made.
type ownerAuth struct{ credentials.CommonAuthInfo }

// AuthType names the kind of authentication.
func (ownerAuth) AuthType() string { return "unix" }

// ServerHandshake makes the check; nothing is exchanged.
func (ownersOnly) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if err := checkOwner(c); err != nil {
		c.Close()
		return nil, nil, fmt.Errorf("admin socket: %w", err)
	}
	return c, ownerAuth{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
}

func checkOwner(c net.Conn) error {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("connection is a %T", c)
	}
	sys, err := u.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var failed error
	if err := sys.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Getuid() {
		return fmt.Errorf("uid %d may not use it", cred.Uid)
	}
	return nil
}

// ClientHandshake is not offered.
func (ownersOnly) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("admin socket: it serves only")
}

// Info names the protocol.
func (ownersOnly) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix"}
}

// Clone returns the credentials.
func (o ownersOnly) Clone() credentials.TransportCredentials { return o }

// OverrideServerName does nothing on a server.
func (ownersOnly) OverrideServerName(string) error { return nil }
