// Package socket is a Unix socket that this process serves: how its file is
// made, whether its place is safe, and who is on a connection.
//
// It owns the file with its mode and group, the check of every directory
// above it, and the peer's credentials by the kernel's word. It leaves to its
// callers who may do what. It stands on the ground floor.
package socket

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxPath is what fits into an address (unix(7)).
const maxPath = 107

// File is how a socket's file is made.
type File struct {
	// Mode says who may connect, which takes the right to write. Zero means
	// 0600.
	Mode fs.FileMode
	// Group is the file's group, nil for the process's own.
	Group *uint32
}

// Listen makes the socket. Its directory is made if absent, with mode 0755,
// and must not let others replace what is in it (CheckDirectory). A socket
// that a dead process left is replaced, a live one is an error. Nobody can
// connect before mode and group are set; closing it removes the file. Errors
// name the path.
func Listen(path string, f File) (*net.UnixListener, error) {
	l, err := f.listen(filepath.Clean(path))
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return l, nil
}

func (f File) listen(path string) (*net.UnixListener, error) {
	if f.Mode == 0 {
		f.Mode = 0o600
	}
	if len(path) > maxPath {
		return nil, fmt.Errorf("the path has %d bytes, more than the %d that Linux allows", len(path), maxPath)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := CheckDirectory(dir, uint32(os.Geteuid())); err != nil {
		return nil, err
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	return f.bind(path)
}

// backlog is how many connections may wait to be accepted, less where the
// kernel's own bound is lower.
const backlog = 4096

// bind makes the file and gives it its mode and group. Only then it listens:
// until then a connection is refused.
func (f File) bind(path string) (*net.UnixListener, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	if f.Group != nil {
		err = os.Chown(path, -1, int(*f.Group))
	}
	if err == nil {
		err = os.Chmod(path, f.Mode)
	}
	if err == nil {
		err = os.NewSyscallError("listen", unix.Listen(fd, backlog))
	}
	var l net.Listener
	if err == nil {
		l, err = net.FileListener(file) // a copy, closed on exec
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(true)
	return u, nil
}

// removeStale removes a socket that nobody listens on, and nothing else.
func removeStale(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("a %s is in its place", kind(fi.Mode()))
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
		return errors.New("another process serves it")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

func kind(m fs.FileMode) string {
	switch {
	case m.IsRegular():
		return "file"
	case m.IsDir():
		return "directory"
	case m&fs.ModeSymlink != 0:
		return "symbolic link"
	}
	return "special file"
}
