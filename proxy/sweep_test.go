// This file holds the tests of what ends open connections: silence, age, the
// peer's end, the loss of the own identity; and of the memory's bound.

package proxy

import (
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/identitytest"
)

// deny takes an identity away: streams for it end, and new ones are refused.
func (a *fakeAgent) deny(id string) {
	a.change(func() {
		delete(a.snaps, id)
		a.denied[id] = true
	})
}

// chatter keeps a connection busy until the test or the connection ends, and
// returns a channel that is closed then.
func chatter(t *testing.T, c net.Conn, every time.Duration) <-chan struct{} {
	ended := make(chan struct{})
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop); c.Close(); <-ended })
	go func() {
		defer close(ended)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			if _, err := exchange(c, "tick"); err != nil {
				return
			}
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	return ended
}

func TestIdleConnectionsAreClosedAndBusyOnesAreNot(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	_, in := s.inbound(t, echo(t), func(c *Config) { c.Limits.IdleTimeout = 700 * time.Millisecond })
	busy := chatter(t, tls.Client(mustDial(t, in), s.client(s.web)), 50*time.Millisecond)
	quiet := tls.Client(mustDial(t, in), s.client(s.web))
	if _, err := exchange(quiet, "ping"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := gone(quiet); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d < 500*time.Millisecond || d > 3*time.Second {
		t.Errorf("closed after %s", d)
	}
	e := s.agent.waitFor(1, reason("inbound", audit.ReasonLimit))[0]
	if !strings.Contains(e.Detail, "idle") || e.ClientID != s.web.ID.String() || e.Transport != audit.TransportMTLS {
		t.Errorf("record: %+v", e)
	}
	select {
	case <-busy:
		t.Error("a busy connection was closed")
	default:
	}
}

// A splice moves bytes that the proxy does not see: the kernel does.
func TestSplicedConnectionIsNotIdle(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	ended := make(chan error, 1)
	target := app(t, func(c *net.TCPConn) {
		c.Read(make([]byte, 1))
		if _, err := c.Write(make([]byte, 2<<20)); err != nil { // enough to make it bulk
			ended <- err
			return
		}
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for range 40 {
			<-tick.C
			if _, err := c.Write([]byte("drip")); err != nil {
				ended <- err
				return
			}
		}
		ended <- nil
	})
	_, in := s.inbound(t, target, func(c *Config) { c.Limits.IdleTimeout = 500 * time.Millisecond })
	c := mustDial(t, in)
	c.Write([]byte("x"))
	n, err := io.Copy(io.Discard, c)
	if got := <-ended; got != nil || err != nil || n != 2<<20+160 {
		t.Errorf("%d bytes, %v; the application: %v", n, err, got)
	}
}

func TestLifetimeEndsBusyConnections(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	_, in := s.inbound(t, echo(t), func(c *Config) { c.Limits.MaxLifetime = 400 * time.Millisecond })
	began := time.Now()
	<-chatter(t, tls.Client(mustDial(t, in), s.client(s.web)), 10*time.Millisecond)
	if d := time.Since(began); d < 400*time.Millisecond || d > 3*time.Second {
		t.Errorf("closed after %s", d)
	}
	if e := s.agent.waitFor(1, reason("inbound", audit.ReasonLimit))[0]; !strings.Contains(e.Detail, "open for") {
		t.Errorf("record: %+v", e)
	}
}

func TestPeerExpiryActsOnOpenConnectionsAsSet(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		action           Action
		quiet, busyEnd   bool
		quietMin, busyIn time.Duration
	}{
		{Keep, false, false, 0, 0},
		{Cut, true, true, 0, 2 * time.Second},
		{Drain, true, true, 0, 5 * time.Second}, // busy ones at the drain's deadline of two seconds
	} {
		t.Run(string(tt.action), func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			s.publish(t, "")
			_, in := s.inbound(t, echo(t), func(c *Config) { c.OnPeerExpiry = tt.action })
			now := time.Now()
			short := s.td.SVID(t, webPath, identitytest.Lifetime(now.Add(-time.Minute), now.Add(1200*time.Millisecond)))
			end := short.NotAfter()
			busy := chatter(t, tls.Client(mustDial(t, in), s.client(short)), 20*time.Millisecond)
			quiet := tls.Client(mustDial(t, in), s.client(short))
			if _, err := exchange(quiet, "ping"); err != nil {
				t.Fatal(err)
			}
			if tt.action == Keep {
				<-time.After(time.Until(end.Add(1500 * time.Millisecond)))
				if got, err := exchange(quiet, "after"); err != nil || got != "after" {
					t.Errorf("%q, %v", got, err)
				}
				select {
				case <-busy:
					t.Error("a connection ended")
				default:
				}
				return
			}
			gone(quiet)
			if d := time.Since(end); d < 0 || d > 1900*time.Millisecond {
				t.Errorf("the quiet one ended %s after the peer's certificate", d)
			}
			<-busy
			d := time.Since(end)
			if d < 0 || d > tt.busyIn || tt.action == Drain && d < 1900*time.Millisecond {
				t.Errorf("the busy one ended %s after the peer's certificate", d)
			}
			for _, e := range s.agent.waitFor(2, reason("inbound", audit.ReasonExpired)) {
				if e.ClientSerial != short.Serial() {
					t.Errorf("record: %+v", e)
				}
			}
		})
	}
}

func TestIdentityTakenAwayAdmitsNothingNew(t *testing.T) {
	t.Parallel()
	for _, action := range []Action{Keep, Cut} {
		t.Run(string(action), func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			s.publish(t, "")
			p, in := s.inbound(t, echo(t), func(c *Config) { c.OnIdentityLost = action })
			open := tls.Client(mustDial(t, in), s.client(s.web))
			if _, err := exchange(open, "before"); err != nil {
				t.Fatal(err)
			}
			s.agent.deny(s.api.ID.String())
			eventually(t, "the proxy notices", func() bool { return p.Ready() != nil })
			for _, config := range []*tls.Config{nil, s.client(s.web)} {
				if _, err := callTo(in, config); err == nil {
					t.Error("a call was answered")
				}
			}
			s.agent.waitFor(2, reason("inbound", audit.ReasonIdentityWithdrawn))
			if action == Keep {
				if got, err := exchange(open, "after"); err != nil || got != "after" {
					t.Errorf("the open connection: %q, %v", got, err)
				}
			} else if err := gone(open); err != nil {
				t.Error(err)
			}
			// It is granted again.
			s.agent.change(func() { clear(s.agent.denied) })
			s.publish(t, "")
			eventually(t, "ready again", func() bool { return p.Ready() == nil })
			if _, err := callTo(in, s.client(s.web)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSecondIdentityTakesNothingAway(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	only := workload{td: s.td, svid: s.api, revision: 1}.snapshot(t)
	s.agent.change(func() { s.agent.snaps[""] = only })
	p, in := s.inbound(t, echo(t), func(c *Config) { c.Identity = identity.ID{} })
	s.agent.deny("") // it has several now
	s.agent.stop()
	s.agent.start()
	s.publish(t, denyPort(1))
	eventually(t, "the new policies, asked for by name", func() bool { return p.Status().Generation == s.rev })
	if _, err := callTo(in, s.client(s.web)); err != nil || p.Ready() != nil {
		t.Errorf("%v, %v", err, p.Ready())
	}
	// The one that it holds goes, and only another is left.
	s.agent.deny(s.api.ID.String())
	eventually(t, "the loss", func() bool { return p.Ready() != nil })
	s.agent.change(func() {
		delete(s.agent.denied, "")
		s.agent.snaps[""] = workload{td: s.td, svid: s.web, revision: 9}.snapshot(t)
	})
	eventually(t, "another identity", func() bool { return p.Ready() == nil && p.Status().Identity == s.web.ID.String() })
}

func TestMemoryAtItsBoundRefusesNewConnectionsOnly(t *testing.T) {
	s := newScene(t)
	s.publish(t, "")
	p, in := s.inbound(t, echo(t), nil)
	open := mustDial(t, in)
	if _, err := exchange(open, "before"); err != nil {
		t.Fatal(err)
	}
	m := newMemory(Limits{MaxMemoryMiB: 1}) // a test process holds more
	said := 0
	m.look(func(string, ...any) { said++ })
	m.look(func(string, ...any) { said++ })
	if !m.full.Load() || said != 1 || m.held.Load() == 0 {
		t.Fatalf("full %v, said %d times, %d bytes held", m.full.Load(), said, m.held.Load())
	}
	m.most = 1 << 40
	if m.look(func(string, ...any) {}); m.full.Load() {
		t.Error("it stays full below its bound")
	}
	eventually(t, "a refusal", func() bool { // the sweep clears what the test sets
		p.memory.full.Store(true)
		_, err := callTo(in, nil)
		return err != nil
	})
	if e := s.agent.waitFor(1, reason("inbound", audit.ReasonLimit))[0]; !strings.Contains(e.Detail, "MiB") {
		t.Errorf("record: %+v", e)
	}
	if _, err := exchange(open, "after"); err != nil {
		t.Error(err)
	}
}

// errDenied is what an agent says to a process without an identity.
var errDenied = status.Error(codes.PermissionDenied, "no identity issued")
