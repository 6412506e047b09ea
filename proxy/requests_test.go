// This file holds the tests of how requests are judged, and of what the
// application is told of the peer.

package proxy

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
)

// shopRules let web read under /shop, and write with a header.
var shopRules = rules("shop", "ALLOW", `
  {from: [{source: {principals: ["example.org`+webPath+`"]}}], to: [{operation: {methods: [GET], paths: ["/shop/*"], hosts: ["api.shop"]}}]},
  {to: [{operation: {methods: [PUT]}}], when: [{key: "request.headers[x-token]", values: ["good"]}]}`)

func TestEachRequestIsJudgedByItself(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+shopRules)
	app := newSite(t, nil)
	_, in := s.requestsTo(t, app.address(), nil)
	both(t, func(t *testing.T, two bool) {
		c := s.httpClient(t, in, s.web, two)
		for _, tt := range []struct {
			method, host, path, token string
			want                      int
		}{
			{"GET", "api.shop", "/shop/1", "", 200},
			{"GET", "API.shop.", "/shop/1", "", 200},
			{"GET", "api.shop:8080", "/shop/1?q", "", 200},
			{"GET", "api.shop", "/stock", "", 403},
			{"GET", "other.shop", "/shop/1", "", 403},
			{"POST", "api.shop", "/shop/1", "", 403},
			{"PUT", "any.shop", "/x", "good", 200},
			{"PUT", "any.shop", "/x", "bad", 403},
			{"PUT", "any.shop", "/x", "", 403},
			{"GET", "api.shop", "/shop/2", "", 200},
		} {
			r := newRequest(t, tt.method, "https://"+in+tt.path, nil)
			r.Host = tt.host
			if tt.token != "" {
				r.Header.Set("X-Token", tt.token)
			}
			got, body := ask(t, c, r)
			if got != tt.want {
				t.Errorf("%s %s%s token %q: %d, want %d", tt.method, tt.host, tt.path, tt.token, got, tt.want)
			}
			if got == 403 && body != "Forbidden\n" {
				t.Errorf("a refusal says %q", body)
			}
		}
	})
	e := s.agent.waitFor(10, reason("inbound", audit.ReasonPolicyDenied))[0]
	if e.ClientID != s.web.ID.String() || e.ServerID != s.api.ID.String() || e.ClientSerial != s.web.Serial() || e.Port != 8080 ||
		e.Kind != audit.KindRequest || e.Method+" "+e.Host+e.Path != "GET api.shop/stock" || e.Transport != audit.TransportMTLS || e.Mode != "STRICT" || !slices.Contains(e.Policies, "shop/shop") {
		t.Errorf("record: %+v", e)
	}
	if all := s.agent.waitFor(2, reason("inbound", audit.ReasonAllowed)); len(all) != 2 {
		t.Errorf("connections are recorded %d times", len(all))
	}
}

func TestConnectionLevelPoliciesHoldForRequestsToo(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	app := newSite(t, nil)
	_, in := s.requestsTo(t, app.address(), nil)
	c := s.httpClient(t, in, s.web, true)
	if got, _ := ask(t, c, newRequest(t, "GET", "https://"+in+"/", nil)); got != 200 {
		t.Errorf("web: %d", got)
	}
	other := s.td.SVID(t, "/ns/shop/sa/other")
	if res, err := s.httpClient(t, in, other, false).Get("https://" + in + "/"); err == nil {
		t.Errorf("another peer: %s", res.Status)
	}
	s.agent.waitFor(1, reason("inbound", audit.ReasonPolicyDenied))
	if _, err := s.httpClient(t, in, identity.SVID{}, false).Get("http://" + in + "/"); err == nil {
		t.Error("plaintext is answered where the mode is STRICT")
	}
	s.agent.waitFor(1, reason("inbound", audit.ReasonPlaintextRefused))
}

func TestPlaintextRequestsAreJudgedWithoutIdentity(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("PERMISSIVE")+rules("open", "ALLOW", `{to: [{operation: {paths: ["/health"]}}]}`))
	var got http.Header
	app := newSite(t, func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Clone() })
	for _, protocol := range []Protocol{ProtocolHTTP, ProtocolAuto} {
		_, in := s.requestsTo(t, app.address(), func(c *Config) { c.Inbound[0].Protocol = protocol })
		both(t, func(t *testing.T, two bool) {
			c := s.httpClient(t, in, identity.SVID{}, two)
			r := newRequest(t, "GET", "http://"+in+"/health", nil)
			r.Header.Set("Aval-Peer-Id", "spiffe://example.org/ns/shop/sa/admin")
			r.Header.Set("X-Forwarded-Client-Cert", "URI=spiffe://example.org/ns/shop/sa/admin")
			if code, _ := ask(t, c, r); code != 200 {
				t.Errorf("%s /health: %d", protocol, code)
			}
			if got.Get("Aval-Peer-Id") != "" || got.Get("X-Forwarded-Client-Cert") != "" {
				t.Errorf("the application is told %v", got)
			}
			if code, _ := ask(t, c, newRequest(t, "GET", "http://"+in+"/", nil)); code != 403 {
				t.Errorf("%s /: %d", protocol, code)
			}
		})
	}
}

// TestWhatThePeerSaysOfItselfNeverArrives tries every way to bring a forged
// identity to the application.
func TestWhatThePeerSaysOfItselfNeverArrives(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	type told struct{ header, trailer http.Header }
	seen := make(chan told, 10)
	app := newSite(t, func(_ http.ResponseWriter, r *http.Request) {
		new(bytes.Buffer).ReadFrom(r.Body)
		seen <- told{r.Header.Clone(), r.Trailer.Clone()}
	})
	_, in := s.requestsTo(t, app.address(), nil)
	check := func(t *testing.T) {
		t.Helper()
		got := <-seen
		for name, values := range got.header {
			if strings.Contains(strings.Join(values, " "), "forged") {
				t.Errorf("%s: %q arrives", name, values)
			}
		}
		if len(got.trailer["Aval-Peer-Id"]) > 0 {
			t.Errorf("trailer: %v", got.trailer)
		}
		cert := got.header.Get("X-Forwarded-Client-Cert")
		if id := got.header["Aval-Peer-Id"]; len(id) != 1 || id[0] != s.web.ID.String() ||
			!strings.HasPrefix(cert, "By="+s.api.ID.String()+";Hash=") || !strings.HasSuffix(cert, ";URI="+s.web.ID.String()) {
			t.Errorf("the application is told %q, %q", id, cert)
		}
	}
	both(t, func(t *testing.T, two bool) {
		c := s.httpClient(t, in, s.web, two)
		r := newRequest(t, "GET", "https://"+in+"/", nil)
		for _, name := range []string{"aval-peer-id", "AVAL-PEER-ID", "Aval_Peer_Id", "aval_peer-id", "x-forwarded-client-cert", "X_Forwarded_Client_Cert"} {
			r.Header[name] = []string{"forged", "forged"}
		}
		if code, _ := ask(t, c, r); code != 200 {
			t.Fatalf("%d", code)
		}
		check(t)
		r = newRequest(t, "POST", "https://"+in+"/", struct{ *strings.Reader }{strings.NewReader("x")})
		r.ContentLength, r.Trailer = -1, http.Header{"Aval-Peer-Id": {"forged"}, "X-Sum": {"1"}}
		if code, _ := ask(t, c, r); code != 200 {
			t.Fatalf("%d", code)
		}
		check(t)
	})
	for _, text := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, aval-peer-id, x-forwarded-client-cert\r\nAval-Peer-Id: forged\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nAval-Peer-Id: forged\r\n\r\n",
	} {
		if got := s.rawRequest(t, in, text); statusOf(got) != "200" {
			t.Errorf("%q", got)
		}
		check(t)
	}
}

func TestTraceContextIsForwardedOrStarted(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	got := make(chan http.Header, 1)
	app := newSite(t, func(_ http.ResponseWriter, r *http.Request) { got <- r.Header.Clone() })
	var log lines
	_, in := s.requestsTo(t, app.address(), func(c *Config) { c.AccessLog, c.AccessWriter = true, &log })
	c := s.httpClient(t, in, s.web, true)
	call := func(parents ...string) http.Header {
		r := newRequest(t, "GET", "https://"+in+"/a?secret=1", nil)
		r.Header["Traceparent"], r.Header["Tracestate"] = parents, []string{"v=1"}
		ask(t, c, r)
		return <-got
	}
	const given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	if h := call(given); h.Get("Traceparent") != given || h.Get("Tracestate") != "v=1" {
		t.Errorf("forwarded: %v", h)
	}
	for _, bad := range [][]string{nil, {"x"}, {given, given}, {"00-00000000000000000000000000000000-00f067aa0ba902b7-01"}, {strings.ToUpper(given)}, {given + "-x"}} {
		if h := call(bad...); len(h["Traceparent"]) != 1 || len(h.Get("Traceparent")) != 55 || h.Get("Traceparent") == given || h.Get("Tracestate") != "" {
			t.Errorf("after %q: %v", bad, h)
		}
	}
	eventually(t, "seven lines", func() bool { return strings.Count(log.String(), "\n") == 7 })
	line, _, _ := strings.Cut(log.String(), "\n")
	var e struct {
		Method, Path, Verdict string
		Status                int
		ClientID              string `json:"client_id"`
		TraceID               string `json:"trace_id"`
	}
	if err := json.Unmarshal([]byte(line), &e); err != nil || e.Method != "GET" || e.Path != "/a" || e.Status != 200 ||
		e.Verdict != "allowed" || e.ClientID != s.web.ID.String() || e.TraceID != given[3:35] {
		t.Errorf("access log: %s, %v", line, err)
	}
	if strings.Contains(log.String(), "secret") {
		t.Error("the access log has the query")
	}
}

// lines is a writer that can be read meanwhile.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestFieldsOfHTTPAreDroppedWhereAConnectionIsNot(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+rules("paths", "ALLOW", `{to: [{operation: {paths: ["/x"]}}]}`))
	var log lines
	logged := func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) }
	_, in := s.inbound(t, echo(t), logged)
	c := s.dialTLS(t, in)
	if got, err := exchange(c, "lower case, so not HTTP"); err == nil {
		t.Errorf("the ALLOW rule held without its path: %q", got)
	}
	s.agent.waitFor(1, reason("inbound", audit.ReasonPolicyDenied))
	if got := log.String(); !strings.Contains(got, "port=8080") || !strings.Contains(got, "shop/paths") || !strings.Contains(got, "paths") {
		t.Errorf("log: %s", got)
	}
	// The same port takes a stream that the policies allow as such.
	s.publish(t, mode("STRICT")+rules("paths", "ALLOW", `{to: [{operation: {paths: ["/x"]}}]}`)+allow("example.org"+webPath))
	eventually(t, "a stream is forwarded", func() bool {
		c := s.dialTLS(t, in)
		got, err := exchange(c, "ping me")
		return err == nil && got == "ping me"
	})
}

func TestAnApplicationThatDoesNotAnswerIs502(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	app := newSite(t, nil)
	_, in := s.requestsTo(t, app.address(), nil)
	app.Close()
	both(t, func(t *testing.T, two bool) {
		if got, body := ask(t, s.httpClient(t, in, s.web, two), newRequest(t, "GET", "https://"+in+"/", nil)); got != 502 || body != "Bad Gateway\n" {
			t.Errorf("%d %q", got, body)
		}
	})
}

func TestIdleConnectionsDoNotHoldUpTheDrain(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	app := newSite(t, nil)
	cfg := Config{Agent: s.agent.socket, Identity: s.api.ID,
		Inbound: []Inbound{{Listen: "127.0.0.1:0", Forward: app.address(), Port: 8080, Protocol: ProtocolHTTP}},
		Limits:  Limits{Drain: 20 * time.Second}}
	p, stop := runProxy(t, cfg)
	in := p.Status().Inbound[0]
	both(t, func(t *testing.T, two bool) {
		ask(t, s.httpClient(t, in, s.web, two), newRequest(t, "GET", "https://"+in+"/", nil))
	})
	began := time.Now()
	if err := stop(); err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("drain: %v after %v", err, time.Since(began))
	}
}
