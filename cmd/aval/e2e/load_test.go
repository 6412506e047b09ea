// This file holds full load while everything that can change does:
// certificates, policies, the agent itself.

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aval-id/aval/cmd/aval/avaltest"
	"github.com/aval-id/aval/identity/wire"
)

// loadSpan is how long the load lasts: a minute in CI, or as
// AVAL_LOAD says, and ten seconds elsewhere.
func loadSpan(t *testing.T) time.Duration {
	t.Helper()
	if text := os.Getenv("AVAL_LOAD"); text != "" {
		span, err := time.ParseDuration(text)
		avaltest.Must(t, err)
		return span
	}
	if os.Getenv("CI") == "true" {
		return time.Minute
	}
	return 10 * time.Second
}

// load calls through both proxies without a pause and counts.
type load struct {
	requests, failed atomic.Int64
	clients          sync.WaitGroup
}

// begin starts as many clients as keep both cores busy. Every other one
// keeps its connection over all changes, the rest shake hands for each
// request.
func (l *load) begin(ctx context.Context, t *testing.T, s *shop) {
	const clients, errorsShown = 8, 5
	for i := range clients {
		var client *http.Client
		if i%2 == 0 {
			transport := &http.Transport{MaxConnsPerHost: 1}
			client = &http.Client{Transport: transport, Timeout: 10 * time.Second}
			t.Cleanup(transport.CloseIdleConnections)
		}
		l.clients.Go(func() {
			for ctx.Err() == nil {
				n := l.requests.Add(1)
				if err := s.call(client); err != nil && l.failed.Add(1) <= errorsShown {
					t.Errorf("request %d: %v", n, err)
				}
			}
		})
	}
}

// change gives both workloads new certificates, by a DNS name that is new,
// and their namespace new policies.
func (s *shop) change(ctx context.Context, admin wire.AdminClient, n int) error {
	var documents [][]byte
	add := func(d any) error {
		text, err := json.Marshal(d)
		documents = append(documents, text)
		return err
	}
	type object = map[string]any
	var errs []error
	for _, name := range []string{"api", "web"} {
		errs = append(errs, add(object{"apiVersion": "aval.dev/v1alpha1", "kind": "Registration",
			"metadata": object{"name": name, "namespace": "shop", "labels": object{"app": name}},
			"spec": object{"id": "/ns/shop/sa/" + name, "workload": object{"unix.path": filepath.Join(s.Dir, name)},
				"dnsNames": []string{fmt.Sprintf("%s-%d.shop", name, n)}}}))
	}
	errs = append(errs, add(object{"apiVersion": "aval.dev/v1alpha1", "kind": "AuthorizationPolicy",
		"metadata": object{"name": "callers", "namespace": "shop"},
		"spec": object{"selector": object{"matchLabels": object{"app": "api"}}, "rules": []object{{"from": []object{{"source": object{
			"principals": []string{fmt.Sprintf("example.org/ns/shop/sa/other-%d", n), "example.org/ns/shop/sa/web"}}}}}}}}))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	_, err := admin.Apply(ctx, &wire.ApplyRequest{Documents: documents})
	return err
}

// restartAgent ends the agent and starts it again on what it has on disk.
func (s *shop) restartAgent(t *testing.T, end func()) {
	t.Helper()
	end()
	s.StartAgentWith("n1", avaltest.Token{})
}

func TestNoRequestFailsWhileCertificatesPoliciesAndTheAgentChange(t *testing.T) {
	if testing.Short() {
		t.Skip("runs for seconds at full load")
	}
	for _, protocol := range []string{"auto", "http"} {
		t.Run(protocol, func(t *testing.T) { changeUnderLoad(t, protocol, loadSpan(t)) })
	}
}

func changeUnderLoad(t *testing.T, protocol string, span time.Duration) {
	s := newShop(t, "1h")
	s.admit = fmt.Sprintf("inbound: [{listen: %s, forward: %s, protocol: %s}]\n", s.inbound, s.app.Listener.Addr(), protocol)
	s.open(t)
	admin := s.Operator()
	before := len(s.Entries("issuance"))

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var l load
	l.begin(ctx, t, s)
	changes := int(span / time.Second)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for n := 1; n <= changes; n++ {
		<-tick.C
		if err := s.change(t.Context(), admin, n); err != nil {
			t.Fatalf("change %d: %v", n, err)
		}
		switch n {
		case changes / 3:
			s.restartAgent(t, s.Agent.Stop)
		case changes * 2 / 3:
			s.restartAgent(t, s.Agent.Kill)
		}
	}
	cancel()
	l.clients.Wait()
	rotations := len(s.Entries("issuance")) - before
	t.Logf("%d requests, %d failed, %d changes, %d certificates", l.requests.Load(), l.failed.Load(), changes, rotations)
	if l.failed.Load() > 0 || l.requests.Load() == 0 {
		t.Errorf("%d of %d requests failed", l.failed.Load(), l.requests.Load())
	}
	if used := serials(s); rotations < changes || used < changes/2 {
		t.Errorf("%d certificates were issued and %d used in %d changes", rotations, used, changes)
	}
	// What comes after both restarts holds too.
	s.Apply("apiVersion: aval.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: callers, namespace: shop}\nspec: {selector: {matchLabels: {app: api}}}\n")
	s.Await("a policy of after the load holds", func() bool { return s.call(nil) != nil })
}

// serials counts the certificates of web that connections came with.
func serials(s *shop) int {
	seen := map[any]bool{}
	for _, e := range s.Entries("connection") {
		seen[e["client_serial"]] = true
	}
	return len(seen)
}
