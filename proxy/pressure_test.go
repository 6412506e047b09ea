// This file holds the tests of a proxy under pressure: descriptors gone, a
// crowd at the door, an application that takes nothing, policies that make no
// sense, bundles that are empty.

package proxy

import (
	"crypto/tls"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/wire"
)

func TestDescriptorsExhaustedAreWaitedFor(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	c := startChild(t, s, job{Forward: echo(t), Files: 400})
	open := tls.Client(mustDial(t, c.address), s.client(s.web))
	if _, err := exchange(open, "before"); err != nil {
		t.Fatal(err)
	}
	c.tell(t, "exhaust")
	waiting := mustDial(t, c.address) // in the kernel's queue
	waiting.Write([]byte("ping\n"))
	waiting.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	if _, err := waiting.Read(make([]byte, 5)); !isTimeout(err) {
		t.Errorf("without descriptors: %v", err)
	}
	if got, err := exchange(open, "meanwhile"); err != nil || got != "meanwhile" {
		t.Errorf("the open connection: %q, %v", got, err)
	}
	c.tell(t, "release")
	waiting.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 5)
	if _, err := waiting.Read(b); err != nil || string(b) != "ping\n" {
		t.Errorf("after it: %q, %v", b, err)
	}
	if _, err := callTo(c.address, s.client(s.web)); err != nil {
		t.Error(err)
	}
}

func TestConnectionsAreBoundedByOpenFiles(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	const files = 256
	c := startChild(t, s, job{Forward: echo(t), Files: files})
	served := 0
	for range files {
		conn, err := net.Dial("tcp", c.address)
		if err != nil {
			continue // the reset may come before the dial is through
		}
		defer conn.Close()
		if _, err := exchange(conn, "ping"); err == nil {
			served++
		}
	}
	if want := (files - spareFiles) / 2; served != want {
		t.Errorf("%d served, not %d", served, want)
	}
	counted := uint64(0)
	for _, e := range s.agent.waitFor(refusalsPerSecond, reason("inbound", audit.ReasonLimit)) {
		counted += max(1, e.Count)
	}
	if counted == 0 {
		t.Error("refused without a record")
	}
}

// crowd is how many come at once: with two descriptors for each in this
// process and in the proxy, it fits into 20,000.
const crowd = 9000

func TestNineThousandConnectionsAtOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("9,000 connections are opened in the long tests only")
	}
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil || files.Max < 20_000 {
		t.Skipf("20,000 open files are needed, %d are allowed (%v)", files.Max, err)
	}
	s := newScene(t)
	s.publish(t, "")
	answering := app(t, func(c *net.TCPConn) { // a splice would take two descriptors more
		b := make([]byte, 100)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			c.Write(b[:n])
		}
	})
	c := startChild(t, s, job{Forward: answering, Files: 20_000})
	before := c.resident(t)
	conns := make([]net.Conn, crowd)
	began := time.Now()
	var wg sync.WaitGroup
	var next, failed atomic.Int64
	for range 300 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < crowd; i = next.Add(1) - 1 {
				conn, err := net.Dial("tcp", c.address)
				if err != nil {
					failed.Add(1)
					continue
				}
				conns[i] = conn
			}
		})
	}
	wg.Wait()
	dialled := time.Since(began)
	var served atomic.Int64
	next.Store(0)
	for range 300 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < crowd; i = next.Add(1) - 1 {
				if conns[i] == nil {
					continue
				}
				if _, err := exchange(conns[i], "ping"); err == nil {
					served.Add(1)
				}
			}
		})
	}
	wg.Wait()
	grown := c.resident(t) - before
	t.Logf("%d dialled in %s, %d not; %d served in %s; %d MiB more", crowd, dialled, failed.Load(), served.Load(), time.Since(began), grown>>20)
	if served.Load() < DefaultMaxHandshakes {
		t.Errorf("only %d of %d were served", served.Load(), crowd)
	}
	most := int64(400 << 20)
	if raceDetector() {
		most *= 4 // it keeps a shadow of all memory
	}
	if grown > most {
		t.Errorf("the proxy grew by %d MiB", grown>>20)
	}
	for _, conn := range conns {
		if conn != nil {
			conn.Close()
		}
	}
	eventually(t, "all is as before", func() bool { _, err := callTo(c.address, s.client(s.web)); return err == nil })
}

func TestSlowApplicationHoldsUpItsOwnConnectionsOnly(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	var stuck atomic.Bool
	stuck.Store(true)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	p, in := s.inbound(t, app(t, func(c *net.TCPConn) {
		if stuck.Load() {
			<-release // reads nothing, says nothing
			return
		}
		b := make([]byte, 100)
		n, _ := c.Read(b)
		c.Write(b[:n])
	}), func(c *Config) { c.Limits.Drain = 100 * time.Millisecond })
	c := mustDial(t, in)
	c.SetWriteDeadline(time.Now().Add(time.Second))
	written, chunk := 0, make([]byte, 1<<20)
	for range 100 {
		n, err := c.Write(chunk)
		if written += n; err != nil {
			break
		}
	}
	if written >= 100<<20 {
		t.Errorf("%d bytes went nowhere", written)
	}
	stuck.Store(false)
	if got, err := callTo(in, s.client(s.web)); err != nil || got != "ping" {
		t.Errorf("another connection: %q, %v", got, err)
	}
	// The client gives up: the connection ends, though nobody reads there.
	c.SetLinger(0)
	c.Close()
	if testing.Short() {
		return
	}
	eventually(t, "its end", func() bool { return p.Status().Open == 0 })
}

func TestApplicationThatTakesNoConnection(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	_, in := s.inbound(t, freePort(t), nil)
	if err := gone(headed(t, in, "ping\n")); err != nil {
		t.Error(err)
	}
	if _, err := callTo(in, s.client(s.web)); err == nil {
		t.Error("a call was answered")
	}
	s.agent.waitFor(2, reason("inbound", audit.ReasonUpstreamUnreachable))
}

func TestPolicySetThatDoesNotCompileNeverReplacesOneThatDoes(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	p, in := s.inbound(t, echo(t), nil)
	for name, spoil := range map[string]func(*wire.Snapshot){
		"Garbled":      func(w *wire.Snapshot) { w.Policies[1].Document = []byte(`{"apiVersion": "aval.de`) },
		"Empty":        func(w *wire.Snapshot) { w.Policies[1].Document = nil },
		"OtherName":    func(w *wire.Snapshot) { w.Policies[1].Key.Name = "else" },
		"NoKey":        func(w *wire.Snapshot) { w.Policies[1].Key = nil },
		"NoDocumentAt": func(w *wire.Snapshot) { w.Policies[1] = nil },
	} {
		held := p.state.Load()
		snap := workload{td: s.td, svid: s.api, revision: 9, policies: mode("PERMISSIVE") + denyPort(8080), mutate: spoil}.snapshot(t)
		p.take(snap, time.Now())
		if p.state.Load() != held {
			t.Fatalf("%s: another state is in force", name)
		}
		if fault := p.fault.Load(); fault == nil || !strings.Contains(*fault, "do not compile") {
			t.Errorf("%s: nothing is said", name)
		}
		if _, err := callTo(in, s.client(s.web)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := callTo(in, nil); err == nil {
			t.Errorf("%s: plaintext was answered", name)
		}
	}
	s.publish(t, mode("STRICT"))
	eventually(t, "a good set", func() bool { return p.fault.Load() == nil })
	// A proxy that has no other set admits nothing by a broken one.
	snap := workload{td: s.td, svid: s.api, revision: 9, policies: allow("*"), mutate: func(w *wire.Snapshot) { w.Policies[0].Document = nil }}.snapshot(t)
	st, err := newState(snap, s.api.ID, nil, time.Now())
	if err != nil || st.unreadable == nil {
		t.Fatal(st, err)
	}
	v := &visit{st: st, in: &Inbound{Port: 8080}}
	if d := v.verdict(""); d.Allowed {
		t.Errorf("allowed: %+v", d)
	}
}

func TestEmptiedBundleAdmitsNobodyAndReplacesNothing(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	empty := func(w *wire.Snapshot) { w.Bundles[0].Roots = nil }
	// From the start: the ports stay closed.
	s.agent.put(workload{td: s.td, svid: s.api, revision: 1, mutate: empty}.snapshot(t))
	address := freePort(t)
	p, _ := startProxy(t, Config{Agent: s.agent.socket, Identity: s.api.ID, Inbound: []Inbound{{Listen: address, Forward: echo(t)}}})
	eventually(t, "the snapshot is refused", func() bool { return p.fault.Load() != nil })
	if _, err := net.Dial("tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("with an empty bundle: %v", err)
	}
	s.publish(t, "")
	<-p.Started()
	// Later: the complete one stays, and that is said.
	s.agent.put(workload{td: s.td, svid: s.api, revision: 2, mutate: empty}.snapshot(t))
	eventually(t, "the fault", func() bool { return p.fault.Load() != nil })
	if _, err := callTo(address, s.client(s.web)); err != nil {
		t.Error(err)
	}
}

func TestSecondProxyOnOnePortSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	socket := filepath.Join(t.TempDir(), "admin.sock")
	_, in := s.inbound(t, echo(t), func(c *Config) { c.Admin = socket })
	for name, cfg := range map[string]Config{
		"another process, perhaps another proxy, listens on " + in: {Inbound: []Inbound{{Listen: in, Forward: "127.0.0.1:1"}}},
		socket + ": another process serves it":                     {Inbound: []Inbound{{Listen: "127.0.0.1:0", Forward: "127.0.0.1:1"}}, Admin: socket},
	} {
		cfg.Agent, cfg.Identity = s.agent.socket, s.api.ID
		p, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Run(t.Context()); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v", err)
		}
	}
	if _, err := callTo(in, s.client(s.web)); err != nil {
		t.Errorf("the first: %v", err)
	}
}

func TestClientHelloOfAnySizeAndCutIsBounded(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, mode("STRICT"))
	_, in := s.inbound(t, echo(t), nil)
	// Byte by byte, and every byte in a record of its own.
	for name, wrap := range map[string]func(net.Conn) net.Conn{
		"bytes":   func(c net.Conn) net.Conn { return &mincing{Conn: c} },
		"records": func(c net.Conn) net.Conn { return &mincing{Conn: c, records: true} },
	} {
		c := tls.Client(wrap(mustDial(t, in)), s.client(s.web))
		if _, err := exchange(c, "ping"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Announced as huge, and sent for ever in small records.
	huge := mustDial(t, in)
	huge.Write([]byte{22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff})
	huge.Write(make([]byte, 70<<10))
	alerted(huge)
	endless := mustDial(t, in)
	go func() {
		endless.Write([]byte{22, 3, 1, 0, 4, 1, 0, 0x7f, 0xff})
		one := []byte{22, 3, 1, 0, 1, 0}
		for range 100_000 {
			if _, err := endless.Write(one); err != nil {
				return
			}
		}
	}()
	alerted(endless)
	s.agent.waitFor(2, reason("inbound", audit.ReasonHandshakeFailed))
	if _, err := callTo(in, s.client(s.web)); err != nil {
		t.Error(err)
	}
	var o opening
	o.feed([]byte{22, 3, 1, 0, 4, 1, 0, 0x7f, 0xff})
	for range 100_000 {
		if o.feed([]byte{22, 3, 1, 0, 1, 0}) != stageMore {
			break
		}
	}
	if o.stage != stageBad || len(o.raw) > 2*maxHello {
		t.Errorf("stage %d after %d bytes", o.stage, len(o.raw))
	}
}

// mincing writes the first flight in the smallest pieces.
type mincing struct {
	net.Conn
	records, done bool
}

func (c *mincing) Write(b []byte) (int, error) {
	if c.done || len(b) < 20 {
		return c.Conn.Write(b)
	}
	c.done = true
	for i := range b {
		piece := b[i : i+1]
		if c.records {
			if i < 5 {
				continue
			}
			piece = []byte{22, 3, 1, 0, 1, b[i]}
		}
		if _, err := c.Conn.Write(piece); err != nil {
			return i, err
		}
	}
	return len(b), nil
}

// adminClient is a client of a proxy's admin socket.
func adminClient(t *testing.T, socket string) wire.ProxyAdminClient {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return wire.NewProxyAdminClient(conn)
}
