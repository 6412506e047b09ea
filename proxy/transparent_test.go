// This file holds the tests of transparent mode: two machines that are
// network namespaces, a proxy on each, and applications and clients that know
// of neither.

package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/proxy/intercept"
	"github.com/aval-id/aval/proxy/intercept/netnstest"
)

// The users of these tests, none of which needs a name.
const (
	proxyUID = 15099
	appUID   = 1000
	freeUID  = 1001 // whose connections are excluded
)

// redirectedVariable names the configuration of a child that is a proxy.
const redirectedVariable = "AVAL_TEST_PROXY"

// runRedirected is a proxy of its own process, as proxyUID, until it is
// interrupted.
func runRedirected(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(proxyUID), syscall.Setuid(proxyUID)); err != nil {
		return err
	}
	cfg, err := ParseConfig(path, text)
	if err != nil {
		return err
	}
	p, err := New(cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin) // ends with the test
		cancel()
	}()
	go func() {
		<-p.Started()
		fmt.Println("started")
	}()
	return p.Run(ctx)
}

// wired is a machine with web's proxy, one with api's, and the agent of both.
type wired struct {
	*scene
	here, there *netnstest.Machine // web's and api's
}

func newWired(t *testing.T, tools ...string) *wired {
	t.Helper()
	here, there := netnstest.Pair(t, append(tools, "setpriv")...)
	w := &wired{newScene(t), here, there}
	if err := errors.Join(os.Chmod(filepath.Dir(w.agent.socket), 0o755), os.Chmod(w.agent.socket, 0o777)); err != nil {
		t.Fatal(err)
	}
	return w
}

// proxy runs a proxy on a machine with this transparent section.
func (w *wired) proxy(t *testing.T, m *netnstest.Machine, id fmt.Stringer, transparent string) intercept.Rules {
	t.Helper()
	text := fmt.Sprintf("agent: %s\nidentity: %s\nlimits: {drain: 1s}\ntransparent:\n  user: \"%d\"\n%s", w.agent.socket, id, proxyUID, transparent)
	path := filepath.Join(t.TempDir(), "proxy.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cfg, err := ParseConfig(path, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	rules, err := cfg.Rules()
	if err != nil {
		t.Fatal(err)
	}
	cmd := redirected(t, m, path)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(60*time.Second, func() { cmd.Process.Kill() })
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("proxy ended with %v", err)
		}
		kill.Stop()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("proxy did not start: %q, %v", line, err)
	}
	return rules
}

// redirected is the command of a proxy on a machine, by its file.
func redirected(t *testing.T, m *netnstest.Machine, path string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := m.Command(context.WithoutCancel(t.Context()), self)
	cmd.Env = append(os.Environ(), redirectedVariable+"="+path)
	return cmd
}

func setup(t *testing.T, m *netnstest.Machine, r intercept.Rules) {
	t.Helper()
	if _, err := (intercept.Host{Namespace: m.Name}).Setup(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}

// serveHTTP answers HTTP on a machine with the address of whoever connected.
func serveHTTP(t *testing.T, m *netnstest.Machine, address string) {
	t.Helper()
	l := m.Listen(t, address)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s\n", r.RemoteAddr)
	})}
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
}

// curl is the client that knows of no proxy.
func curl(t *testing.T, m *netnstest.Machine, uid int, host string, port int) (string, error) {
	t.Helper()
	return m.Output(t, uid, "curl", "-sS", "-m", "5", "--noproxy", "*", fmt.Sprintf("http://%s/", net.JoinHostPort(host, fmt.Sprint(port))))
}

const bothDirections = `  inbound:
    ports: [{port: 2525, protocol: server-first}]
    exclude: {ports: [7070]}
  outbound:
    destinations:
    - {address: "10.77.0.2:8080", id: "spiffe://example.org/ns/shop/sa/api"}
    - {address: "10.77.0.2:2525", id: "spiffe://example.org/ns/shop/sa/api"}
    - {address: "[fd77::/64]:8080", id: "spiffe://example.org/ns/shop/sa/api"}
    - {address: "10.77.0.2:6060", id: "spiffe://example.org/ns/shop/sa/other"}
    exclude: {uids: [1001], destinations: [10.99.0.0/16]}
`

func TestTransparentConnectionsAreMutualTLSWithoutTheApplicationsKnowledge(t *testing.T) {
	w := newWired(t, "nft", "curl")
	w.publish(t, mode("STRICT")+allow("example.org/ns/shop/sa/web"))
	for _, port := range []string{"8080", "6060", "7070", "9090"} {
		serveHTTP(t, w.there, ":"+port)
	}
	greets(t, w.there, ":2525")
	setup(t, w.there, w.proxy(t, w.there, w.api.ID, bothDirections))
	setup(t, w.here, w.proxy(t, w.here, w.web.ID, bothDirections))

	for _, host := range w.there.Addresses() {
		out, err := curl(t, w.here, appUID, host, 8080)
		if err != nil || !strings.Contains(out, host) { // the proxy beside it
			t.Errorf("%s: %v: %s", host, err, out)
		}
		to := net.JoinHostPort(host, "8080")
		in := w.agent.waitFor(1, func(e audit.Event) bool {
			return e.Direction == audit.DirectionInbound && e.Reason == audit.ReasonAllowed && e.Destination == to
		})[0]
		if in.ClientID != w.web.ID.String() || in.Port != 8080 || in.Transport != audit.TransportMTLS {
			t.Errorf("inbound record: %+v", in)
		}
		w.agent.waitFor(1, func(e audit.Event) bool {
			return e.Direction == audit.DirectionOutbound && e.Reason == audit.ReasonAllowed && e.Destination == to && e.ServerID == w.api.ID.String()
		})
	}

	// The server speaks first, and its port is declared so.
	if line, err := readLine(w.here.Dial(t, "10.77.0.2:2525")); err != nil || line != "220 ready" {
		t.Errorf("server-first: %q, %v", line, err)
	}
	// Another identity than the configured one gets nothing.
	if out, err := curl(t, w.here, appUID, "10.77.0.2", 6060); err == nil {
		t.Errorf("wrong identity: %s", out)
	}
	w.agent.waitFor(1, reason(audit.DirectionOutbound, audit.ReasonIDMismatch))
	// An excluded user speaks plaintext, which strict refuses, but not on the
	// excluded port, which no proxy sees.
	if out, err := curl(t, w.here, freeUID, "10.77.0.2", 8080); err == nil {
		t.Errorf("plaintext in strict mode: %s", out)
	}
	w.agent.waitFor(1, reason(audit.DirectionInbound, audit.ReasonPlaintextRefused))
	if out, err := curl(t, w.here, freeUID, "10.77.0.2", 7070); err != nil || !strings.Contains(out, "hello 10.77.0.1:") {
		t.Errorf("excluded port: %v: %s", err, out)
	}
	// A destination that nobody configured is passed through and recorded.
	if out, err := curl(t, w.here, appUID, "10.77.0.2", 7070); err != nil || !strings.Contains(out, "hello 10.77.0.1:") {
		t.Errorf("passthrough: %v: %s", err, out)
	}
	e := w.agent.waitFor(1, reason(audit.DirectionOutbound, audit.ReasonPlaintextAllowed))[0]
	if e.Destination != "10.77.0.2:7070" || e.ServerID != "" || e.Transport != audit.TransportPlaintext {
		t.Errorf("passthrough record: %+v", e)
	}
	// On the machine itself nothing is intercepted.
	if out, err := curl(t, w.there, appUID, "127.0.0.1", 8080); err != nil {
		t.Errorf("local: %v: %s", err, out)
	}
}

func TestAnUnknownDestinationIsRefusedWhereTheSettingSaysSo(t *testing.T) {
	w := newWired(t, "nft", "curl")
	w.publish(t, "")
	serveHTTP(t, w.there, ":8080")
	setup(t, w.here, w.proxy(t, w.here, w.web.ID, "  outbound: {unknown: refuse}\n"))
	if out, err := curl(t, w.here, appUID, "10.77.0.2", 8080); err == nil {
		t.Errorf("refused destination: %s", out)
	}
	w.agent.waitFor(1, reason(audit.DirectionOutbound, audit.ReasonPlaintextRefused))
}

func TestAConnectionNeverComesBackToItsProxy(t *testing.T) {
	w := newWired(t, "nft", "curl")
	w.publish(t, "")
	serveHTTP(t, w.there, ":8080")
	rules := w.proxy(t, w.here, w.web.ID, "  inbound: {}\n  outbound: {}\n")
	// Rules that let another user pass hand the proxy what it dials.
	other := uint32(proxyUID + 1)
	rules.Outbound.Owner.UID = &other
	setup(t, w.here, rules)
	for _, host := range w.there.Addresses() {
		if out, err := curl(t, w.here, appUID, host, 8080); err == nil {
			t.Errorf("%s: the loop answered: %s", host, out)
		}
		loops := w.agent.waitFor(1, func(e audit.Event) bool { return e.Reason == audit.ReasonLoop && strings.Contains(e.Source, host[:4]) })
		if !strings.Contains(loops[0].Detail, "opened this connection itself") {
			t.Errorf("record: %+v", loops[0])
		}
	}
	// Many at once: each is found out at its second hop.
	const clients = 30
	var calling sync.WaitGroup
	for range clients {
		c, err := w.here.Dial(t, "10.77.0.2:8080")
		if isReset(err) {
			continue // refused before the dial was over
		}
		if err != nil {
			t.Fatal(err)
		}
		calling.Go(func() {
			if err := gone(c); err != nil {
				t.Error(err)
			}
		})
	}
	calling.Wait()
	w.agent.waitFor(2, reason(audit.DirectionOutbound, audit.ReasonLoop))
	passed := uint64(0)
	w.agent.mu.Lock()
	for _, e := range w.agent.events {
		if e.Reason == audit.ReasonPlaintextAllowed {
			passed += max(1, e.Count)
		}
	}
	w.agent.mu.Unlock()
	if passed > clients+2 {
		t.Errorf("%d connections were passed through for %d clients", passed, clients+2)
	}
}

func TestThePortsOfTheProxyItselfAreNoWayIn(t *testing.T) {
	w := newWired(t, "nft", "curl")
	w.publish(t, "")
	setup(t, w.there, w.proxy(t, w.there, w.api.ID, "  inbound: {forward: loopback}\n  outbound: {}\n"))
	serveHTTP(t, w.there, "127.0.0.1:8080")
	serveHTTP(t, w.there, "[::1]:8080")
	for _, host := range w.there.Addresses() {
		if out, err := curl(t, w.here, appUID, host, 8080); err != nil {
			t.Errorf("application on loopback, by %s: %v: %s", host, err, out)
		}
		for _, port := range []int{intercept.DefaultInboundPort, intercept.DefaultOutboundPort} {
			if out, err := curl(t, w.here, appUID, host, port); err == nil {
				t.Errorf("%s port %d answers: %s", host, port, out)
			}
		}
	}
	if out, err := curl(t, w.there, appUID, "127.0.0.1", intercept.DefaultOutboundPort); err == nil {
		t.Errorf("the outbound port answers locally: %s", out)
	}
	w.agent.waitFor(4, reason(audit.DirectionInbound, audit.ReasonLoop))
	w.agent.waitFor(1, reason(audit.DirectionOutbound, audit.ReasonLoop))
}

func TestRealServersBehindTransparentProxies(t *testing.T) {
	w := newWired(t, "nft", "curl", "nginx")
	w.publish(t, mode("STRICT"))
	setup(t, w.there, w.proxy(t, w.there, w.api.ID, "  inbound: {}\n"))
	setup(t, w.here, w.proxy(t, w.here, w.web.ID, bothDirections))
	dir := t.TempDir()
	conf := fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/error;
events {}
http { access_log off; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
server { listen 8080; listen [::]:8080; location / { return 200 "nginx saw $remote_addr\n"; } } }
`, dir)
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	nginx := w.there.Command(t.Context(), "nginx", "-c", path)
	nginx.Cancel = func() error { return nginx.Process.Signal(syscall.SIGTERM) }
	if err := nginx.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var exit *exec.ExitError
		if err := nginx.Wait(); err != nil && !errors.As(err, &exit) && !errors.Is(err, context.Canceled) {
			t.Errorf("nginx: %v", err)
		}
	})
	eventually(t, "nginx answers", func() bool {
		c, err := w.there.Dial(t, "10.77.0.2:8080")
		return err == nil && c != nil
	})
	for _, host := range w.there.Addresses() {
		if out, err := curl(t, w.here, appUID, host, 8080); err != nil || out != "nginx saw "+host+"\n" {
			t.Errorf("%s: %v: %s", host, err, out)
		}
	}
	w.agent.waitFor(2, reason(audit.DirectionInbound, audit.ReasonAllowed))
}

// greets speaks first on a machine.
func greets(t *testing.T, m *netnstest.Machine, address string) {
	t.Helper()
	l := m.Listen(t, address)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "220 ready\n")
			c.Close()
		}
	}()
}

func readLine(c *net.TCPConn, err error) (string, error) {
	if err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}
