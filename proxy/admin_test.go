// This file holds the tests of the admin socket and of passed sockets.

package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"golang.org/x/sys/unix"

	"github.com/aval-id/aval/identity/wire"
)

// listed returns all connections that the admin socket tells of.
func listed(t *testing.T, admin wire.ProxyAdminClient, direction string) []*wire.ProxyConnection {
	t.Helper()
	stream, err := admin.Connections(t.Context(), &wire.ConnectionsRequest{Direction: direction})
	if err != nil {
		t.Fatal(err)
	}
	var all []*wire.ProxyConnection
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m.GetConnections()...)
	}
}

func TestAdminSocketTellsHowTheProxyIs(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, mode("STRICT"))
	socket := filepath.Join(t.TempDir(), "admin.sock")
	p, in := s.inbound(t, echo(t), func(c *Config) {
		c.Admin, c.Inbound[0].Name = "unix://"+socket, "api"
		balanced(ProxyProtocolAccept, localTrusted)(c)
	})
	if fi, err := os.Stat(socket); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	admin := adminClient(t, socket)
	st, err := admin.ProxyStatus(t.Context(), &wire.ProxyStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	l := st.GetListeners()[0]
	if st.GetSpiffeId() != s.api.ID.String() || st.GetNotReady() != "" || !st.GetConnected() || st.GetMaxConnections() == 0 ||
		l.GetAddress() != in || l.GetMode() != "STRICT" || l.GetModeSource() != "shop/mode" || l.GetPort() != 8080 || l.GetName() != "api" {
		t.Errorf("status: %v", st)
	}
	c := tls.Client(headed(t, in, version(1, "203.0.113.9:4711", "203.0.113.1:443")), s.client(s.web))
	if _, err := exchange(c, "ping"); err != nil {
		t.Fatal(err)
	}
	headed(t, in, "")
	eventually(t, "two connections", func() bool { return len(listed(t, admin, "inbound")) == 2 })
	states := map[string]int{}
	for _, c := range listed(t, admin, "") {
		states[c.GetState()]++
		if c.GetState() == "open" && (c.GetPeerId() != s.web.ID.String() || c.GetTransport() != "mtls" || c.GetRemote() != "203.0.113.9:4711" ||
			c.GetBytesIn() == 0 || c.GetBytesOut() == 0 || c.GetPeerNotAfter() == 0) {
			t.Errorf("connection: %v", c)
		}
	}
	if states["open"] != 1 || states["handshake"] != 1 || len(listed(t, admin, "outbound")) != 0 {
		t.Errorf("states: %v", states)
	}
	stream, err := admin.Connections(t.Context(), &wire.ConnectionsRequest{Direction: "up"})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a direction that is none: %v", err)
	}
	s.agent.deny(s.api.ID.String())
	eventually(t, "it says what is wrong", func() bool {
		st, err := admin.ProxyStatus(t.Context(), &wire.ProxyStatusRequest{})
		return err == nil && strings.Contains(st.GetWithdrawn(), "no identity issued") && st.GetNotReady() != "" && p.Ready() != nil
	})
}

func TestAdminSocketServesBeforeTheAgentDoes(t *testing.T) {
	s := newScene(t)
	socket := filepath.Join(t.TempDir(), "admin.sock")
	_, stop := startProxy(t, Config{Agent: s.agent.socket, Identity: s.api.ID, Admin: socket,
		Inbound: []Inbound{{Listen: "127.0.0.1:0", Forward: "127.0.0.1:1"}}})
	eventually(t, "the socket", func() bool { _, err := os.Stat(socket); return err == nil })
	st, err := adminClient(t, socket).ProxyStatus(t.Context(), &wire.ProxyStatusRequest{})
	if err != nil || !strings.Contains(st.GetNotReady(), "no complete snapshot") {
		t.Errorf("%v, %v", st, err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(socket); err == nil {
		t.Error("the socket is left")
	}
}

func TestDrainByAnOperatorEndsTheProxy(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	socket := filepath.Join(t.TempDir(), "admin.sock")
	p, err := New(Config{Agent: s.agent.socket, Identity: s.api.ID, Admin: socket,
		Inbound: []Inbound{{Listen: "127.0.0.1:0", Forward: echo(t)}}})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- p.Run(t.Context()) }()
	<-p.Started()
	in := p.Status().Inbound[0]
	c := tls.Client(mustDial(t, in), s.client(s.web))
	if _, err := exchange(c, "before"); err != nil {
		t.Fatal(err)
	}
	admin := adminClient(t, socket)
	drain, err := admin.Drain(t.Context(), &wire.DrainRequest{Deadline: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := drain.Recv(); err != nil || m.GetOpen() != 1 || m.GetDone() {
		t.Fatalf("%v, %v", m, err)
	}
	<-p.Draining()
	eventually(t, "no new connections", func() bool {
		_, err := net.DialTimeout("tcp", in, time.Second)
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	if st, err := admin.ProxyStatus(t.Context(), &wire.ProxyStatusRequest{}); err != nil || !st.GetDraining() {
		t.Errorf("%v, %v", st, err)
	}
	if got, err := exchange(c, "while draining"); err != nil || got != "while draining" {
		t.Errorf("%q, %v", got, err)
	}
	c.Close()
	if err := <-ended; !errors.Is(err, ErrDrained) {
		t.Error(err)
	}
}

func TestDrainCanBeHurried(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"operator", "signal"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			s.publish(t, "")
			socket := filepath.Join(t.TempDir(), "admin.sock")
			p, err := New(Config{Agent: s.agent.socket, Identity: s.api.ID, Admin: socket, Limits: Limits{Drain: 200 * time.Millisecond},
				Inbound: []Inbound{{Listen: "127.0.0.1:0", Forward: echo(t)}}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- p.Run(ctx) }()
			<-p.Started()
			c := mustDial(t, p.Status().Inbound[0])
			if _, err := exchange(c, "before"); err != nil {
				t.Fatal(err)
			}
			admin := adminClient(t, socket)
			drain := func(deadline time.Duration) {
				stream, err := admin.Drain(t.Context(), &wire.DrainRequest{Deadline: deadline.Milliseconds()})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := stream.Recv(); err != nil {
					t.Error(err)
				}
			}
			drain(time.Hour)
			<-p.Draining()
			if how == "operator" {
				drain(50 * time.Millisecond)
			} else {
				cancel()
			}
			select {
			case err := <-ended:
				if !errors.Is(err, ErrDrained) {
					t.Error(err)
				}
			case <-time.After(8 * time.Second):
				t.Fatal("it still drains")
			}
		})
	}
}

// asNobody runs f on a thread that is of another user, and ends the thread. It
// is never the main thread, which doesn't end, and by which the kernel tells
// whose the process is. A change of user also hides the process's descriptors
// (proc(5)), which is taken back.
func asNobody(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // unlocked on the main thread alone: another ends with the goroutine
		if unix.Gettid() == os.Getpid() {
			asNobody(f) // held meanwhile, so that it runs on another
			runtime.UnlockOSThread()
			return
		}
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			panic(errno)
		}
		f()
	}()
	<-done
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
		panic(err)
	}
}

func TestAdminSocketIsForItsOwnersAlone(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can act as another user")
	}
	s := newScene(t)
	s.publish(t, "")
	dir := privateDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 0, 0); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "admin.sock")
	s.inbound(t, echo(t), func(c *Config) { c.Admin = socket })
	var c net.Conn
	var err error
	asNobody(func() { c, err = net.Dial("unix", socket) })
	if !errors.Is(err, syscall.EACCES) {
		t.Errorf("another user's connection: %v", err)
	}
	// Even where the file lets them in, the kernel's word counts.
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	asNobody(func() { c, err = net.Dial("unix", socket) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n > 0 || isTimeout(err) {
		t.Errorf("%d bytes, %v", n, err)
	}
	if _, err := adminClient(t, socket).ProxyStatus(t.Context(), &wire.ProxyStatusRequest{}); err != nil {
		t.Errorf("its owner: %v", err)
	}
	// A directory in which others could replace it is refused.
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	p, err := New(Config{Agent: s.agent.socket, Identity: s.api.ID, Admin: filepath.Join(dir, "other.sock"),
		Inbound: []Inbound{{Listen: "127.0.0.1:0", Forward: "127.0.0.1:1"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "0777") {
		t.Errorf("%v", err)
	}
}

// passed opens a socket as another process would have.
func passed(t *testing.T, name string) Socket {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return Socket{name, l.(*net.TCPListener)}
}

func TestPassedSocketsAreMatchedByNameOrAddress(t *testing.T) {
	s := newScene(t)
	s.publish(t, "")
	named, placed := passed(t, "api"), passed(t, "whatever")
	cfg := Config{Agent: s.agent.socket, Identity: s.api.ID, Sockets: []Socket{placed, named}, Inbound: []Inbound{
		{Name: "api", Listen: "192.0.2.1:1", Forward: echo(t)},
		{Listen: placed.Listener.Addr().String(), Forward: echo(t)},
	}}
	p, _ := runProxy(t, cfg)
	for i, want := range []Socket{named, placed} {
		if got := p.Status().Inbound[i]; got != want.Listener.Addr().String() {
			t.Errorf("listener %d is at %s", i, got)
		} else if _, err := callTo(got, s.client(s.web)); err != nil {
			t.Error(err)
		}
	}
	stray := cfg
	stray.Sockets = append([]Socket{passed(t, "stray")}, cfg.Sockets...)
	if _, err := New(stray); err == nil || !strings.Contains(err.Error(), "stray") {
		t.Errorf("a socket that nobody serves: %v", err)
	}
	twice := cfg
	twice.Inbound = append(twice.Inbound, twice.Inbound[1])
	if _, err := New(twice); err == nil || !strings.Contains(err.Error(), "two listeners") {
		t.Errorf("a socket for two: %v", err)
	}
	for address, want := range map[string]bool{
		":8443": true, "0.0.0.0:8443": true, "[::]:8443": true, "127.0.0.1:8443": false, "0.0.0.0:8444": false, "what": false, "host:8443": false,
	} {
		if got := sameAddress(address, &net.TCPAddr{IP: net.IPv6unspecified, Port: 8443}); got != want {
			t.Errorf("%s: %v", address, got)
		}
	}
}

func TestWrongOperationIsRefusedByName(t *testing.T) {
	for want, text := range map[string]string{
		"proxyProtocol":     strings.Replace(goodConfig, "port: 9090", "proxyProtocol: maybe", 1),
		"trustedProxies":    strings.Replace(goodConfig, "port: 9090", "proxyProtocol: require", 1),
		"nobody's header":   strings.Replace(goodConfig, "port: 9090", "trustedProxies: [10.0.0.0/8]", 1),
		"10.0.0.1":          strings.Replace(goodConfig, "port: 9090", "proxyProtocol: accept, trustedProxies: [10.0.0.1]", 1),
		"IPv4 prefix":       strings.Replace(goodConfig, "port: 9090", "proxyProtocol: accept, trustedProxies: ['::ffff:10.0.0.0/104']", 1),
		"sendProxyProtocol": strings.Replace(goodConfig, "port: 9090", "sendProxyProtocol: v3", 1),
		"outbound[0]":       strings.Replace(goodConfig, "dial: ", "sendProxyProtocol: 1, dial: ", 1),
		"onPeerExpiry":      goodConfig + "onPeerExpiry: burn\n",
		"onIdentityLost":    goodConfig + "onIdentityLost: burn\n",
		"admin":             goodConfig + "admin: run/admin.sock\n",
		"two listeners":     strings.Replace(strings.Replace(goodConfig, "port: 9090", "name: a", 1), "dial: ", "name: a, dial: ", 1),
		"duration":          strings.Replace(goodConfig, "handshakeTimeout: 3s", "idleTimeout: -3s", 1),
		"number":            strings.Replace(goodConfig, "handshakeTimeout: 3s", "maxHandshakes: -3", 1),
	} {
		if _, err := ParseConfig("proxy.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "proxy.yaml") {
			t.Errorf("%s: %v", want, err)
		}
	}
	good := strings.Replace(goodConfig, "port: 9090", "name: api, proxyProtocol: accept, trustedProxies: [10.0.0.7/8, '2001:db8::/32'], sendProxyProtocol: v2", 1) +
		"admin: unix:///run/aval/proxy/admin.sock\nonPeerExpiry: drain\nonIdentityLost: cut\n"
	cfg, err := ParseConfig("proxy.yaml", []byte(good))
	if err != nil || cfg.OnPeerExpiry != Drain || cfg.OnIdentityLost != Cut || cfg.Inbound[0].Name != "api" {
		t.Errorf("%+v, %v", cfg, err)
	}
}
