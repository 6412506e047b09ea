// This file holds the tests of peers: connections, and the limits on them.

package attest

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aval-id/aval/identity/wire/socket"
)

// connect returns both ends of a Unix connection.
func connect(t *testing.T) (server, client *net.UnixConn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close(); client.Close() })
	return server, client
}

func TestThePeerIsHeldFromTheHandshakeToTheClose(t *testing.T) {
	server, _ := connect(t)
	c := NewCredentials(Limits{})
	conn, auth, err := c.Transport().ServerHandshake(server)
	if err != nil {
		t.Fatal(err)
	}
	p := auth.(*Peer)
	if p.PID() != os.Getpid() || int(p.UID) != os.Geteuid() || c.Open() != 1 {
		t.Fatalf("pid %d, uid %d, %d open", p.PID(), p.UID, c.Open())
	}
	if err := p.Alive(); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	conn.Close()
	if c.Open() != 0 || !errors.Is(p.Alive(), ErrGone) {
		t.Fatal("the hold outlives the connection")
	}
}

func TestAPeerThatEndedIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	perl := lookPath(t, "perl")
	if out, err := exec.Command(perl, "-MIO::Socket::UNIX", "-e", "IO::Socket::UNIX->new(Peer => $ARGV[0]) or die", path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	server, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if _, _, err := NewCredentials(Limits{}).Transport().ServerHandshake(server); !errors.Is(err, ErrGone) {
		t.Fatalf("got %v", err)
	}
}

func TestATraceOutlivesTheReplacementOfItsFileAndNotAnExec(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "program")
	put := func() {
		text, err := os.ReadFile(lookPath(t, "sh"))
		if err == nil {
			err = os.WriteFile(binary+".new", text, 0o755)
		}
		if err == nil {
			err = os.Rename(binary+".new", binary)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	put()
	begin := filepath.Join(dir, "go")
	p := open(t, child(t, nil, binary, "-c", "while [ ! -e "+begin+" ]; do sleep 0.02; done; exec sleep 1000").Process.Pid)
	until(t, "the program", func() bool { a, err := p.Attributes(nil); return err == nil && slices.Equal(a[Path], []string{binary}) })
	first, err := p.Trace()
	if err != nil {
		t.Fatal(err)
	}
	put() // an upgrade under the running program
	until(t, "no path", func() bool { a, err := p.Attributes(nil); return err == nil && a[Path] == nil })
	if again, err := p.Trace(); err != nil || again != first {
		t.Fatalf("%+v is not %+v: %v", again, first, err)
	}
	if err := os.WriteFile(begin, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	until(t, "another trace", func() bool { now, err := p.Trace(); return err == nil && now != first })
}

func TestWithoutPeerPidfdTheUidMustBeTheOneThatConnected(t *testing.T) {
	p, err := peerByPID(os.Getpid(), uint32(os.Geteuid()))
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	if _, err := peerByPID(os.Getpid(), uint32(os.Geteuid()+1)); !errors.Is(err, ErrGone) {
		t.Fatalf("got %v", err)
	}
}

func TestConnectionsAreLimitedInTotalAndForEachUser(t *testing.T) {
	for name, limits := range map[string]Limits{"total": {Connections: 2}, "uid": {ConnectionsPerUID: 2}} {
		c := NewCredentials(limits)
		var held []net.Conn
		for range 2 {
			server, _ := connect(t)
			conn, _, err := c.Transport().ServerHandshake(server)
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, conn)
		}
		server, _ := connect(t)
		if _, _, err := c.Transport().ServerHandshake(server); err == nil || !strings.Contains(err.Error(), "limit of 2") {
			t.Fatalf("%s: %v", name, err)
		}
		held[0].Close()
		server, _ = connect(t)
		conn, _, err := c.Transport().ServerHandshake(server)
		if err != nil {
			t.Fatalf("%s: after a close: %v", name, err)
		}
		conn.Close()
		held[1].Close()
	}
}

func TestAfterManyUsersThatWantAllConnectionsRoomIsLeft(t *testing.T) {
	const total = 8192
	c := NewCredentials(Limits{})
	fill := func(uid uint32) (n int) {
		for c.take(socket.Peer{UID: uid}) == nil {
			n++
		}
		return n
	}
	self := uint32(os.Geteuid())
	for greedy := 1; greedy <= 25; greedy++ {
		fill(self + uint32(greedy))
		if err := c.take(socket.Peer{UID: self + 1000}); err != nil {
			t.Fatalf("after %d users that take all they get: %v", greedy, err)
		}
		c.give(self + 1000)
	}
	if first, last := c.byUID[self+1], c.byUID[self+25]; first > total/2 || last < few {
		t.Errorf("the first has %d connections, the last %d", first, last)
	}
	if n := fill(self); n < total/reserved {
		t.Errorf("%d connections are left for the agent's user", n)
	}
	if c.open > total {
		t.Errorf("%d connections are open", c.open)
	}
	// What is given back is there for all.
	for c.byUID[self+1] > 0 {
		c.give(self + 1)
	}
	if n := fill(self + 1000); n < total/8 {
		t.Errorf("only %d connections after some were closed", n)
	}
}
