// Package netnstest makes network namespaces for tests: a few machines on one
// wire, whose traffic never leaves them. It needs root and iproute2, and must
// not be imported outside tests.
package netnstest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is a network namespace with one address of each family.
type Machine struct {
	Name string // for "ip netns"
	Path string
	IPv4 string
	IPv6 string
}

var made atomic.Int32

// Pair makes two machines that are joined by a veth pair: 10.77.0.1 and
// fd77::1 here, 10.77.0.2 and fd77::2 there. They go with the test. Without
// root or the given tools the test is skipped, and says what is missing.
func Pair(t testing.TB, tools ...string) (here, there *Machine) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short leaves out what needs network namespaces")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	for _, tool := range append([]string{"ip", "nsenter"}, tools...) {
		if !has(tool) {
			t.Skipf("needs %s (packages iproute2, util-linux, nftables, iptables, curl)", tool)
		}
	}
	here, there = machine(t, 1), machine(t, 2)
	run(t, "ip", "link", "add", "veth0", "netns", here.Name, "type", "veth", "peer", "name", "veth0", "netns", there.Name)
	for _, m := range []*Machine{here, there} {
		run(t, "ip", "-n", m.Name, "address", "add", m.IPv4+"/24", "dev", "veth0")
		run(t, "ip", "-n", m.Name, "address", "add", m.IPv6+"/64", "dev", "veth0", "nodad")
		run(t, "ip", "-n", m.Name, "link", "set", "lo", "up")
		run(t, "ip", "-n", m.Name, "link", "set", "veth0", "up")
	}
	return here, there
}

func machine(t testing.TB, host int) *Machine {
	t.Helper()
	name := fmt.Sprintf("avaltest-%d-%d", os.Getpid(), made.Add(1))
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "delete", name).CombinedOutput(); err != nil {
			t.Errorf("ip netns delete %s: %v: %s", name, err, out)
		}
	})
	return &Machine{Name: name, Path: filepath.Join("/run/netns", name),
		IPv4: fmt.Sprintf("10.77.0.%d", host), IPv6: fmt.Sprintf("fd77::%d", host)}
}

func has(tool string) bool {
	if _, err := exec.LookPath(tool); err == nil {
		return true
	}
	_, err := exec.LookPath("/usr/sbin/" + tool)
	return err == nil
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// Addresses are the machine's, IPv4 first.
func (m *Machine) Addresses() []string { return []string{m.IPv4, m.IPv6} }

// Command is a command on the machine, as this user.
func (m *Machine) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + m.Path, name}, args...)...)
}

// Output runs a command on the machine as a uid, which is its gid as well, and
// returns what it printed, errors included.
func (m *Machine) Output(t testing.TB, uid int, name string, args ...string) (string, error) {
	t.Helper()
	id := fmt.Sprint(uid)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := m.Command(ctx, "setpriv", append([]string{"--reuid=" + id, "--regid=" + id, "--clear-groups", name}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// Inside calls f on a thread of the machine. What f opens belongs to the
// machine wherever it is used later.
func (m *Machine) Inside(t testing.TB, f func() error) error {
	t.Helper()
	file, err := os.Open(m.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	return <-result
}

// Listen opens a TCP listener on the machine, which closes with the test.
func (m *Machine) Listen(t testing.TB, address string) *net.TCPListener {
	t.Helper()
	var l net.Listener
	err := m.Inside(t, func() (err error) {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		l, err = lc.Listen(context.WithoutCancel(t.Context()), "tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// Dial connects from the machine, as this user.
func (m *Machine) Dial(t testing.TB, address string) (*net.TCPConn, error) {
	t.Helper()
	var c net.Conn
	err := m.Inside(t, func() (err error) {
		c, err = net.DialTimeout("tcp", address, 3*time.Second)
		return err
	})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c.(*net.TCPConn), nil
}
