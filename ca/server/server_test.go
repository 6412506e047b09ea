// This file holds the tests of the ordinary days: join, sync, issue, renew,
// evict, restart.

package server

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/wire"
)

func TestTripOfAnIdentity(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	n := r.join(t, "one", map[string]string{"zone": "a"})
	if n.id != "spiffe://example.org/aval/node/one" {
		t.Fatalf("node is %s", n.id)
	}
	s := n.sync(t)
	if !s.welcome.GetResync() || s.welcome.GetServerId() != "spiffe://example.org/aval/server/server-1" {
		t.Fatalf("welcome %v", s.welcome)
	}
	resp := r.apply(t, registration("shop", "web", "/ns/shop/sa/web", `,"ttl":"1h","dnsNames":["web.shop"]`),
		registration("shop", "far", "/ns/shop/sa/far", `,"node":{"zone":"b"}`))
	s.reach(t, resp.GetPosition())
	if got := s.names(); !slices.Equal(got, []string{"Registration shop/web"}) {
		t.Fatalf("node holds %v", got)
	}
	res := s.issue(t, request(1, "shop/web", "/ns/shop/sa/web"), request(2, "shop/far", "/ns/shop/sa/far"),
		request(3, "shop/web", "/ns/shop/sa/other"), request(4, "no/such", "/ns/no/sa/such"),
		&wire.IssueRequest{Request: 5, Registration: "shop/web", SpiffeId: "spiffe://example.org/ns/shop/sa/web", Csr: []byte("garbled")})
	if id := verifies(t, res[0].GetChain(), n.bundle); id.String() != "spiffe://example.org/ns/shop/sa/web" {
		t.Fatalf("issued %s", id)
	}
	leaf := must(identity.ParseChain(res[0].GetChain()))[0]
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life != time.Hour+time.Minute || !slices.Equal(leaf.DNSNames, []string{"web.shop"}) {
		t.Fatalf("lifetime %s, names %v", life, leaf.DNSNames)
	}
	for i, code := range []codes.Code{codes.OK, codes.PermissionDenied, codes.PermissionDenied, codes.PermissionDenied, codes.InvalidArgument} {
		if codes.Code(res[i].GetCode()) != code || (code != codes.OK) != (len(res[i].GetChain()) == 0) {
			t.Errorf("result %d: code %d %q, want %s", i, res[i].GetCode(), res[i].GetError(), code)
		}
	}
	checkReceipt(t, r, res[0], leaf.SerialNumber.Text(16))
	for _, reason := range []string{"not_entitled", "bad_csr"} {
		waitEvent(t, r.authorityLog, reason, func(e audit.Event) bool {
			return e.Kind == audit.KindRefused && e.Reason == reason && e.Node == n.id
		})
	}
}

func checkReceipt(t *testing.T, r *running, res *wire.IssueResult, serial string) {
	t.Helper()
	w := res.GetReceipt()
	receipt := audit.Receipt{Log: w.GetLog(), Index: w.GetIndex(), EntryHash: [32]byte(w.GetEntryHash()), First: w.GetFirst(), Count: w.GetCount(), Signature: w.GetSignature()}
	for _, h := range w.GetPath() {
		receipt.Path = append(receipt.Path, [32]byte(h))
	}
	if err := receipt.Verify(r.authorityLog.VerifierKey()); err != nil {
		t.Error(err)
	}
	issued := events(t, r.authorityLog, audit.KindIssuance)
	if last := issued[len(issued)-1]; must(identity.ParseID(last.SPIFFEID)).Path() != "/ns/shop/sa/web" || last.Registration != "shop/web" || last.LeafSHA256 == "" || len(last.Serial)+1 < len(serial) {
		t.Errorf("event %+v", last)
	}
}

func TestPoliciesFollowTheNamespacesOfANode(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	n := r.join(t, "one", nil)
	s := n.sync(t)
	resp := r.apply(t, denyAll("shop", "deny"), denyAll("other", "deny"), denyAll("aval-system", "deny"))
	s.reach(t, resp.GetPosition())
	if got := s.names(); !slices.Equal(got, []string{"AuthorizationPolicy aval-system/deny"}) {
		t.Fatalf("node holds %v", got)
	}
	s.reach(t, r.apply(t, registration("shop", "web", "/web", "")).GetPosition())
	if got := s.names(); !slices.Equal(got, []string{"AuthorizationPolicy aval-system/deny", "AuthorizationPolicy shop/deny", "Registration shop/web"}) {
		t.Fatalf("node holds %v", got)
	}
	// A second stream begins with the same whole.
	again := n.sync(t)
	again.reach(t, resp.GetPosition())
	if !slices.Equal(again.names(), s.names()) {
		t.Fatalf("second stream holds %v", again.names())
	}
	if g := s.answer(t).GetGoodbye(); g == nil || g.GetEvicted() {
		t.Fatalf("first stream got %v", g)
	}
	waitEvent(t, r.authorityLog, "session", func(e audit.Event) bool { return e.Kind == audit.KindSession && e.Node == n.id })
	del, err := r.admin.Delete(t.Context(), &wire.DeleteRequest{Keys: []*wire.ResourceKey{{Kind: "registrations", Namespace: "shop", Name: "web"}}})
	if err != nil {
		t.Fatal(err)
	}
	again.reach(t, del.GetPosition())
	if got := again.names(); !slices.Equal(got, []string{"AuthorizationPolicy aval-system/deny"}) {
		t.Fatalf("node holds %v", got)
	}
	_, err = r.admin.Delete(t.Context(), &wire.DeleteRequest{Keys: []*wire.ResourceKey{{Kind: "registrations", Namespace: "shop", Name: "web"}}})
	wantCode(t, err, codes.NotFound, "Registration shop/web")
}

func TestApplyIsAllOrNothing(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	for name, bad := range map[string][]byte{
		"lifetime": registration("shop", "bad", "/bad", `,"ttl":"48h"`),
		"reserved": registration("shop", "bad", "/aval/server/x", ""),
		"field":    registration("shop", "bad", "/bad", `,"colour":"red"`),
		"twice":    registration("shop", "good", "/good", ""),
		"json":     []byte(`{`),
	} {
		_, err := r.admin.Apply(t.Context(), &wire.ApplyRequest{Documents: [][]byte{registration("shop", "good", "/good", ""), bad}})
		if wantCode(t, err, codes.InvalidArgument, ""); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if got := must(r.admin.Get(t.Context(), &wire.GetRequest{})); len(got.GetDocuments()) != 0 {
		t.Fatalf("%d documents are there", len(got.GetDocuments()))
	}
	dry := must(r.admin.Apply(t.Context(), &wire.ApplyRequest{DryRun: true, Documents: [][]byte{registration("shop", "good", "/good", "")}}))
	if dry.GetChanges()[0].GetAction() != "created" || len(must(r.admin.Get(t.Context(), &wire.GetRequest{})).GetDocuments()) != 0 {
		t.Fatal("a dry run changed something")
	}
	first := r.apply(t, registration("shop", "good", "/good", ""))
	again := r.apply(t, registration("shop", "good", "/good", ""))
	if again.GetChanges()[0].GetAction() != "unchanged" || again.GetPosition().GetRevision() != first.GetPosition().GetRevision() {
		t.Fatalf("applied again: %v", again)
	}
	if got := r.apply(t, registration("shop", "good", "/better", "")).GetChanges()[0].GetAction(); got != "configured" {
		t.Fatalf("action %s", got)
	}
	if got := events(t, r.authorityLog, audit.KindDocumentApplied); len(got) != 2 || got[0].Actor == "" || got[0].Revision == 0 || got[0].Document != "Registration shop/good" {
		t.Fatalf("events %+v", got)
	}
}

func TestEvictedNodeGetsNothing(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	r.apply(t, registration("shop", "web", "/web", ""))
	token := r.token(t, "one", nil)
	n := r.joinWith(t, token, newKey())
	s := n.sync(t)
	s.issue(t, request(1, "shop/web", "/web"))
	shown := must(r.admin.ListNodes(t.Context(), &wire.ListNodesRequest{Name: "one"})).GetNodes()[0]
	if !shown.GetConnected() || len(shown.GetSvids()) != 1 {
		t.Fatalf("node %v", shown)
	}
	resp := must(r.admin.EvictNode(t.Context(), &wire.EvictNodeRequest{Name: "one"}))
	if v := resp.GetNode().GetSvids(); len(v) != 1 || v[0].GetSpiffeId() != "spiffe://example.org/web" || v[0].GetNotAfter() < time.Now().UnixMilli() {
		t.Fatalf("live SVIDs %v", v)
	}
	if g := s.answer(t).GetGoodbye(); !g.GetEvicted() {
		t.Fatalf("goodbye %v", g)
	}
	wantCode(t, <-s.ended, codes.PermissionDenied, "evicted")
	_, err := n.trySync(t)
	wantCode(t, err, codes.PermissionDenied, "evicted")
	_, err = n.client.Renew(t.Context(), &wire.RenewRequest{Csr: csrOf(newKey())})
	wantCode(t, err, codes.PermissionDenied, "evicted")
	_, anonymous := r.dial(t, nil)
	_, err = anonymous.Attest(t.Context(), &wire.AttestRequest{NodeId: n.id, Csr: csrOf(n.key)})
	wantCode(t, err, codes.PermissionDenied, "evicted")
	_, err = anonymous.Attest(t.Context(), &wire.AttestRequest{Token: token, Csr: csrOf(n.key)})
	wantCode(t, err, codes.PermissionDenied, "evicted")
	if len(events(t, r.authorityLog, audit.KindNodeEvicted)) != 1 {
		t.Fatal("the eviction is not recorded once")
	}
	// A token made after the eviction is an operator's word to take it back.
	r.join(t, "one", nil).sync(t)
}

func TestRenewedKeyReplacesTheOld(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	old := r.join(t, "one", nil)
	next := *old
	next.conn, next.key = nil, newKey()
	resp, err := old.client.Renew(t.Context(), &wire.RenewRequest{Csr: csrOf(next.key)})
	if err != nil {
		t.Fatal(err)
	}
	next.chain = must(identity.ParseChain(resp.GetChain()))
	old.sync(t) // the new key was not used yet
	next.connect(t)
	next.sync(t)
	_, err = old.trySync(t)
	wantCode(t, err, codes.PermissionDenied, "not one that node one may use")
	// An expired credential comes back by the recorded key, and by no other.
	_, anonymous := r.dial(t, nil)
	if _, err := anonymous.Attest(t.Context(), &wire.AttestRequest{NodeId: next.id, Csr: csrOf(next.key)}); err != nil {
		t.Fatal(err)
	}
	_, err = anonymous.Attest(t.Context(), &wire.AttestRequest{NodeId: next.id, Csr: csrOf(old.key)})
	wantCode(t, err, codes.PermissionDenied, "")
}

func TestRestartKeepsWhatWasAcknowledged(t *testing.T) {
	cfg := testConfig(shortDir(t))
	r := start(t, cfg)
	n := r.join(t, "one", nil)
	position := r.apply(t, registration("shop", "web", "/web", "")).GetPosition()
	s := n.sync(t)
	s.reach(t, position)
	s.issue(t, request(1, "shop/web", "/web"))
	before := must(r.admin.ServerStatus(t.Context(), &wire.ServerStatusRequest{}))
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = start(t, cfg)
	after := must(r.admin.ServerStatus(t.Context(), &wire.ServerStatusRequest{}))
	for i, role := range []string{"root", "intermediate"} {
		if before.GetAuthorities()[i].GetHash() != after.GetAuthorities()[i].GetHash() {
			t.Errorf("%s changed over a restart", role)
		}
	}
	n.server = r
	n.connect(t)
	s = n.sync(t)
	s.reach(t, position)
	if got := s.names(); !slices.Equal(got, []string{"Registration shop/web"}) {
		t.Fatalf("node holds %v", got)
	}
	shown := must(r.admin.ListNodes(t.Context(), &wire.ListNodesRequest{Name: "one"})).GetNodes()[0]
	if len(shown.GetSvids()) != 1 {
		t.Fatalf("live SVIDs %v", shown.GetSvids())
	}
	if after.GetPosition().GetEpoch() != position.GetEpoch() || after.GetPosition().GetRevision() < position.GetRevision() {
		t.Fatalf("position %v after %v", after.GetPosition(), position)
	}
}

func TestConnectionRecordsAreStoredAndAcknowledged(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	n := r.join(t, "one", nil)
	s := n.sync(t)
	ok := []byte(`{"time":"2026-11-22T10:00:00Z","kind":"connection","verdict":"allowed","reason":"allowed","node":"forged","client_id":"spiffe://example.org/web"}`)
	forged := []byte(`{"time":"2026-11-22T10:00:00Z","kind":"issuance","verdict":"allowed"}`)
	frame := &wire.NodeFrame{Frame: &wire.NodeFrame_Records{Records: &wire.RecordBatch{Sequence: 9, Events: [][]byte{ok, forged, []byte("x")}, Lost: 3}}}
	if err := s.Send(frame); err != nil {
		t.Fatal(err)
	}
	if got := s.answer(t).GetRecordsAck().GetSequence(); got != 9 {
		t.Fatalf("acknowledged %d", got)
	}
	got := events(t, r.connections, audit.KindConnection)
	if len(got) != 1 || got[0].Node != n.id || got[0].ClientID != "spiffe://example.org/web" {
		t.Fatalf("stored %+v", got)
	}
	if lost := events(t, r.connections, audit.KindLoss); len(lost) != 1 || lost[0].Lost != 5 {
		t.Fatalf("losses %+v", lost)
	}
}

func TestEntriesAreFilteredAndFollowed(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	r.apply(t, registration("shop", "web", "/web", ""))
	stream, err := r.admin.Entries(t.Context(), &wire.EntriesRequest{Log: "authority", Kinds: []string{"document_applied"}, Follow: true, Last: 10})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"web", "api"} {
		if name == "api" {
			r.apply(t, registration("shop", "api", "/api", ""))
		}
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if len(m.GetEntries()) != 1 || m.GetLog() != "authority" {
			t.Fatalf("message %v", m)
		}
	}
	one, err := r.admin.Entries(t.Context(), &wire.EntriesRequest{Log: "authority", SetIndex: true})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := one.Recv(); err != nil || len(m.GetEntries()) != 1 {
		t.Fatalf("entry 0: %v %v", m, err)
	}
	bad, _ := r.admin.Entries(t.Context(), &wire.EntriesRequest{Kinds: []string{"nonsense"}})
	_, err = bad.Recv()
	wantCode(t, err, codes.InvalidArgument, "nonsense")
}
