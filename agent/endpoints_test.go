// This file holds the tests of the registry of endpoints in an agent: what
// proxies announce and get of it.

package agent

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/aval-id/aval/identity/directory"
	"github.com/aval-id/aval/identity/identitytest"
	"github.com/aval-id/aval/identity/wire"
)

// reported waits until the newest report holds n endpoints.
func (s *fakeServer) reported(t testing.TB, n int, ok func(*wire.EndpointReport) bool) *wire.EndpointReport {
	t.Helper()
	var last *wire.EndpointReport
	eventually(t, "the report", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.reports) == 0 {
			return false
		}
		last = s.reports[len(s.reports)-1]
		return len(last.GetEndpoints()) == n && (ok == nil || ok(last))
	})
	return last
}

func announce(ctx context.Context, c wire.ProxyClient, identity string, endpoints ...*wire.Endpoint) (wire.Proxy_AnnounceClient, error) {
	st, err := c.Announce(ctx, &wire.Announcement{Identity: identity, Endpoints: endpoints})
	if err == nil {
		_, err = st.Recv()
	}
	return st, err
}

func TestAnAnnouncementIsStampedWithTheAttestedIdentityAndLastsAsLongAsTheCall(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.registry = true
	s.apply(registration("web", "/ns/shop/sa/web") + registration("api", "/ns/shop/sa/api"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	c := wire.NewProxyClient(a.dial(t))
	claim := &wire.Endpoint{Address: "10.0.0.1", Port: 80, Mode: "STRICT",
		Node: "spiffe://example.org/aval/node/other", Registration: "other/one", SpiffeId: "spiffe://example.org/ns/other/sa/one"}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := announce(ctx, c, web, claim); err != nil {
		t.Fatal(err)
	}
	e := s.reported(t, 1, nil).GetEndpoints()[0]
	if e.GetSpiffeId() != web || e.GetRegistration() != "shop/web" || e.GetNode() != "" || e.GetAddress() != "10.0.0.1" {
		t.Errorf("reported: %v", e)
	}
	second, err := announce(t.Context(), c, api, claim)
	if err != nil {
		t.Fatal(err)
	}
	s.reported(t, 2, nil)
	cancel()
	s.reported(t, 1, func(r *wire.EndpointReport) bool { return r.GetEndpoints()[0].GetSpiffeId() == api })
	// The end of the entitlement is the end of the announcement.
	s.apply("", regKey("api"))
	if _, err := second.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("after the registration went: %v", err)
	}
	s.reported(t, 0, nil)
}

func TestAnnouncementsThatCannotBeAreRefused(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.registry = true
	s.apply(registration("web", "/ns/shop/sa/web"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	c := wire.NewProxyClient(a.dial(t))
	good := &wire.Endpoint{Address: "10.0.0.1", Port: 80, Mode: "STRICT"}
	bad := func(change func(*wire.Endpoint)) []*wire.Endpoint {
		e := proto.CloneOf(good)
		change(e)
		return []*wire.Endpoint{e}
	}
	var many []*wire.Endpoint
	for range directory.MaxPerProxy + 1 {
		many = append(many, good)
	}
	for name, tt := range map[string]struct {
		identity string
		list     []*wire.Endpoint
		code     codes.Code
	}{
		"loopback":           {web, bad(func(e *wire.Endpoint) { e.Address = "127.0.0.1" }), codes.InvalidArgument},
		"port":               {web, bad(func(e *wire.Endpoint) { e.Port = 1 << 20 }), codes.InvalidArgument},
		"exceptions":         {web, bad(func(e *wire.Endpoint) { e.Port, e.Except = 0, make([]uint32, 1000) }), codes.InvalidArgument},
		"too many":           {web, many, codes.ResourceExhausted},
		"another's identity": {api, []*wire.Endpoint{good}, codes.PermissionDenied},
	} {
		if _, err := announce(t.Context(), c, tt.identity, tt.list...); status.Code(err) != tt.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Nor more for all proxies of a node together.
	full := many[:directory.MaxPerProxy]
	for range directory.MaxPerNode / directory.MaxPerProxy {
		if _, err := announce(t.Context(), c, web, full...); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := announce(t.Context(), c, web, good); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "proxies of this node") {
		t.Errorf("one for the node too many: %v", err)
	}
}

// nextSet receives one whole registry.
func nextSet(t testing.TB, st wire.Proxy_EndpointsClient) (addresses string) {
	t.Helper()
	var out []string
	for {
		part, err := st.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range part.GetEndpoints() {
			out = append(out, e.GetAddress())
		}
		if part.GetComplete() {
			return strings.Join(out, " ")
		}
	}
}

func TestAProxyGetsTheRegistryWholeAndKeepsItWithoutAServer(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.registry = true
	s.apply(registration("web", "/ns/shop/sa/web"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	c := wire.NewProxyClient(a.dial(t))
	st, err := c.Endpoints(t.Context(), &wire.EndpointsRequest{Identity: web})
	if err != nil {
		t.Fatal(err)
	}
	s.reported(t, 0, func(r *wire.EndpointReport) bool { return r.GetSubscribe() })
	delta := func(reset, complete bool, addresses ...string) {
		d := &wire.EndpointDelta{Reset_: reset, Complete: complete}
		for _, address := range addresses {
			d.Upserts = append(d.Upserts, &wire.Endpoint{Node: "spiffe://example.org/aval/node/n2", SpiffeId: api, Address: address, Port: 80, Mode: "STRICT"})
		}
		s.push(&wire.ServerFrame{Frame: &wire.ServerFrame_Endpoints{Endpoints: d}})
	}
	delta(true, false, "10.0.0.1")
	delta(false, true, "10.0.0.2") // before it there is nothing to show
	if got := nextSet(t, st); got != "10.0.0.1 10.0.0.2" {
		t.Errorf("first: %s", got)
	}
	// Another server, which has heard of one so far.
	s.stop()
	s.start(s.addr)
	s.mu.Lock()
	s.reports = nil
	s.mu.Unlock()
	s.reported(t, 0, func(r *wire.EndpointReport) bool { return r.GetSubscribe() })
	delta(true, false, "10.0.0.3")
	if got := nextSet(t, st); got != "10.0.0.1 10.0.0.2 10.0.0.3" {
		t.Errorf("while it settles: %s", got)
	}
	s.stop()
	late, err := c.Endpoints(t.Context(), &wire.EndpointsRequest{Identity: web})
	if err != nil {
		t.Fatal(err)
	}
	if got := nextSet(t, late); got != "10.0.0.1 10.0.0.2 10.0.0.3" {
		t.Errorf("without a server: %s", got)
	}
	s.start(s.addr)
	s.mu.Lock()
	s.reports = nil
	s.mu.Unlock()
	s.reported(t, 0, nil)
	delta(true, true, "10.0.0.3")
	if got := nextSet(t, late); got != "10.0.0.3" {
		t.Errorf("settled: %s", got)
	}
}

func TestAServerWithoutARegistryLeavesProxiesNothingToWaitFor(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.apply(registration("web", "/ns/shop/sa/web"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	st, err := wire.NewProxyClient(a.dial(t)).Endpoints(t.Context(), &wire.EndpointsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := nextSet(t, st); got != "" {
		t.Errorf("registry: %s", got)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.reports) > 0 {
		t.Error("a server that keeps none got a report")
	}
}
