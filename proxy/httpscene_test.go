// This file holds the scene of the tests of requests: clients of both
// versions of HTTP, an application that notes what reaches it, and policies.

package proxy

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aval-id/aval/identity"
)

// rules is an AuthorizationPolicy with these rules.
func rules(name, action, rules string) string {
	return fmt.Sprintf(`
---
apiVersion: aval.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: %s, namespace: shop}
spec: {action: %s, rules: [%s]}
`, name, action, rules)
}

// site is an application that notes every request.
type site struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string // guarded by mu: method, host and target
}

// newSite serves with h, or answers 200 where it is nil, over HTTP/1.1 and
// HTTP/2 without TLS.
func newSite(t testing.TB, h http.HandlerFunc) *site {
	t.Helper()
	s := &site{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r.Method+" "+r.Host+" "+r.RequestURI)
		s.mu.Unlock()
		if h != nil {
			h(w, r)
		}
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func (s *site) address() string { return s.Listener.Addr().String() }

// requests returns what has been seen and forgets it.
func (s *site) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.seen
	s.seen = nil
	return out
}

// requestsTo runs api's proxy for HTTP in front of an application.
func (s *scene) requestsTo(t testing.TB, forward string, change func(*Config)) (*Proxy, string) {
	t.Helper()
	return s.inbound(t, forward, func(c *Config) {
		c.Inbound[0].Protocol = ProtocolHTTP
		if change != nil {
			change(c)
		}
	})
}

// httpClient calls over HTTP/1.1 or HTTP/2, with an SVID or, where it is
// zero, in plaintext.
func (s *scene) httpClient(t testing.TB, address string, svid identity.SVID, two bool) *http.Client {
	t.Helper()
	p := new(http.Protocols)
	tr := &http.Transport{Protocols: p, DisableCompression: true, ExpectContinueTimeout: 5 * time.Second}
	if svid.ID.IsZero() {
		p.SetHTTP1(!two)
		p.SetUnencryptedHTTP2(two)
	} else {
		p.SetHTTP1(!two)
		p.SetHTTP2(two)
		tr.TLSClientConfig = s.client(svid)
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 8 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// both runs a test over both versions of HTTP.
func both(t *testing.T, f func(t *testing.T, two bool)) {
	for _, two := range []bool{false, true} {
		t.Run(map[bool]string{false: "HTTP1", true: "HTTP2"}[two], func(t *testing.T) { f(t, two) })
	}
}

// ask sends a request and returns status and body.
func ask(t testing.TB, c *http.Client, r *http.Request) (int, string) {
	t.Helper()
	res, err := c.Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", r.Method, r.URL, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: body: %v", r.Method, r.URL, err)
	}
	return res.StatusCode, string(body)
}

func newRequest(t testing.TB, method, url string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// rawRequest writes bytes over TLS and returns all that comes back.
func (s *scene) rawRequest(t testing.TB, address, text string) string {
	t.Helper()
	c := tls.Client(mustDial(t, address), s.client(s.web))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil && len(b) == 0 {
		t.Logf("%.40q: %v", text, err)
	}
	return string(b)
}

// statusOf is the status of a raw answer.
func statusOf(answer string) string {
	if f := strings.Fields(answer); len(f) > 1 {
		return f[1]
	}
	return ""
}

// dialTLS opens a connection of web's.
func (s *scene) dialTLS(t testing.TB, address string, protocols ...string) *tls.Conn {
	t.Helper()
	config := s.client(s.web)
	config.NextProtos = protocols
	var nc net.Conn = mustDial(t, address)
	c := tls.Client(nc, config)
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	return c
}

// listenTCP opens a port for an application.
func listenTCP(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}
