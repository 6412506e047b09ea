// This file holds the tests of the registry of endpoints over real streams.

package server

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca/registry"
	"github.com/aval-id/aval/identity/directory"
	"github.com/aval-id/aval/identity/directory/protocol"
	"github.com/aval-id/aval/identity/wire"
)

// reports sends a report of endpoints, each written "registration address port".
func (s *stream) reports(t testing.TB, subscribe bool, endpoints ...string) {
	t.Helper()
	r := &wire.EndpointReport{Complete: true, Subscribe: subscribe}
	for _, text := range endpoints {
		var name, address string
		var port uint32
		if _, err := fmt.Sscan(text, &name, &address, &port); err != nil {
			t.Fatal(err)
		}
		r.Endpoints = append(r.Endpoints, &wire.Endpoint{Registration: "shop/" + name, SpiffeId: "spiffe://example.org/ns/shop/sa/" + name,
			Address: address, Port: port, Mode: "STRICT"})
	}
	if err := s.Send(&wire.NodeFrame{Frame: &wire.NodeFrame_Endpoints{Endpoints: r}}); err != nil {
		t.Fatal(err)
	}
}

// follow applies deltas until the replica holds these addresses, as a whole.
func (s *stream) follow(t testing.TB, replica *directory.Replica, want string) {
	t.Helper()
	var got []string
	for {
		set, whole := replica.Set()
		got = nil
		for _, e := range set.All() {
			got = append(got, e.Address.String())
		}
		if whole && strings.Join(got, " ") == want {
			return
		}
		if t.Failed() {
			t.Fatalf("holds %v, want %s", got, want)
		}
		d := s.answer(t).GetEndpoints()
		if d == nil {
			t.Fatal("another frame than a delta of endpoints")
		}
		parsed, faults := protocol.ToEndpointDelta(d)
		if _, fault := replica.Apply(parsed); fault != nil || faults != nil {
			t.Fatal(fault, faults)
		}
	}
}

// listed waits until exactly these endpoints are accepted.
func (r *running) listed(t testing.TB, want string) {
	t.Helper()
	var got []string
	defer func() {
		if t.Failed() {
			t.Logf("listed: %v", got)
		}
	}()
	wait(t, "endpoints "+want, func() bool {
		resp, err := r.admin.ListEndpoints(t.Context(), &wire.ListEndpointsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		got = nil
		for _, e := range resp.GetEndpoints() {
			if e.GetState() == registry.Accepted {
				got = append(got, e.GetEndpoint().GetAddress())
			}
		}
		slices.Sort(got)
		return strings.Join(got, " ") == want
	})
}

func TestEndpointsReachTheNodesThatAskAndLeaveAtOnce(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	r.apply(t, registration("shop", "api", "/ns/shop/sa/api", ""), registration("shop", "db", "/ns/shop/sa/db", ""))
	n1 := r.join(t, "n1", map[string]string{"address": "10.1.0.0/24"})
	n2 := r.join(t, "n2", map[string]string{"address": "10.2.0.0/24"})
	n3 := r.join(t, "n3", nil)
	s1, s2, s3 := n1.sync(t), n2.sync(t), n3.sync(t)
	if !s1.welcome.GetEndpoints() {
		t.Fatal("the welcome does not say that there is a registry")
	}
	s3.reports(t, true)
	s1.reports(t, false, "api 10.1.0.1 80")
	s2.reports(t, false, "db 10.2.0.1 0")
	var replica directory.Replica
	s3.follow(t, &replica, "10.1.0.1 10.2.0.1")
	// An endpoint moves.
	s1.reports(t, false, "api 10.1.0.2 80")
	s3.follow(t, &replica, "10.1.0.2 10.2.0.1")
	// A registration goes, and an eviction takes what a node has.
	key := &wire.ResourceKey{Kind: "Registration", Namespace: "shop", Name: "db"}
	if _, err := r.admin.Delete(t.Context(), &wire.DeleteRequest{Keys: []*wire.ResourceKey{key}}); err != nil {
		t.Fatal(err)
	}
	s3.follow(t, &replica, "10.1.0.2")
	if _, err := r.admin.EvictNode(t.Context(), &wire.EvictNodeRequest{Name: "n1"}); err != nil {
		t.Fatal(err)
	}
	s3.follow(t, &replica, "")
	r.listed(t, "")
	// A node that did not ask gets nothing of it.
	select {
	case f := <-s2.frames:
		t.Errorf("a frame came: %v", f)
	default:
	}
}

func TestAStreamThatEndsTakesNothingAwayAndTheNextMayBringLess(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	r.apply(t, registration("shop", "api", "/ns/shop/sa/api", ""))
	n := r.join(t, "n1", map[string]string{"address": "10.1.0.0/24"})
	s := n.sync(t)
	s.reports(t, false, "api 10.1.0.1 80", "api 10.1.0.2 80")
	r.listed(t, "10.1.0.1 10.1.0.2")
	// A second stream takes the place of the first, whose end means nothing.
	again := n.sync(t)
	again.reports(t, false, "api 10.1.0.2 80")
	r.listed(t, "10.1.0.2")
	n.conn.Close()
	wait(t, "the node is away", func() bool {
		resp, err := r.admin.ListEndpoints(t.Context(), &wire.ListEndpointsRequest{})
		return err == nil && len(resp.GetEndpoints()) == 1 && !resp.GetEndpoints()[0].GetConnected()
	})
	r.listed(t, "10.1.0.2")
}

func TestAClaimOfAnothersAddressIsRefusedRecordedAndShown(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	r.apply(t, registration("shop", "api", "/ns/shop/sa/api", ""), registration("shop", "db", "/ns/shop/sa/db", ""))
	good := r.join(t, "good", map[string]string{"address": "10.1.0.1"}).sync(t)
	good.reports(t, false, "api 10.1.0.1 80")
	r.listed(t, "10.1.0.1")
	bad := r.join(t, "bad", map[string]string{"address": "10.0.0.0/8"}).sync(t)
	bad.reports(t, false, "db 10.1.0.1 80", "db 192.0.2.1 80", "db 127.0.0.1 80", "db 10.9.0.1 80")
	r.listed(t, "10.1.0.1 10.9.0.1")
	st, err := r.admin.ServerStatus(t.Context(), &wire.ServerStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if st.GetEndpoints() != 2 || len(st.GetEndpointFaults()) != 1 || !strings.Contains(st.GetEndpointFaults()[0], "node bad") ||
		!strings.Contains(st.GetEndpointFaults()[0], "spiffe://example.org/ns/shop/sa/api of node good has it by a better right") {
		t.Errorf("faults: %q", st.GetEndpointFaults())
	}
	resp, err := r.admin.ListEndpoints(t.Context(), &wire.ListEndpointsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	states := map[string]int{}
	for _, e := range resp.GetEndpoints() {
		states[e.GetState()]++
	}
	if states[registry.Accepted] != 2 || states[registry.Conflict] != 1 || states[registry.Refused] != 2 {
		t.Errorf("states: %v", states)
	}
	wait(t, "the record", func() bool {
		found := false
		err := readSince(r.authorityLog, time.Now().Add(-time.Minute), func(e audit.Event) bool {
			found = found || e.Kind == audit.KindRefused && e.Node == "spiffe://example.org/aval/node/bad" && strings.Contains(e.Detail, "10.1.0.1")
			return true
		})
		return err == nil && found
	})
}

func TestAServerSettlesOnceItsNodesHaveReported(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	r.apply(t, registration("shop", "api", "/ns/shop/sa/api", ""))
	n1, n2 := r.join(t, "n1", map[string]string{"address": "10.1.0.0/24"}), r.join(t, "n2", nil)
	cfg := r.cfg
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	cfg.Listen = r.Addr().String()
	cfg.Listener = nil
	again := start(t, cfg)
	n1.server, n2.server = again, again
	n1.connect(t)
	n2.connect(t)
	s2 := n2.sync(t)
	s2.reports(t, true)
	d := s2.answer(t).GetEndpoints()
	if d == nil || !d.GetReset_() || d.GetComplete() {
		t.Fatalf("before the other node has reported: %v", d)
	}
	var replica directory.Replica
	parsed, _ := protocol.ToEndpointDelta(d)
	replica.Apply(parsed)
	n1.sync(t).reports(t, false, "api 10.1.0.1 80")
	s2.follow(t, &replica, "10.1.0.1")
	if time.Since(again.started) > settleTime {
		t.Error("it waited its whole time")
	}
}

func TestTokensNameOnlyAddressesThatCanBe(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	for _, bad := range []string{"host", "10.0.0.1/8", "0.0.0.0/0", "10.0.0.1:80"} {
		_, err := r.admin.CreateToken(t.Context(), &wire.CreateTokenRequest{Node: "n", Attributes: map[string]*wire.Values{"address": {Values: []string{bad}}}})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "attribute address") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// wait looks at a condition until it holds.
func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(15 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("never: %s", what)
		}
	}
}
