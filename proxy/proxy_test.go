// This file holds the tests of the ordinary ways through a proxy.

package proxy

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/identitytest"
)

func TestCallThroughBothProxiesIsRecordedOnBothSides(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	_, in := s.inbound(t, echo(t), nil)
	_, out := s.outbound(t, in, s.api.ID)
	if got, err := callTo(out, nil); err != nil || got != "ping" {
		t.Fatalf("call: %q, %v", got, err)
	}
	for _, direction := range []string{audit.DirectionInbound, audit.DirectionOutbound} {
		e := s.agent.waitFor(1, reason(direction, audit.ReasonAllowed))[0]
		want := audit.Event{Verdict: audit.VerdictAllowed, ClientID: s.web.ID.String(), ServerID: s.api.ID.String(),
			ClientSerial: s.web.Serial(), ServerSerial: s.api.Serial(), TLSVersion: "1.3", Group: "X25519MLKEM768", Transport: "mtls"}
		got := audit.Event{Verdict: e.Verdict, ClientID: e.ClientID, ServerID: e.ServerID, ClientSerial: e.ClientSerial,
			ServerSerial: e.ServerSerial, TLSVersion: e.TLSVersion, Group: e.Group, Transport: e.Transport}
		if got.ClientID != want.ClientID || got.ServerID != want.ServerID || got.ClientSerial != want.ClientSerial ||
			got.ServerSerial != want.ServerSerial || got.TLSVersion != want.TLSVersion || got.Group != want.Group ||
			got.Transport != want.Transport || got.Verdict != want.Verdict {
			t.Errorf("%s record\n got %+v\nwant %+v", direction, got, want)
		}
		if direction == audit.DirectionInbound {
			if e.Policy != "shop/callers" || e.Rule == nil || *e.Rule != 0 || e.Mode != "STRICT" || e.ModeSource != "shop/mode" ||
				e.Port != 8080 || e.Generation != 1 || len(e.Policies) != 1 || e.Source == "" || e.Destination != in {
				t.Errorf("inbound record lacks what decided: %+v", e)
			}
		}
	}
}

func TestPermissivePortTakesTLSAndPlaintext(t *testing.T) {
	s := newScene(t)
	s.publish(t, "")
	_, in := s.inbound(t, echo(t), nil)
	if got, err := callTo(in, s.client(s.web)); err != nil || got != "ping" {
		t.Fatalf("mTLS: %q, %v", got, err)
	}
	if got, err := callTo(in, nil); err != nil || got != "ping" {
		t.Fatalf("plaintext: %q, %v", got, err)
	}
	named := s.client(s.web)
	named.ServerName = "API.shop"
	if got, err := callTo(in, named); err != nil || got != "ping" {
		t.Fatalf("mTLS with this workload's name: %q, %v", got, err)
	}
	e := s.agent.waitFor(1, reason("inbound", audit.ReasonPlaintextAllowed))[0]
	if e.Transport != "plaintext" || e.ClientID != "" || e.Mode != "PERMISSIVE" || e.ServerID != s.api.ID.String() {
		t.Errorf("plaintext record: %+v", e)
	}
}

func TestForeignServerNamePassesThroughUntouched(t *testing.T) {
	s := newScene(t)
	s.publish(t, "")
	own := identitytest.New(t, "other.example").SVID(t, "/app")
	config := &tls.Config{Certificates: []tls.Certificate{*own.TLSCertificate()}}
	_, in := s.inbound(t, app(t, func(c *net.TCPConn) {
		tc := tls.Server(c, config)
		io.Copy(tc, tc)
	}), nil)
	var served []byte
	got, err := callTo(in, &tls.Config{ServerName: "www.example.com", InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error { served = cs.PeerCertificates[0].Raw; return nil }})
	if err != nil || got != "ping" {
		t.Fatalf("call: %q, %v", got, err)
	}
	if !bytes.Equal(served, own.Leaf().Raw) {
		t.Error("the application's own certificate was not the one served")
	}
	e := s.agent.waitFor(1, reason("inbound", audit.ReasonPlaintextAllowed))[0]
	if e.Transport != "tls_passthrough" || e.SNI != "www.example.com" || e.ClientID != "" {
		t.Errorf("record: %+v", e)
	}
}

func TestDisabledPortOffersNoTLS(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("DISABLE"))
	_, in := s.inbound(t, greeter(t), nil)
	c := mustDial(t, in)
	got := make([]byte, 6)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello\n" {
		t.Fatalf("the application's first word: %q, %v", got, err)
	}
	if _, err := callTo(in, s.client(s.web)); err == nil {
		t.Error("a TLS handshake succeeded")
	}
}

func TestClientHelloByteByByteLosesNothing(t *testing.T) {
	s := newScene(t)
	s.publish(t, "")
	_, in := s.inbound(t, echo(t), nil)
	c := mustDial(t, in)
	tc := tls.Client(dribble{c}, s.client(s.web))
	if got, err := exchange(tc, "ping"); err != nil || got != "ping" {
		t.Fatalf("call: %q, %v", got, err)
	}
	plain := mustDial(t, in)
	if got, err := exchange(dribble{plain}, "GET / HTTP/1.0"); err != nil || got != "GET / HTTP/1.0" {
		t.Fatalf("plaintext call: %q, %v", got, err)
	}
}

// dribble writes one byte at a time, each in a segment of its own.
type dribble struct{ *net.TCPConn }

func (d dribble) Write(b []byte) (int, error) {
	for i := range b {
		if _, err := d.TCPConn.Write(b[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(b), nil
}

func TestServerFirstPort(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	serverFirst := func(c *Config) {
		c.Inbound[0].Protocol = ProtocolServerFirst
		c.Limits.ServerFirstWait = 50 * time.Millisecond
	}
	t.Run("PlaintextClientHearsTheGreeting", func(t *testing.T) {
		_, in := s.inbound(t, greeter(t), serverFirst)
		c := mustDial(t, in)
		got := make([]byte, 6)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello\n" {
			t.Fatalf("greeting: %q, %v", got, err)
		}
		if got, err := exchange(c, "ping"); err != nil || got != "ping" {
			t.Fatalf("call: %q, %v", got, err)
		}
	})
	t.Run("TLSClientHearsTheGreeting", func(t *testing.T) {
		_, in := s.inbound(t, greeter(t), serverFirst)
		tc := tls.Client(mustDial(t, in), s.client(s.web))
		got := make([]byte, 6)
		if _, err := io.ReadFull(tc, got); err != nil || string(got) != "hello\n" {
			t.Fatalf("greeting: %q, %v", got, err)
		}
	})
	t.Run("SlowClientHelloIsTLSWhileTheApplicationIsSilent", func(t *testing.T) {
		dialled := make(chan struct{}, 1)
		_, in := s.inbound(t, app(t, func(c *net.TCPConn) {
			dialled <- struct{}{}
			io.Copy(c, c)
		}), serverFirst)
		c := mustDial(t, in)
		<-dialled // the wait is over and the application silent
		tc := tls.Client(c, s.client(s.web))
		if got, err := exchange(tc, "ping"); err != nil || got != "ping" {
			t.Fatalf("call: %q, %v", got, err)
		}
	})
	t.Run("SlowPlaintextWhileTheApplicationIsSilent", func(t *testing.T) {
		dialled := make(chan struct{}, 1)
		_, in := s.inbound(t, app(t, func(c *net.TCPConn) {
			dialled <- struct{}{}
			io.Copy(c, c)
		}), serverFirst)
		c := mustDial(t, in)
		<-dialled
		if got, err := exchange(c, "ping"); err != nil || got != "ping" {
			t.Fatalf("call: %q, %v", got, err)
		}
	})
	t.Run("PlaintextDeniedDialsNothingAndStillTakesTLS", func(t *testing.T) {
		s.publish(t, allow("example.org"+webPath))
		dialled := make(chan struct{}, 1)
		_, in := s.inbound(t, app(t, func(c *net.TCPConn) {
			dialled <- struct{}{}
			io.Copy(c, c)
		}), func(c *Config) { serverFirst(c); c.Limits.HandshakeTimeout = 1500 * time.Millisecond })
		if err := gone(mustDial(t, in)); err != nil {
			t.Fatal(err)
		}
		select {
		case <-dialled:
			t.Error("the application was dialled for a refused peer")
		default:
		}
		s.agent.waitFor(1, reason("inbound", audit.ReasonPolicyDenied))
		if got, err := callTo(in, s.client(s.web)); err != nil || got != "ping" {
			t.Fatalf("call: %q, %v", got, err)
		}
	})
}

func TestHalfCloseReachesTheOtherSide(t *testing.T) {
	s := newScene(t)
	s.publish(t, "")
	// The application answers only when it has seen the end of the request.
	counter := app(t, func(c *net.TCPConn) {
		n, _ := io.Copy(io.Discard, c)
		buf := bytes.Repeat([]byte("x"), int(n))
		c.Write(buf)
	})
	_, in := s.inbound(t, counter, nil)
	_, out := s.outbound(t, in, s.api.ID)
	for name, address := range map[string]string{"through both": out, "plaintext": in} {
		c := mustDial(t, address)
		const size = 3_000_000 // enough for the plaintext path to splice
		if _, err := c.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		c.CloseWrite()
		got, err := io.Copy(io.Discard, c)
		if err != nil || got != size {
			t.Errorf("%s: %d bytes, %v", name, got, err)
		}
	}
}

func TestBulkArrivesWhole(t *testing.T) {
	s := newScene(t)
	s.publish(t, "")
	_, in := s.inbound(t, echo(t), nil)
	_, out := s.outbound(t, in, s.api.ID)
	data := make([]byte, 24<<20)
	rand.Read(data)
	for name, address := range map[string]string{"through both": out, "plaintext": in} {
		c := mustDial(t, address)
		go func() {
			c.Write(data)
			c.CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d of %d bytes, %v", name, len(got), len(data), err)
		}
	}
}

func TestRotationTouchesNoOpenConnection(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT"))
	p, in := s.inbound(t, echo(t), nil)
	tc := tls.Client(mustDial(t, in), s.client(s.web))
	if _, err := exchange(tc, "before"); err != nil {
		t.Fatal(err)
	}
	old := s.api.Serial()
	generation := p.Status().Generation
	s.api = s.td.SVID(t, apiPath)
	s.publish(t, mode("STRICT"))
	eventually(t, "new certificate", func() bool { return p.Status().Serial == s.api.Serial() })
	if p.Status().Generation != generation {
		t.Error("a new certificate compiled the policies again")
	}
	if got, err := exchange(tc, "after"); err != nil || got != "after" {
		t.Fatalf("open connection after rotation: %q, %v", got, err)
	}
	if _, err := callTo(in, s.client(s.web)); err != nil {
		t.Fatal(err)
	}
	events := s.agent.waitFor(2, reason("inbound", audit.ReasonAllowed))
	if events[0].ServerSerial != old || events[1].ServerSerial != s.api.Serial() {
		t.Errorf("serials of the records: %s, %s", events[0].ServerSerial, events[1].ServerSerial)
	}
}

func TestPolicyChangeClosesWhatIsNoLongerAllowed(t *testing.T) {
	s := newScene(t)
	s.publish(t, "")
	_, in := s.inbound(t, echo(t), nil)
	other := s.td.SVID(t, "/ns/shop/sa/other")
	web := tls.Client(mustDial(t, in), s.client(s.web))
	cut := tls.Client(mustDial(t, in), s.client(other))
	plain := mustDial(t, in)
	for _, c := range []net.Conn{web, cut, plain} {
		if _, err := exchange(c, "before"); err != nil {
			t.Fatal(err)
		}
	}
	changed := time.Now()
	s.publish(t, allow("example.org"+webPath))
	for _, c := range []net.Conn{cut, plain} {
		if err := gone(c); err != nil {
			t.Error(err)
		}
	}
	if d := time.Since(changed); d > time.Second {
		t.Errorf("closed %v after the change", d)
	}
	if got, err := exchange(web, "after"); err != nil || got != "after" {
		t.Errorf("the allowed connection: %q, %v", got, err)
	}
	ids := map[string]bool{}
	for _, e := range s.agent.waitFor(2, reason("inbound", audit.ReasonPolicyChanged)) {
		ids[e.ClientID] = true
		if e.Generation != 2 || e.Verdict != audit.VerdictDenied {
			t.Errorf("record: %+v", e)
		}
	}
	if !ids[other.ID.String()] || !ids[""] {
		t.Errorf("records are of %v", ids)
	}
}

func TestOutboundPinsTheUpstream(t *testing.T) {
	s := newScene(t)
	s.publish(t, "")
	_, in := s.inbound(t, echo(t), nil)
	wrong, err := identity.ParseID("spiffe://example.org/ns/shop/sa/db")
	if err != nil {
		t.Fatal(err)
	}
	_, out := s.outbound(t, in, wrong)
	if _, err := callTo(out, nil); err == nil {
		t.Fatal("a call reached an upstream of another identity")
	}
	e := s.agent.waitFor(1, reason("outbound", audit.ReasonIDMismatch))[0]
	if e.ServerID != s.api.ID.String() || e.ClientID != s.web.ID.String() || e.Verdict != audit.VerdictDenied {
		t.Errorf("record: %+v", e)
	}
}

func TestOutboundLearnsOfARefusal(t *testing.T) {
	s := newScene(t)
	s.publish(t, allow("example.org/ns/shop/sa/nobody"))
	_, in := s.inbound(t, echo(t), nil)
	_, out := s.outbound(t, in, s.api.ID)
	if _, err := callTo(out, nil); err == nil {
		t.Fatal("a refused call was answered")
	}
	e := s.agent.waitFor(1, func(e audit.Event) bool { return e.Direction == "outbound" })[0]
	if e.Verdict != audit.VerdictDenied || e.Reason != audit.ReasonHandshakeFailed {
		t.Errorf("outbound record: %+v", e)
	}
	e = s.agent.waitFor(1, reason("inbound", audit.ReasonPolicyDenied))[0]
	if e.ClientID != s.web.ID.String() || len(e.Policies) != 1 || e.Policies[0] != "shop/callers" {
		t.Errorf("inbound record: %+v", e)
	}
}

func TestUnreachableUpstreamIsRecorded(t *testing.T) {
	s := newScene(t)
	s.publish(t, "")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	l.Close()
	_, in := s.inbound(t, closed, nil)
	_, out := s.outbound(t, closed, s.api.ID)
	for _, address := range []string{in, out} {
		if _, err := callTo(address, nil); err == nil {
			t.Error("a call was answered by nobody")
		}
	}
	if _, err := callTo(in, s.client(s.web)); err == nil {
		t.Error("a call was answered by nobody")
	}
	s.agent.waitFor(2, reason("inbound", audit.ReasonUpstreamUnreachable))
	s.agent.waitFor(1, reason("outbound", audit.ReasonUpstreamUnreachable))
}

func TestALPNIsAgreedOnWhereItIsConfigured(t *testing.T) {
	s := newScene(t)
	s.publish(t, "")
	_, in := s.inbound(t, echo(t), func(c *Config) { c.Inbound[0].ALPN = []string{"h2"} })
	config := s.client(s.web)
	config.NextProtos = []string{"h2", "http/1.1"}
	tc := tls.Client(mustDial(t, in), config)
	if _, err := exchange(tc, "ping"); err != nil || tc.ConnectionState().NegotiatedProtocol != "h2" {
		t.Errorf("protocol %q, %v", tc.ConnectionState().NegotiatedProtocol, err)
	}
	config = s.client(s.web)
	config.NextProtos = []string{"smtp"}
	if _, err := callTo(in, config); err == nil {
		t.Error("a protocol that is not served was taken")
	}
	s.agent.waitFor(1, reason("inbound", audit.ReasonSNIOrALPN))
}
