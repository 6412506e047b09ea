// This file holds the tests of the PROXY protocol at the listeners, and of
// the limits for each source, which it lets a test choose.

package proxy

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/proxy/proxyprotocol"
)

var (
	localTrusted = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	elsewhere    = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	client6      = netip.MustParseAddrPort("[2001:db8::7]:7000")
)

// balanced makes api's listener one behind a load balancer.
func balanced(p ProxyProtocol, trusted []netip.Prefix) func(*Config) {
	return func(c *Config) { c.Inbound[0].ProxyProtocol, c.Inbound[0].TrustedProxies = p, trusted }
}

// headed sends a header in front of everything.
func headed(t testing.TB, address string, header string) net.Conn {
	t.Helper()
	c := mustDial(t, address)
	if _, err := io.WriteString(c, header); err != nil {
		t.Fatal(err)
	}
	return c
}

func version(v int, source, destination string) string {
	return string(proxyprotocol.Header{Version: v, Source: netip.MustParseAddrPort(source), Destination: netip.MustParseAddrPort(destination)}.Append(nil))
}

func TestHeaderOfATrustedBalancerIsBelievedAndRecorded(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	for _, kind := range []ProxyProtocol{ProxyProtocolAccept, ProxyProtocolRequire} {
		_, in := s.inbound(t, echo(t), balanced(kind, localTrusted))
		for v := 1; v <= 2; v++ {
			remote := fmt.Sprintf("203.0.113.%d:471%d", len(kind), v)
			header := version(v, remote, "198.51.100.1:443")
			// In plaintext byte by byte, and with mutual TLS in one piece.
			c := mustDial(t, in)
			for _, b := range []byte(header) {
				c.Write([]byte{b})
			}
			if got, err := exchange(c, "ping"); err != nil || got != "ping" {
				t.Fatalf("plaintext: %q, %v", got, err)
			}
			if got, err := exchange(tls.Client(headed(t, in, header), s.client(s.web)), "ping"); err != nil || got != "ping" {
				t.Fatalf("mutual TLS: %q, %v", got, err)
			}
			for _, e := range s.agent.waitFor(2, func(e audit.Event) bool { return e.Remote == remote }) {
				if e.Verdict != audit.VerdictAllowed || !strings.HasPrefix(e.Source, "127.0.0.1:") {
					t.Errorf("record: %+v", e)
				}
			}
		}
		// A health check speaks for the balancer itself.
		if got, err := exchange(headed(t, in, "PROXY UNKNOWN\r\n"), "ping"); err != nil || got != "ping" {
			t.Errorf("%s: health check: %q, %v", kind, got, err)
		}
	}
}

func TestPoliciesJudgeTheAddressThatATrustedBalancerTells(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, `
apiVersion: aval.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: not-from-there, namespace: shop}
spec:
  action: DENY
  rules: [{from: [{source: {remoteIpBlocks: [203.0.113.0/24]}}]}]
`)
	_, in := s.inbound(t, echo(t), balanced(ProxyProtocolRequire, localTrusted))
	for remote, allowed := range map[string]bool{"203.0.113.9:1": false, "198.51.100.9:1": true} {
		header := version(2, remote, "192.0.2.1:443")
		for name, c := range map[string]net.Conn{"plaintext": headed(t, in, header), "mutual TLS": tls.Client(headed(t, in, header), s.client(s.web))} {
			if got, err := exchange(c, "ping"); (err == nil && got == "ping") != allowed {
				t.Errorf("%s from %s: %q, %v", name, remote, got, err)
			}
		}
	}
}

func TestSpoofedHeaderIsNeverBelieved(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	reached := make(chan struct{}, 8)
	_, in := s.inbound(t, app(t, func(c *net.TCPConn) { reached <- struct{}{}; io.Copy(c, c) }), balanced(ProxyProtocolAccept, elsewhere))
	for v := 1; v <= 2; v++ {
		s.agent.change(func() { s.agent.events = nil })
		if err := gone(headed(t, in, version(v, "10.0.0.1:1", "10.0.0.2:2")+"ping\n")); err != nil {
			t.Error(err)
		}
		if e := s.agent.waitFor(1, reason("inbound", audit.ReasonProxyProtocol))[0]; e.Remote != "" || e.Verdict != audit.VerdictDenied {
			t.Errorf("record: %+v", e)
		}
	}
	select {
	case <-reached:
		t.Error("the application was reached")
	default:
	}
	// Without a header anyone may come, for themselves.
	if got, err := callTo(in, s.client(s.web)); err != nil || got != "ping" {
		t.Errorf("%q, %v", got, err)
	}
	_, required := s.inbound(t, echo(t), balanced(ProxyProtocolRequire, elsewhere))
	if _, err := callTo(required, s.client(s.web)); err == nil {
		t.Error("a source that may not speak for others was let in where a header is required")
	}
}

func TestWrongOrMissingHeaderIsRefused(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	_, in := s.inbound(t, echo(t), func(c *Config) {
		balanced(ProxyProtocolRequire, localTrusted)(c)
		c.Limits.HandshakeTimeout = 300 * time.Millisecond
	})
	for text, why := range map[string]string{
		"PROXY TCP4 1.2.3.4 5.6.7.8 1 99999\r\nping\n": audit.ReasonProxyProtocol,
		"PROXY TCP4 " + strings.Repeat("9", 200):       audit.ReasonProxyProtocol,
		"\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff":       audit.ReasonProxyProtocol,
		"GET / HTTP/1.1\r\n\r\n":                       audit.ReasonProxyProtocol,
		"PROXY TCP4 1.2.3.4 5.6":                       audit.ReasonHandshakeTimeout,
		"":                                             audit.ReasonHandshakeTimeout,
		version(1, "1.2.3.4:1", "1.2.3.4:2") + "\x16\x03\x01": audit.ReasonHandshakeTimeout,
	} {
		s.agent.change(func() { s.agent.events = nil })
		if err := gone(headed(t, in, text)); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		s.agent.waitFor(1, reason("inbound", why))
	}
}

func TestServerFirstPortTakesHeadersToo(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	_, in := s.inbound(t, greeter(t), func(c *Config) {
		balanced(ProxyProtocolAccept, localTrusted)(c)
		c.Inbound[0].Protocol = ProtocolServerFirst
	})
	for _, header := range []string{"", version(2, "203.0.113.9:1", "203.0.113.1:2")} {
		got, err := bufio.NewReader(headed(t, in, header)).ReadString('\n')
		if err != nil || got != "hello\n" {
			t.Errorf("%q: %q, %v", header, got, err)
		}
	}
}

func TestApplicationAndUpstreamAreToldForWhom(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	told := make(chan proxyprotocol.Header, 8)
	target := app(t, func(c *net.TCPConn) {
		b := make([]byte, proxyprotocol.MaxBytes)
		n, _ := io.ReadAtLeast(c, b, 16)
		h, size, err := proxyprotocol.Parse(b[:n])
		if err != nil {
			t.Errorf("%q: %v", b[:n], err)
		}
		told <- h
		c.Write(b[size:n])
		io.Copy(c, c)
	})
	for i, v := range []ProxyProtocolVersion{ProxyProtocolV1, ProxyProtocolV2} {
		// The balancer's word is passed on, and so is a direct client's address.
		_, in := s.inbound(t, target, func(c *Config) {
			balanced(ProxyProtocolAccept, localTrusted)(c)
			c.Inbound[0].SendProxyProtocol = v
		})
		c := tls.Client(headed(t, in, version(1, client6.String(), "[2001:db8::1]:443")), s.client(s.web))
		if got, err := exchange(c, "ping"); err != nil || got != "ping" {
			t.Fatalf("%q, %v", got, err)
		}
		if h := <-told; h.Source != client6 || h.Version != i+1 {
			t.Errorf("the application was told %+v", h)
		}
		direct := mustDial(t, in)
		if got, err := exchange(direct, "ping"); err != nil || got != "ping" {
			t.Fatalf("%q, %v", got, err)
		}
		if h := <-told; h.Source != addrOf(direct.LocalAddr()) || h.Destination != addrOf(direct.RemoteAddr()) {
			t.Errorf("the application was told %+v of %s", h, direct.LocalAddr())
		}
		// An outbound proxy tells the inbound one before the handshake.
		p, _ := runProxy(t, Config{Agent: s.agent.socket, Identity: s.web.ID,
			Outbound: []Outbound{{Listen: "127.0.0.1:0", Dial: in, ID: s.api.ID, SendProxyProtocol: v}}})
		local := mustDial(t, p.Status().Outbound[0])
		if got, err := exchange(local, "ping"); err != nil || got != "ping" {
			t.Fatalf("%q, %v", got, err)
		}
		if h := <-told; h.Source != addrOf(local.LocalAddr()) {
			t.Errorf("through two proxies the application was told %+v of %s", h, local.LocalAddr())
		}
	}
}

func TestNginxBelievesTheHeader(t *testing.T) {
	t.Parallel()
	nginx := program(t, "nginx", "nginx")
	s := newScene(t)
	s.publish(t, "")
	for _, v := range []ProxyProtocolVersion{ProxyProtocolV1, ProxyProtocolV2} {
		dir, address := privateDir(t), freePort(t)
		config := strings.NewReplacer("DIR", dir, "ADDRESS", address).Replace(`
daemon off; pid DIR/pid; error_log DIR/error.log; worker_processes 1;
events {}
http {
  access_log off; client_body_temp_path DIR/b; proxy_temp_path DIR/p; fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/s;
  server { listen ADDRESS proxy_protocol; location / { return 200 "$proxy_protocol_addr\n"; } }
}`)
		if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(config), 0o644); err != nil {
			t.Fatal(err)
		}
		serve(t, dir, address, nginx, "-p", dir, "-c", filepath.Join(dir, "nginx.conf"), "-e", filepath.Join(dir, "error.log"))
		_, in := s.inbound(t, address, func(c *Config) {
			balanced(ProxyProtocolAccept, localTrusted)(c)
			c.Inbound[0].SendProxyProtocol = v
		})
		c := headed(t, in, version(2, "203.0.113.9:4711", "198.51.100.1:80"))
		fmt.Fprintf(c, "GET / HTTP/1.0\r\n\r\n")
		answer, err := io.ReadAll(c)
		if err != nil || !strings.HasSuffix(string(answer), "203.0.113.9\n") {
			t.Errorf("%s: %q, %v", v, answer, err)
		}
	}
}

func TestOneSourceCannotTakeEverything(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	p, in := s.inbound(t, echo(t), func(c *Config) {
		balanced(ProxyProtocolAccept, localTrusted)(c)
		c.Limits.MaxConnectionsPerSource, c.Limits.MaxHandshakesPerSource, c.Limits.MaxHandshakes = 3, 2, 6
	})
	// Silent handshakes of one source, then of its /64.
	for i := range 2 {
		headed(t, in, version(2, fmt.Sprintf("[2001:db8::%d]:1", i+1), "[2001:db8::f]:2"))
	}
	eventually(t, "two silent handshakes", func() bool {
		_, shaking := p.sources.Of(netip.MustParseAddr("2001:db8::1"))
		return shaking == 2
	})
	if err := gone(headed(t, in, version(2, "[2001:db8::3]:1", "[2001:db8::f]:2"))); err != nil {
		t.Error(err)
	}
	if e := s.agent.waitFor(1, reason("inbound", audit.ReasonLimit))[0]; !strings.Contains(e.Detail, "2 handshakes of one source") || e.Remote == "" {
		t.Errorf("record: %+v", e)
	}
	// Another source is served, up to its connections.
	other := version(2, "203.0.113.9:4711", "198.51.100.1:80")
	for range 3 {
		if _, err := exchange(headed(t, in, other), "ping"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := exchange(headed(t, in, other), "ping"); err == nil {
		t.Error("a fourth connection of one source was served")
	}
	// All handshakes together, once those above have their verdicts.
	eventually(t, "two handshakes left", func() bool { return p.sources.InProgress() == 2 })
	var silent []net.Conn
	for i := range 4 {
		silent = append(silent, headed(t, in, version(1, fmt.Sprintf("198.51.100.%d:1", i), "198.51.100.9:2")))
	}
	eventually(t, "six silent handshakes", func() bool { return p.sources.InProgress() == 6 })
	if _, err := callTo(in, nil); err == nil {
		t.Error("a seventh handshake was begun")
	}
	s.agent.waitFor(1, func(e audit.Event) bool { return strings.Contains(e.Detail, "6 handshakes at once") })
	for _, c := range silent {
		c.Close()
	}
	eventually(t, "room for more", func() bool { _, err := callTo(in, nil); return err == nil })
}
