// This file holds the tests against real sockets; the one that is passed on
// needs a process of its own.

package systemd

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const childVariable = "AVAL_SYSTEMD_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		if err := child(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// child answers one connection on each socket that it was passed.
func child() error {
	sockets, err := Sockets(os.Getenv)
	if err != nil {
		return err
	}
	for _, s := range sockets {
		c, err := s.Listener.Accept()
		if err != nil {
			return err
		}
		fmt.Fprintf(c, "%s of %d", s.Name, len(sockets))
		c.Close()
	}
	return nil
}

func environ(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

// notifications is a notification socket of a test.
func notifications(t *testing.T) (string, func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "n")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return path, func() string {
		b := make([]byte, 1000)
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := c.Read(b)
		if err != nil {
			t.Error(err)
		}
		return string(b[:n])
	}
}

func TestStatesReachSystemd(t *testing.T) {
	path, next := notifications(t)
	s, err := New(environ("NOTIFY_SOCKET", path))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Notify(Ready, Status("serving\nall")); err != nil {
		t.Fatal(err)
	}
	if got := next(); got != "READY=1\nSTATUS=serving all" {
		t.Errorf("%q", got)
	}
	if err := (Supervisor{}).Notify(Ready); err != nil {
		t.Errorf("without systemd: %v", err)
	}
}

func TestWatchdogHearsAtHalfItsInterval(t *testing.T) {
	path, next := notifications(t)
	s, err := New(environ("NOTIFY_SOCKET", path, "WATCHDOG_USEC", "40000", "WATCHDOG_PID", strconv.Itoa(os.Getpid())))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	checks := 0
	ended := make(chan error)
	go func() { ended <- s.Watch(ctx, func() { checks++ }) }()
	for range 3 {
		if got := next(); got != alive {
			t.Errorf("%q", got)
		}
	}
	cancel()
	if err := <-ended; err != nil || checks < 3 {
		t.Errorf("%d checks, %v", checks, err)
	}
	other, err := New(environ("NOTIFY_SOCKET", path, "WATCHDOG_USEC", "40000", "WATCHDOG_PID", "1"))
	if err != nil || other.watchdog != 0 {
		t.Errorf("another process's watchdog: %v, %v", other.watchdog, err)
	}
}

func TestWrongEnvironmentIsRefused(t *testing.T) {
	for _, pairs := range [][]string{
		{"NOTIFY_SOCKET", "relative"}, {"WATCHDOG_USEC", "soon"}, {"WATCHDOG_USEC", "-1"},
	} {
		if _, err := New(environ(pairs...)); err == nil {
			t.Errorf("%q is taken", pairs)
		}
	}
	me := strconv.Itoa(os.Getpid())
	for _, pairs := range [][]string{
		{"LISTEN_PID", me, "LISTEN_FDS", "many"}, {"LISTEN_PID", me, "LISTEN_FDS", "-1"},
		{"LISTEN_PID", me, "LISTEN_FDS", "2", "LISTEN_FDNAMES", "one"},
		{"LISTEN_PID", me, "LISTEN_FDS", "1000"},
	} {
		if got, err := Sockets(environ(pairs...)); err == nil {
			t.Errorf("%q gives %v", pairs, got)
		}
	}
	if got, err := Sockets(environ("LISTEN_PID", "1", "LISTEN_FDS", "1")); got != nil || err != nil {
		t.Errorf("another process's sockets: %v, %v", got, err)
	}
}

func TestPassedSocketsAreTakenWithTheirNames(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `LISTEN_PID=$$ exec "$0"`, os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=1", "LISTEN_FDS=2", "LISTEN_FDNAMES=web:api")
	var addresses []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, l.Addr().String())
		l.Close()
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	var out strings.Builder
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"web of 2", "api of 2"} {
		c, err := net.Dial("tcp", addresses[i])
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		if err != nil || string(got) != want {
			t.Errorf("%q, %v", got, err)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, out.String())
	}
}
