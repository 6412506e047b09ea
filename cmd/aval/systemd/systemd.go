// Package systemd is how a process speaks with the systemd that started it:
// notifications (sd_notify(3)), the watchdog (sd_watchdog_enabled(3)) and
// passed sockets (sd_listen_fds(3)). It is of the top floor and knows nothing
// of what the process does. Without systemd all of it does nothing.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The states that systemd knows.
const (
	Ready    = "READY=1"
	Stopping = "STOPPING=1"
	alive    = "WATCHDOG=1"
)

// Supervisor is the systemd of one process. The zero value is none.
type Supervisor struct {
	socket   string
	watchdog time.Duration
}

// New reads the environment, a lookup that returns "" for what is not set.
func New(lookup func(string) string) (Supervisor, error) {
	s := Supervisor{socket: lookup("NOTIFY_SOCKET")}
	if s.socket != "" && s.socket[0] != '/' && s.socket[0] != '@' {
		return Supervisor{}, fmt.Errorf("NOTIFY_SOCKET %q is neither a path nor an abstract name", s.socket)
	}
	text := lookup("WATCHDOG_USEC")
	if pid := lookup("WATCHDOG_PID"); text == "" || pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return s, nil
	}
	usec, err := strconv.ParseInt(text, 10, 64)
	if err != nil || usec <= 0 || usec > int64(24*time.Hour/time.Microsecond) {
		return Supervisor{}, fmt.Errorf("WATCHDOG_USEC %q is not a number of microseconds up to a day", text)
	}
	s.watchdog = time.Duration(usec) * time.Microsecond
	return s, nil
}

// Status words a state that people read in systemctl status.
func Status(text string) string { return "STATUS=" + strings.ReplaceAll(text, "\n", " ") }

// Notify tells systemd of states. It never waits for systemd.
func (s Supervisor) Notify(states ...string) error {
	if s.socket == "" {
		return nil
	}
	name := s.socket
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(strings.Join(states, "\n"))); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}

// Watch tells systemd at half of its interval that the process lives, for as
// long as check returns within it, until ctx ends. A process that hangs in
// check is ended by systemd, as it should be.
func (s Supervisor) Watch(ctx context.Context, check func()) error {
	if s.watchdog == 0 || s.socket == "" {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(s.watchdog / 2)
	defer tick.Stop()
	for {
		check()
		if err := s.Notify(alive); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Socket is a listening socket that was passed to this process.
type Socket struct {
	Name     string // FileDescriptorName= of its unit, the unit's name unless set; "" where none is told
	Listener *net.TCPListener
}

// firstSocket is the descriptor of the first passed socket.
const firstSocket = 3

// maxSockets is more than anybody passes.
const maxSockets = 1024

// Sockets returns the passed sockets, or none where they were meant for
// another process. Each is the caller's; none is inherited by children. A
// descriptor that is no listening TCP socket is an error.
func Sockets(lookup func(string) string) ([]Socket, error) {
	if lookup("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	n, err := strconv.Atoi(lookup("LISTEN_FDS"))
	if err != nil || n < 0 || n > maxSockets {
		return nil, fmt.Errorf("LISTEN_FDS %q is not a number up to %d", lookup("LISTEN_FDS"), maxSockets)
	}
	var names []string
	if text := lookup("LISTEN_FDNAMES"); text != "" {
		names = strings.Split(text, ":")
		if len(names) != n {
			return nil, fmt.Errorf("LISTEN_FDNAMES has %d names for %d sockets", len(names), n)
		}
	}
	var all []Socket
	for i := range n {
		s := Socket{}
		if names != nil {
			s.Name = names[i]
		}
		if s.Listener, err = listener(firstSocket + i); err != nil {
			for _, open := range all {
				open.Listener.Close()
			}
			return nil, fmt.Errorf("passed socket %d (%q): %w", i, s.Name, err)
		}
		all = append(all, s)
	}
	return all, nil
}

func listener(fd int) (*net.TCPListener, error) {
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt", err)
	}
	if listening == 0 {
		return nil, errors.New("it does not listen")
	}
	f := os.NewFile(uintptr(fd), "passed socket")
	defer f.Close()
	l, err := net.FileListener(f) // a copy, closed on exec
	if err != nil {
		return nil, err
	}
	t, ok := l.(*net.TCPListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("it is of %s, not TCP", l.Addr().Network())
	}
	return t, nil
}
