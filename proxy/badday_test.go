// This file holds the tests of bad days: the agent late, gone or wrong, the
// SVID over, the proxy stopped with work in hand.

package proxy

import (
	"crypto/tls"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/identitytest"
	"github.com/aval-id/aval/identity/wire"
)

// freePort returns an address that nobody listens on now.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestProxyBeforeItsAgentAdmitsNothingAndRecovers(t *testing.T) {
	td := identitytest.New(t, "example.org")
	s := &scene{td: td, agent: newFakeAgent(t), web: td.SVID(t, webPath), api: td.SVID(t, apiPath)}
	address := freePort(t)
	p, _ := startProxy(t, Config{Agent: "unix://" + s.agent.socket, Identity: s.api.ID,
		Inbound: []Inbound{{Listen: address, Forward: echo(t)}}})
	if _, err := net.Dial("tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("before the agent: %v", err)
	}
	if p.Ready() == nil {
		t.Error("it says that it is ready")
	}
	s.agent.start()
	// Incomplete and contradictory snapshots admit nothing either.
	good := workload{td: td, svid: s.api, revision: 1}.snapshot(t)
	for _, spoil := range spoilers(t) {
		snap := workload{td: td, svid: s.api, revision: 1, mutate: spoil}.snapshot(t)
		if _, err := newState(snap, s.api.ID, nil, time.Now()); err == nil {
			t.Errorf("a spoiled snapshot was taken: %v", snap.SpiffeId)
		}
	}
	s.agent.put(workload{td: td, svid: s.api, revision: 1, mutate: func(w *wire.Snapshot) { w.Bundles = nil }}.snapshot(t))
	s.agent.put(good)
	<-p.Started()
	if _, err := callTo(address, s.client(s.web)); err != nil {
		t.Errorf("after the agent came: %v", err)
	}
	if err := p.Ready(); err != nil {
		t.Error(err)
	}
}

// spoilers make a snapshot incomplete or contradictory.
func spoilers(t *testing.T) []func(*wire.Snapshot) {
	other := identitytest.New(t, "other.example")
	return []func(*wire.Snapshot){
		func(s *wire.Snapshot) { s.Bundles = nil },
		func(s *wire.Snapshot) { s.Bundles[0].Roots = nil },
		func(s *wire.Snapshot) { s.Bundles[0].Roots = [][]byte{{1, 2, 3}} },
		func(s *wire.Snapshot) { s.Bundles = []*wire.Bundle{wire.FromBundle(other.Bundle)} },
		func(s *wire.Snapshot) { s.Chain = nil },
		func(s *wire.Snapshot) { s.Chain[0] = s.Chain[1] },
		func(s *wire.Snapshot) { s.Key = nil },
		func(s *wire.Snapshot) { s.Settings = nil },
		func(s *wire.Snapshot) { s.Settings.TrustDomain = "other.example" },
		func(s *wire.Snapshot) { s.SpiffeId = "spiffe://example.org/else" },
		func(s *wire.Snapshot) {
			key, chain := other.SVID(t, webPath), [][]byte{}
			for _, c := range key.Chain {
				chain = append(chain, c.Raw)
			}
			s.Chain = chain
		},
	}
}

func TestSpoiledSnapshotNeverReplacesACompleteOne(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	p, in := s.inbound(t, echo(t), nil)
	held := p.state.Load()
	for _, spoil := range spoilers(t) {
		s.agent.put(workload{td: s.td, svid: s.api, revision: 9, mutate: spoil}.snapshot(t))
	}
	s.agent.put(&wire.Snapshot{SpiffeId: s.api.ID.String()})
	for _, spoil := range spoilers(t) {
		p.take(workload{td: s.td, svid: s.api, revision: 9, mutate: spoil}.snapshot(t), time.Now())
	}
	if now := p.state.Load(); now != held {
		t.Error("another state is in force")
	}
	if _, err := callTo(in, s.client(s.web)); err != nil {
		t.Error(err)
	}
}

func TestProxyLivesOnWithoutItsAgentAndReconnects(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, mode("STRICT"))
	p, in := s.inbound(t, echo(t), nil)
	long := tls.Client(mustDial(t, in), s.client(s.web))
	if _, err := exchange(long, "before"); err != nil {
		t.Fatal(err)
	}
	s.agent.waitFor(1, reason("inbound", audit.ReasonAllowed))
	s.agent.stop()
	eventually(t, "the proxy notices", func() bool { return !p.Status().Connected })
	for range 3 {
		if _, err := callTo(in, s.client(s.web)); err != nil {
			t.Fatalf("without the agent: %v", err)
		}
	}
	s.agent.start()
	// What happened meanwhile is told, and new policies arrive.
	s.agent.waitFor(4, reason("inbound", audit.ReasonAllowed))
	if _, err := exchange(long, "after"); err != nil {
		t.Errorf("the open connection: %v", err)
	}
	s.publish(t, mode("STRICT")+allow("example.org/ns/shop/sa/nobody"))
	s.agent.waitFor(1, reason("inbound", audit.ReasonPolicyChanged))
	if _, err := callTo(in, s.client(s.web)); err == nil {
		t.Error("the new policies are not in force")
	}
}

func TestProxyPastItsOwnSVIDRefusesEverything(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	now := time.Now()
	s.api = s.td.SVID(t, apiPath, identitytest.Lifetime(now.Add(-time.Minute), now.Add(1500*time.Millisecond)))
	s.publish(t, "")
	p, in := s.inbound(t, echo(t), nil)
	if _, err := callTo(in, nil); err != nil {
		t.Fatalf("while it lives: %v", err)
	}
	eventually(t, "the end of the SVID", func() bool { return p.Ready() != nil })
	for _, config := range []*tls.Config{nil, s.client(s.web)} {
		if _, err := callTo(in, config); err == nil {
			t.Error("a call was answered")
		}
	}
	s.agent.waitFor(2, reason("inbound", audit.ReasonExpired))
	s.api = s.td.SVID(t, apiPath)
	s.publish(t, "")
	eventually(t, "a new SVID", func() bool { return p.Ready() == nil })
	if _, err := callTo(in, s.client(s.web)); err != nil {
		t.Errorf("after the renewal: %v", err)
	}
}

func TestDrainWaitsForOpenConnections(t *testing.T) {
	s := newScene(t)
	s.publish(t, "")
	running, stop := runProxy(t, Config{Agent: s.agent.socket, Identity: s.api.ID,
		Inbound: []Inbound{{Listen: "127.0.0.1:0", Forward: echo(t)}}})
	in := running.Status().Inbound[0]
	c := tls.Client(mustDial(t, in), s.client(s.web))
	if _, err := exchange(c, "before"); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	eventually(t, "no new connections", func() bool {
		_, err := net.DialTimeout("tcp", in, time.Second)
		return err != nil
	})
	if got, err := exchange(c, "while draining"); err != nil || got != "while draining" {
		t.Errorf("the open connection: %q, %v", got, err)
	}
	select {
	case err := <-ended:
		t.Errorf("Run ended with a connection open: %v", err)
	default:
	}
	c.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestDrainEndsAtItsDeadline(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	p, stop := runProxy(t, Config{Agent: s.agent.socket, Identity: s.api.ID,
		Inbound: []Inbound{{Listen: "127.0.0.1:0", Forward: echo(t)}},
		Limits:  Limits{Drain: 200 * time.Millisecond}})
	in := p.Status().Inbound[0]
	silent := mustDial(t, in) // still in its handshake
	open := mustDial(t, in)
	if _, err := exchange(open, "before"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("drain took %v", d)
	}
	for _, c := range []net.Conn{silent, open} {
		if err := gone(c); err != nil {
			t.Error(err)
		}
	}
	// The last records were told before Run returned.
	s.agent.waitFor(1, reason("inbound", audit.ReasonPlaintextAllowed))
}
