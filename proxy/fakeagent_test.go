// This file holds the agent that tests use: a real wire.Proxy service on a
// real Unix socket, fed by the test.

package proxy

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/identitytest"
	"github.com/aval-id/aval/identity/wire"
)

// fakeAgent serves snapshots per identity and gathers records.
type fakeAgent struct {
	wire.UnimplementedProxyServer
	t      testing.TB
	socket string

	mu      sync.Mutex
	changed chan struct{}
	snaps   map[string]*wire.Snapshot
	events  []audit.Event
	lost    uint64
	mute    bool // takes no records
	denied  map[string]bool

	registry fakeRegistry

	server *grpc.Server
	done   chan struct{}
}

func newFakeAgent(t testing.TB) *fakeAgent {
	t.Helper()
	dir, err := os.MkdirTemp("", "aval-proxy-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &fakeAgent{t: t, socket: filepath.Join(dir, "s"), changed: make(chan struct{}), snaps: make(map[string]*wire.Snapshot), denied: make(map[string]bool)}
}

func (a *fakeAgent) start() {
	a.t.Helper()
	l, err := net.Listen("unix", a.socket)
	if err != nil {
		a.t.Fatal(err)
	}
	s := grpc.NewServer(grpc.MaxRecvMsgSize(wire.MaxMessageBytes))
	wire.RegisterProxyServer(s, a)
	done := make(chan struct{})
	a.server, a.done = s, done
	go func() { defer close(done); s.Serve(l) }()
	a.t.Cleanup(func() { s.Stop(); <-done })
}

// stop kills the agent as it stands.
func (a *fakeAgent) stop() {
	a.server.Stop()
	<-a.done
}

func (a *fakeAgent) change(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
	close(a.changed)
	a.changed = make(chan struct{})
}

// put publishes a snapshot.
func (a *fakeAgent) put(s *wire.Snapshot) { a.change(func() { a.snaps[s.SpiffeId] = s }) }

func (a *fakeAgent) Watch(req *wire.WatchRequest, stream grpc.ServerStreamingServer[wire.Snapshot]) error {
	var sent *wire.Snapshot
	for {
		a.mu.Lock()
		snap, changed, denied := a.snaps[req.Identity], a.changed, a.denied[req.Identity]
		a.mu.Unlock()
		if denied {
			return errDenied
		}
		if snap != nil && snap != sent {
			if err := stream.Send(snap); err != nil {
				return err
			}
			sent = snap
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-changed:
		}
	}
}

func (a *fakeAgent) Report(stream grpc.BidiStreamingServer[wire.RecordBatch, wire.RecordsAck]) error {
	for {
		b, err := stream.Recv()
		if err != nil {
			return err
		}
		var events []audit.Event
		for _, doc := range b.Events {
			var e audit.Event
			if err := json.Unmarshal(doc, &e); err != nil {
				a.t.Errorf("record is no event: %v", err)
			}
			if err := e.Validate(); err != nil {
				a.t.Errorf("record %s: %v", doc, err)
			}
			events = append(events, e)
		}
		a.mu.Lock()
		mute := a.mute
		a.mu.Unlock()
		if mute {
			<-stream.Context().Done()
			return nil
		}
		a.change(func() { a.events, a.lost = append(a.events, events...), a.lost+b.Lost })
		if err := stream.Send(&wire.RecordsAck{Sequence: b.Sequence}); err != nil {
			return err
		}
	}
}

// waitFor returns the first n records for which match holds, as soon as they
// are there.
func (a *fakeAgent) waitFor(n int, match func(audit.Event) bool) []audit.Event {
	a.t.Helper()
	timeout := time.After(8 * time.Second)
	for {
		a.mu.Lock()
		var got []audit.Event
		for _, e := range a.events {
			if match(e) {
				got = append(got, e)
			}
		}
		all, changed := len(a.events), a.changed
		a.mu.Unlock()
		if len(got) >= n {
			return got[:n]
		}
		select {
		case <-changed:
		case <-timeout:
			a.t.Errorf("records: %d of %d wanted, among %d in all", len(got), n, all)
			a.mu.Lock()
			for _, e := range a.events[max(0, len(a.events)-10):] {
				a.t.Logf("record: %+v", e)
			}
			a.mu.Unlock()
			a.t.FailNow()
		}
	}
}

// reason matches records of verdicts.
func reason(direction, reason string) func(audit.Event) bool {
	return func(e audit.Event) bool {
		ofRequest := e.Kind == audit.KindRequest && e.Verdict == audit.VerdictDenied
		return (e.Kind == audit.KindConnection || ofRequest) && e.Direction == direction && e.Reason == reason
	}
}

// workload is what a test says about the workload behind a proxy.
type workload struct {
	td       *identitytest.TrustDomain
	svid     identity.SVID
	bundles  []identity.Bundle
	revision uint64
	policies string // YAML stream
	mutate   func(*wire.Snapshot)
}

// snapshot makes the wire form.
func (w workload) snapshot(t testing.TB) *wire.Snapshot {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(w.svid.Key)
	if err != nil {
		t.Fatal(err)
	}
	s := &wire.Snapshot{
		Position: &wire.Position{Epoch: 1, Revision: w.revision},
		Settings: &wire.Settings{TrustDomain: w.td.Name.String(), RootNamespace: "aval-system"},
		SpiffeId: w.svid.ID.String(),
		Key:      key, WorkloadNamespace: "shop", WorkloadLabels: map[string]string{"app": "api"},
		NodeId: "spiffe://" + w.td.Name.String() + "/aval/node/n1", IssuedAt: w.svid.IssuedAt.UnixMilli(),
	}
	for _, c := range w.svid.Chain {
		s.Chain = append(s.Chain, c.Raw)
	}
	for _, b := range append(slices.Clone(w.bundles), w.td.Bundle) {
		s.Bundles = append(s.Bundles, wire.FromBundle(b))
	}
	if w.policies != "" {
		docs, err := document.Parse("policies.yaml", []byte(w.policies))
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range docs {
			doc, err := d.JSON()
			if err != nil {
				t.Fatal(err)
			}
			s.Policies = append(s.Policies, &wire.Resource{Key: wire.FromKey(d.Key()), Document: doc, Revision: w.revision, Evaluator: 1})
		}
	}
	if w.mutate != nil {
		w.mutate(s)
	}
	return s
}

// mode is a PeerAuthentication of the workload's namespace.
func mode(m string) string {
	return fmt.Sprintf(`
---
apiVersion: aval.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: mode, namespace: shop}
spec: {mtls: {mode: %s}}
`, m)
}

// allow is an ALLOW policy for these principals.
func allow(principals ...string) string {
	quoted := make([]string, len(principals))
	for i, p := range principals {
		quoted[i] = fmt.Sprintf("%q", p)
	}
	return fmt.Sprintf(`
---
apiVersion: aval.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: shop}
spec:
  action: ALLOW
  rules: [{from: [{source: {principals: [%s]}}]}]
`, strings.Join(quoted, ", "))
}

// denyPort is a DENY policy for a port.
func denyPort(port uint16) string {
	return fmt.Sprintf(`
---
apiVersion: aval.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: shop}
spec:
  action: DENY
  rules: [{to: [{operation: {ports: ["%d"]}}]}]
`, port)
}

// runProxy runs a proxy until the test ends and waits until it listens.
func runProxy(t testing.TB, cfg Config) (*Proxy, func() error) {
	t.Helper()
	p, stop := startProxy(t, cfg)
	select {
	case <-p.Started():
	case <-time.After(8 * time.Second):
		t.Fatal("proxy does not listen")
	}
	return p, stop
}

// startProxy runs a proxy; the returned function stops it and gives Run's
// error.
func startProxy(t testing.TB, cfg Config) (*Proxy, func() error) {
	t.Helper()
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var once sync.Once
	result := make(chan error, 1)
	go func() { result <- p.Run(ctx) }()
	var final error
	stop := func() error {
		cancel()
		once.Do(func() {
			select {
			case final = <-result:
			case <-time.After(20 * time.Second):
				t.Error("proxy does not stop")
			}
		})
		return final
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("proxy ended with %v", err)
		}
	})
	return p, stop
}

// openFiles counts this process's descriptors by their kind.
func openFiles(t testing.TB) map[string]int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	kinds := make(map[string]int)
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil {
			continue
		}
		kind, _, _ := strings.Cut(to, ":")
		kinds[kind]++
	}
	maps.DeleteFunc(kinds, func(k string, _ int) bool { return k != "socket" && k != "pipe" })
	return kinds
}
