// This file holds the demo's place: its directory, the copies of the binary,
// its ports and users, and the removal of all that.

package demo

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// sitePrefix begins the name of each demo's directory.
	sitePrefix = "aval-demo-"
	// maxSitePath leaves room for the sockets below a site in the 108 bytes
	// that Linux allows.
	maxSitePath = 80
	// staleAge protects a site that is being made by another demo.
	staleAge = 10 * time.Second
	// firstUID is the user of the first service, where the demo may choose.
	firstUID = 20001
)

// serviceNames are the applications of the demo; each has a copy of the
// binary, a proxy, and where the demo runs as root, a user.
var serviceNames = []string{"web", "api", "intruder"}

// site is the directory of one demo and the addresses it uses.
type site struct {
	dir    string
	binary string // the aval binary a person would use
	lock   *os.File
	uids   bool // services run as users of their own

	server, serverHTTP      string            // HOST:PORT of the node API and of its health endpoint
	agentHTTP               string            // HOST:PORT
	app                     map[string]string // service → its application
	proxyHTTP               map[string]string // service → its proxy's health endpoint
	outbound                map[string]string // web, intruder → local way to api
	apiStatus               string            // the application's second port
	apiInbound, apiInbound2 string            // where api's proxy listens for both
}

// newSite makes the directory and its parts. What it made is removed again
// when it returns an error.
func newSite(binary string) (*site, error) {
	parent, uids, err := siteParent()
	if err != nil {
		return nil, err
	}
	removeStale(parent)
	dir, err := os.MkdirTemp(parent, sitePrefix)
	if err != nil {
		return nil, fmt.Errorf("make the demo's directory: %w", err)
	}
	s := &site{dir: dir, binary: binary, uids: uids}
	if err := s.furnish(); err != nil {
		return nil, errors.Join(err, s.close(false))
	}
	return s, nil
}

// furnish locks the directory, makes those below it and copies the binary.
func (s *site) furnish() error {
	lock, err := os.OpenFile(s.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("lock the demo's directory: %w", err)
	}
	s.lock = lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock the demo's directory: %w", err)
	}
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return err
	}
	for name, mode := range map[string]os.FileMode{
		"bin": 0o755, "run": 0o755, "proxy": 0o755, "documents": 0o755,
		"admin": 0o700, "log": 0o700, "keys": 0o700, "copy": 0o700,
	} {
		if err := os.Mkdir(s.path(name), mode); err != nil {
			return err
		}
		if err := os.Chmod(s.path(name), mode); err != nil {
			return err
		}
	}
	for _, name := range append([]string{"aval"}, serviceNames...) {
		if err := copyFile(s.path("bin", name), s.binary, 0o755); err != nil {
			return fmt.Errorf("copy the binary: %w", err)
		}
	}
	return s.takePorts()
}

// takePorts finds free ports of the loopback address. They are free at that
// moment; a process that finds one taken says so and ends the demo.
func (s *site) takePorts() error {
	s.app, s.proxyHTTP, s.outbound = map[string]string{}, map[string]string{}, map[string]string{}
	var held []net.Listener
	defer func() {
		for _, l := range held {
			l.Close()
		}
	}()
	var failed error
	take := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			failed = fmt.Errorf("find a free port: %w", err)
			return ""
		}
		held = append(held, l)
		return l.Addr().String()
	}
	s.server, s.serverHTTP, s.agentHTTP = take(), take(), take()
	s.apiStatus, s.apiInbound, s.apiInbound2 = take(), take(), take()
	for _, name := range serviceNames {
		s.app[name], s.proxyHTTP[name] = take(), take()
	}
	s.outbound["web"], s.outbound["intruder"] = take(), take()
	return failed
}

// path names something in the directory.
func (s *site) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

func (s *site) adminSocket() string { return s.path("admin", "server.sock") }
func (s *site) agentSocket() string { return s.path("run", "agent.sock") }

// uid is the user a service runs as.
func (s *site) uid(service string) int {
	if !s.uids {
		return os.Geteuid()
	}
	for i, name := range serviceNames {
		if name == service {
			return firstUID + i
		}
	}
	return os.Geteuid()
}

// write puts a file into the directory, readable to the services.
func (s *site) write(content string, parts ...string) (string, error) {
	path := s.path(parts...)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		return "", err
	}
	return path, os.Chmod(path, 0o644)
}

// close removes the directory, or only lets go of it where it is kept.
func (s *site) close(keep bool) error {
	if s.lock != nil {
		defer s.lock.Close()
	}
	if keep {
		return nil
	}
	if err := os.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("remove the demo's directory: %w", err)
	}
	return nil
}

// siteParent picks the directory for the site: one whose files may be
// executed, with a path short enough for sockets, and where the demo runs as
// root, one that other users can reach. uids tells whether services can run
// as users of their own there.
func siteParent() (dir string, uids bool, err error) {
	root := os.Geteuid() == 0
	fallback := ""
	for _, candidate := range []string{os.TempDir(), "/tmp", "/var/tmp"} {
		resolved, err := filepath.EvalSymlinks(candidate)
		if err != nil || len(resolved) > maxSitePath || !executable(resolved) {
			continue
		}
		if fallback == "" {
			fallback = resolved
		}
		if !root || reachable(resolved) {
			return resolved, root, nil
		}
	}
	if fallback == "" {
		return "", false, fmt.Errorf("find a directory for the demo: none of %s, /tmp, /var/tmp allows execution and has a path of at most %d bytes; set TMPDIR", os.TempDir(), maxSitePath)
	}
	return fallback, false, nil
}

// executable reports whether files of the directory may be executed.
func executable(dir string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && fs.Flags&unix.ST_NOEXEC == 0 && unix.Access(dir, unix.W_OK) == nil
}

// reachable reports whether every user may pass through to the directory.
func reachable(dir string) bool {
	for {
		st, err := os.Stat(dir)
		if err != nil || st.Mode()&0o001 == 0 {
			return false
		}
		if dir == filepath.Dir(dir) {
			return true
		}
		dir = filepath.Dir(dir)
	}
}

// removeStale removes the sites of demos that were killed: directories of
// this user that no process holds locked. What resists stays.
func removeStale(parent string) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), sitePrefix) {
			removeIfStale(filepath.Join(parent, e.Name()))
		}
	}
}

func removeIfStale(dir string) {
	st, err := os.Lstat(dir)
	if err != nil || time.Since(st.ModTime()) < staleAge {
		return
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || int(sys.Uid) != os.Geteuid() {
		return
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return
	}
	defer lock.Close()
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		os.RemoveAll(dir)
	}
}

// copyFile makes dst a copy of src with an inode of its own.
func copyFile(dst, src string, mode os.FileMode) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Chmod(mode)
	}
	return errors.Join(err, out.Close())
}
