// This file holds the tests of everything that a proxy must refuse, and of
// the limits that keep refusing cheap.

package proxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/identitytest"
)

func TestStrictPortRefusesAndRecords(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath, "example.org/aval/*"))
	_, in := s.inbound(t, echo(t), func(c *Config) { c.Limits.HandshakeTimeout = 1500 * time.Millisecond })
	now := time.Now()
	foreign := identitytest.New(t, "evil.example")
	twin := identitytest.New(t, "example.org") // the same name, another root
	key := identitytest.Key(t)
	good := s.td.Leaf(t, webPath, key.Public())
	from := func(d *identitytest.TrustDomain, leaf *x509.Certificate) *tls.Config {
		return rawClient(key, leaf, d.Intermediate)
	}
	stolen := identitytest.Key(t)
	tests := []struct {
		name     string
		client   *tls.Config
		reason   string
		clientID string
	}{
		{"TLS12", func() *tls.Config {
			c := from(s.td, good)
			c.MaxVersion = tls.VersionTLS12
			return c
		}(), audit.ReasonTLSVersion, ""},
		{"NoCertificate", rawClient(nil), audit.ReasonNoClientCertificate, ""},
		{"ForeignTrustDomain", from(foreign, foreign.Leaf(t, webPath, key.Public())), audit.ReasonWrongTrustDomain, "spiffe://evil.example" + webPath},
		{"SameNameOtherRoot", from(twin, twin.Leaf(t, webPath, key.Public())), audit.ReasonUnknownAuthority, "spiffe://example.org" + webPath},
		{"Expired", from(s.td, s.td.Leaf(t, webPath, key.Public(), identitytest.Lifetime(now.Add(-2*time.Hour), now.Add(-time.Second)))), audit.ReasonExpired, "spiffe://example.org" + webPath},
		{"NotYetValid", from(s.td, s.td.Leaf(t, webPath, key.Public(), identitytest.Lifetime(now.Add(time.Hour), now.Add(2*time.Hour)))), audit.ReasonNotYetValid, "spiffe://example.org" + webPath},
		{"NodeRole", from(s.td, s.td.Leaf(t, "/aval/node/n1", key.Public())), audit.ReasonIDMismatch, "spiffe://example.org/aval/node/n1"},
		{"ServerRole", from(s.td, s.td.Leaf(t, "/aval/server/s1", key.Public())), audit.ReasonIDMismatch, "spiffe://example.org/aval/server/s1"},
		{"IntermediateAsClient", rawClient(s.td.Key.(*ecdsa.PrivateKey), s.td.Intermediate), audit.ReasonNotAnSVID, ""},
		{"NoURIName", from(s.td, s.td.Leaf(t, webPath, key.Public(), func(c *x509.Certificate) { c.URIs = nil })), audit.ReasonNotAnSVID, ""},
		{"Policy", from(s.td, s.td.Leaf(t, "/ns/shop/sa/intruder", key.Public())), audit.ReasonPolicyDenied, "spiffe://example.org/ns/shop/sa/intruder"},
		{"StolenCertificate", rawClient(stolen, good, s.td.Intermediate), audit.ReasonHandshakeFailed, "spiffe://example.org" + webPath},
		{"Plaintext", nil, audit.ReasonPlaintextRefused, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s.agent.change(func() { s.agent.events = nil })
			if got, err := callTo(in, tt.client); err == nil {
				t.Fatalf("a call was answered: %q", got)
			}
			e := s.agent.waitFor(1, func(audit.Event) bool { return true })[0]
			if e.Reason != tt.reason || e.Verdict != audit.VerdictDenied || e.ClientID != tt.clientID || e.Mode != "STRICT" {
				t.Errorf("record: %+v", e)
			}
		})
	}
	t.Run("SlowLoris", func(t *testing.T) {
		s.agent.change(func() { s.agent.events = nil })
		c := mustDial(t, in)
		c.Write([]byte{22, 3, 1})
		if err := gone(c); err != nil {
			t.Fatal(err)
		}
		s.agent.waitFor(1, reason("inbound", audit.ReasonHandshakeTimeout))
	})
	t.Run("Silence", func(t *testing.T) {
		s.agent.change(func() { s.agent.events = nil })
		if err := gone(mustDial(t, in)); err != nil {
			t.Fatal(err)
		}
		s.agent.waitFor(1, reason("inbound", audit.ReasonHandshakeTimeout))
	})
	t.Run("Garbage", func(t *testing.T) {
		c := mustDial(t, in)
		c.Write([]byte{22, 3, 1, 0, 8, 1, 0, 0, 4, 9, 9, 9, 9})
		if err := alerted(c); err != nil {
			t.Fatal(err)
		}
		s.agent.waitFor(1, reason("inbound", audit.ReasonHandshakeFailed))
	})
	if _, err := callTo(in, s.client(s.web)); err != nil {
		t.Errorf("the one who may: %v", err)
	}
}

// alerted reads to the end, which an alert may precede.
func alerted(c net.Conn) error {
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err := io.Copy(io.Discard, c)
	return err
}

func TestFailedClientCertificateNeverFallsBackToPlaintext(t *testing.T) {
	s := newScene(t)
	s.publish(t, "") // permissive, and everything allowed
	reached := make(chan struct{}, 8)
	_, in := s.inbound(t, app(t, func(c *net.TCPConn) { reached <- struct{}{}; io.Copy(c, c) }), nil)
	foreign := identitytest.New(t, "evil.example")
	for _, config := range []*tls.Config{
		rawClient(nil),
		rawClient(foreign.SVID(t, webPath).Key.(*ecdsa.PrivateKey), foreign.SVID(t, webPath).Leaf()),
		{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12},
	} {
		if _, err := callTo(in, config); err == nil {
			t.Error("a call was answered")
		}
	}
	select {
	case <-reached:
		t.Error("the application was reached")
	default:
	}
}

func TestResumedSessionIsJudgedAgain(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	p, in := s.inbound(t, echo(t), nil)
	config := s.client(s.web)
	config.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	config.SessionTicketsDisabled = false
	for range 2 {
		tc := tls.Client(mustDial(t, in), config)
		if _, err := exchange(tc, "ping"); err != nil {
			t.Fatal(err)
		}
		if tc.ConnectionState().DidResume {
			t.Error("a session was resumed")
		}
	}
	s.publish(t, mode("STRICT")+allow("example.org/ns/shop/sa/nobody"))
	eventually(t, "new policies", func() bool { return p.Status().Generation == 2 })
	if _, err := callTo(in, config); err == nil {
		t.Error("the call was answered after the policy had changed")
	}
	// The same after the trust in the client's root is gone.
	s.td.Bundle = identitytest.New(t, "example.org").Bundle
	s.publish(t, mode("STRICT"))
	eventually(t, "new bundle", func() bool { return p.Status().Generation == 3 })
	if _, err := callTo(in, config); err == nil {
		t.Error("the call was answered after the root was gone")
	}
	s.agent.waitFor(1, reason("inbound", audit.ReasonUnknownAuthority))
}

func TestTLSOnlyPortTakesNoPlaintext(t *testing.T) {
	s := newScene(t)
	s.publish(t, "")
	_, in := s.inbound(t, echo(t), func(c *Config) { c.Inbound[0].Protocol = ProtocolTLS })
	if _, err := callTo(in, nil); err == nil {
		t.Error("plaintext was answered")
	}
	s.agent.waitFor(1, reason("inbound", audit.ReasonPlaintextRefused))
	if _, err := callTo(in, s.client(s.web)); err != nil {
		t.Error(err)
	}
}

func TestTwiceTheConnectionLimitLeaksNothing(t *testing.T) {
	s := newScene(t)
	s.publish(t, "")
	const limit = 100
	p, in := s.inbound(t, echo(t), func(c *Config) { c.Limits.MaxConnections = limit })
	before, heap := openFiles(t), heapInUse()
	var conns []net.Conn
	served, refused := 0, 0
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 2 * limit {
		wg.Go(func() {
			c, err := net.Dial("tcp", in)
			if err == nil { // the reset may come before the dial is through
				_, err = exchange(c, "ping")
			}
			mu.Lock()
			defer mu.Unlock()
			if c != nil {
				conns = append(conns, c)
			}
			if err == nil {
				served++
			} else {
				refused++
			}
		})
	}
	wg.Wait()
	if served != limit || refused != limit {
		t.Errorf("%d served and %d refused of twice the limit of %d", served, refused, limit)
	}
	counted := uint64(0)
	eventually(t, "every refusal is in a record", func() bool {
		s.agent.mu.Lock()
		defer s.agent.mu.Unlock()
		counted = 0
		for _, e := range s.agent.events {
			if e.Reason == audit.ReasonLimit {
				counted += max(1, e.Count)
			}
		}
		return counted == limit
	})
	for _, c := range conns {
		c.Close()
	}
	eventually(t, "all connections finish", func() bool { return p.Status().Open == 0 })
	p.table.mu.Lock()
	left := len(p.table.links)
	p.table.mu.Unlock()
	if left != 0 {
		t.Errorf("%d links stay in the table", left)
	}
	eventually(t, "descriptors return to the level before", func() bool {
		// Both ends of a question to the agent may have come since.
		return openFiles(t)["socket"] <= before["socket"]+2
	})
	conns = nil
	eventually(t, "memory returns to the level before", func() bool { return heapInUse() <= heap+2<<20 })
	if _, err := callTo(in, nil); err != nil {
		t.Errorf("a call after the flood: %v", err)
	}
}

// heapInUse returns the bytes of live objects.
func heapInUse() uint64 {
	runtime.GC()
	runtime.GC() // the second empties the pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestOutboundRefusesWhatIsNoMeshPeer(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	serve := func(config *tls.Config) string {
		return app(t, func(c *net.TCPConn) {
			tc := tls.Server(c, config)
			io.Copy(tc, tc)
		})
	}
	old := tls.Config{Certificates: []tls.Certificate{*s.api.TLSCertificate()}, MaxVersion: tls.VersionTLS12}
	foreign := tls.Config{Certificates: []tls.Certificate{*identitytest.New(t, "evil.example").SVID(t, apiPath).TLSCertificate()}}
	node := tls.Config{Certificates: []tls.Certificate{*s.td.SVID(t, "/aval/node/n1").TLSCertificate()}}
	over := tls.Config{Certificates: []tls.Certificate{*s.td.SVID(t, apiPath,
		identitytest.Lifetime(time.Now().Add(-time.Hour), time.Now().Add(-time.Minute))).TLSCertificate()}}
	for _, tt := range []struct{ name, dial, reason string }{
		{"TLS12", serve(&old), audit.ReasonTLSVersion},
		{"ForeignTrustDomain", serve(&foreign), audit.ReasonWrongTrustDomain},
		{"NodeRole", serve(&node), audit.ReasonIDMismatch},
		{"Expired", serve(&over), audit.ReasonExpired},
		{"Plaintext", echo(t), audit.ReasonHandshakeFailed},
		{"Greeting", greeter(t), audit.ReasonHandshakeFailed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.agent.change(func() { s.agent.events = nil })
			_, out := s.outbound(t, tt.dial, s.api.ID)
			if got, err := callTo(out, nil); err == nil {
				t.Errorf("a call was answered: %q", got)
			}
			e := s.agent.waitFor(1, func(audit.Event) bool { return true })[0]
			if e.Reason != tt.reason || e.Direction != audit.DirectionOutbound || e.ClientID != s.web.ID.String() || e.Verdict != audit.VerdictDenied {
				t.Errorf("record: %+v", e)
			}
		})
	}
}

func TestPanicEndsOneConnectionOnly(t *testing.T) {
	s := newScene(t)
	s.publish(t, "")
	p, in := s.inbound(t, echo(t), nil)
	near, far := mustDial(t, in), mustDial(t, echo(t))
	raw, err := newRaw(far, nil)
	if err != nil {
		t.Fatal(err)
	}
	l := &link{near: raw}
	p.table.add(l)
	p.open.Add(1)
	p.conns.Add(1)
	p.begin(t.Context(), port{direction: "inbound", serve: func(context.Context, *link) bool { panic("a test's") }}, l)
	if err := gone(far); err != nil {
		t.Error("the connection is still readable")
	}
	if got, err := exchange(near, "ping"); err != nil || got != "ping" {
		t.Errorf("another connection: %q, %v", got, err)
	}
}

func TestResetIsPassedOn(t *testing.T) {
	s := newScene(t)
	s.publish(t, "")
	_, in := s.inbound(t, app(t, func(c *net.TCPConn) {
		c.Read(make([]byte, 1))
		c.SetLinger(0)
	}), nil)
	c := mustDial(t, in)
	c.Write([]byte("x"))
	if _, err := io.ReadAll(c); !isReset(err) {
		t.Errorf("the application's reset arrived as %v", err)
	}
}

func TestUnreadablePolicyDeniesEverything(t *testing.T) {
	s := newScene(t)
	t.Run("NewerEvaluator", func(t *testing.T) {
		snap := workload{td: s.td, svid: s.api, revision: 1, policies: denyPort(1)}.snapshot(t)
		snap.Policies[0].Evaluator = 99
		s.agent.put(snap)
		_, in := s.inbound(t, echo(t), nil)
		if _, err := callTo(in, s.client(s.web)); err == nil {
			t.Error("a call was answered under a policy that nobody here understands")
		}
		e := s.agent.waitFor(1, reason("inbound", audit.ReasonPolicyDenied))[0]
		if e.Policy != "shop/closed" {
			t.Errorf("record: %+v", e)
		}
	})
	t.Run("UnknownField", func(t *testing.T) {
		snap := workload{td: s.td, svid: s.api, revision: 2, policies: denyPort(1)}.snapshot(t)
		snap.Policies[0].Document = []byte(`{"apiVersion":"aval.dev/v1alpha1","kind":"AuthorizationPolicy","metadata":{"name":"closed","namespace":"shop"},"spec":{"action":"ALLOW","rules":[{}],"shades":3}}`)
		s.agent.put(snap)
		_, in := s.inbound(t, echo(t), nil)
		if _, err := callTo(in, s.client(s.web)); err == nil {
			t.Error("a call was answered under a policy with an unknown field")
		}
	})
	t.Run("UnknownKind", func(t *testing.T) {
		snap := workload{td: s.td, svid: s.api, revision: 3, policies: denyPort(1)}.snapshot(t)
		snap.Policies[0].Key.Kind = "SpeechPolicy"
		s.agent.put(snap)
		_, in := s.inbound(t, echo(t), nil)
		if _, err := callTo(in, s.client(s.web)); err == nil {
			t.Error("a call was answered under a policy of an unknown kind")
		}
	})
}
