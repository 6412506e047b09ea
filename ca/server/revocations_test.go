// This file holds the tests of revocations in the server: recorded before
// they count, kept over restarts and crashes, ended only after the last
// certificate.

package server

import (
	"encoding/hex"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/wire"
)

// issued joins a node, has it issue one SVID for web, and returns all three.
func issued(t *testing.T, r *running) (*testNode, *stream, string) {
	t.Helper()
	r.apply(t, registration("shop", "web", "/web", ""))
	n := r.join(t, "one", nil)
	s := n.sync(t)
	s.issue(t, request(1, "shop/web", "/web"))
	return n, s, r.live.pick(time.Now(), func(string, liveSVID) bool { return true })[0].serial
}

func revoke(t *testing.T, r *running, kind, target string) *wire.RevokeResponse {
	t.Helper()
	resp, err := r.admin.Revoke(t.Context(), &wire.RevokeRequest{Kind: kind, Target: target, Reason: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func TestARevokedWorkloadIsIssuedNothingAlsoAfterARestart(t *testing.T) {
	cfg := testConfig(shortDir(t))
	r := start(t, cfg)
	n, s, serial := issued(t, r)
	resp := revoke(t, r, revokedID, "shop/web")
	if e := resp.GetExposed(); len(e) != 1 || e[0].GetSerial() != serial || e[0].GetNode() != n.id {
		t.Fatalf("exposed: %v", e)
	}
	refused := func(s *stream) {
		t.Helper()
		if res := s.issue(t, request(2, "shop/web", "/web"))[0]; codes.Code(res.GetCode()) != codes.PermissionDenied {
			t.Fatalf("issued for a revoked workload: %v", res)
		}
	}
	refused(s)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = start(t, cfg)
	n.server = r
	n.connect(t)
	refused(n.sync(t))
	if got := events(t, r.authorityLog, audit.KindRevocation); len(got) != 1 || got[0].Document != "Revocation id/spiffe://example.org/web" {
		t.Fatalf("recorded: %v", got)
	}
	_, err := r.admin.LiftRevocation(t.Context(), &wire.LiftRevocationRequest{Target: "shop/api"})
	wantCode(t, err, codes.NotFound, "no registration")
}

func TestALiftedWorkloadsOldSVIDsStayDenied(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	_, s, _ := issued(t, r)
	now := time.Now()
	if _, err := r.revoker.revoke(t.Context(), now, "test", revocation{Kind: revokedID, Target: "shop/web"}, false); err != nil {
		t.Fatal(err)
	}
	_, err := r.revoker.lift(t.Context(), now.Add(time.Second), "test", "shop/web")
	wantCode(t, err, codes.FailedPrecondition, "this very moment")
	if _, err := r.revoker.lift(t.Context(), now.Add(3*time.Second), "test", "shop/web"); err != nil {
		t.Fatal(err)
	}
	d := r.documents.denials()
	id := must(r.revoker.workload("shop/web"))
	if d.Denies(id, "", now.Add(-time.Minute), "") == "" {
		t.Error("what was issued before the revocation is taken again")
	}
	if why := d.Denies(id, "", now.Add(3*time.Second-time.Minute).Truncate(time.Second), ""); why != "" {
		t.Errorf("what is issued after the lift is denied: %s", why)
	}
	if res := s.issue(t, request(2, "shop/web", "/web"))[0]; len(res.GetChain()) == 0 {
		t.Errorf("nothing is issued after the lift: %v", res)
	}
}

func TestARevocationThatIsNotRecordedDeniesNothingUntilItIs(t *testing.T) {
	cfg := testConfig(shortDir(t))
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	log := &faulty{Recorder: s.authorityLog}
	s.setRecorder(log)
	r := run(t, s)
	_, _, serial := issued(t, r)
	log.set(errors.New("test: broken"))
	_, err = r.admin.Revoke(t.Context(), &wire.RevokeRequest{Kind: revokedSerial, Target: serial})
	wantCode(t, err, codes.Unavailable, "not in force")
	if !r.documents.denials().Empty() {
		t.Fatal("denied without a record")
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	// As after a kill between store and log: the record is made up for once.
	for range 2 {
		r = start(t, cfg)
		if got := events(t, r.authorityLog, audit.KindRevocation); len(got) != 1 || got[0].Serial != serial || got[0].Revision == 0 {
			t.Fatalf("recorded: %v", got)
		}
		if d := r.documents.denials().Serials(); len(d) != 1 || d[0] != serial {
			t.Fatalf("denied: %v", d)
		}
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAnEvictedNodesSVIDsAreDenied(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	_, _, serial := issued(t, r)
	must(r.admin.EvictNode(t.Context(), &wire.EvictNodeRequest{Name: "one"}))
	if d := r.documents.denials().Serials(); len(d) != 1 || d[0] != serial {
		t.Fatalf("denied: %v", d)
	}
}

func TestARevocationEndsOnlyAfterNotAfterPlusSkew(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	_, _, serial := issued(t, r)
	end := time.UnixMilli(revoke(t, r, revokedSerial, serial).GetRevocation().GetEnds())
	if next := r.revoker.Renew(t.Context(), end.Add(pruneSkew-time.Second)); r.documents.denials().Empty() || next.Before(end.Add(pruneSkew)) {
		t.Fatalf("ended too early; next %s, end %s", next, end)
	}
	r.revoker.Renew(t.Context(), end.Add(pruneSkew+time.Second))
	if !r.documents.denials().Empty() {
		t.Fatal("what has ended is still denied")
	}
	if got := events(t, r.authorityLog, audit.KindRevocation); len(got) != 2 || got[1].Reason != actionEnded {
		t.Fatalf("recorded: %v", got)
	}
}

func TestTheIssuerInUseIsNotRevoked(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	ski := hex.EncodeToString(r.Credentials().SVID.Leaf().AuthorityKeyId)
	_, err := r.admin.Revoke(t.Context(), &wire.RevokeRequest{Kind: revokedIssuer, Target: ski})
	wantCode(t, err, codes.FailedPrecondition, "rotation start intermediate")
	_, err = r.admin.Revoke(t.Context(), &wire.RevokeRequest{Kind: revokedIssuer, Target: "0123"})
	wantCode(t, err, codes.InvalidArgument, "40 hex digits")
	_, err = r.admin.Revoke(t.Context(), &wire.RevokeRequest{Kind: "all", Target: "x"})
	wantCode(t, err, codes.InvalidArgument, "is none of")
}

func TestARestoreDoesNotUndoRevocations(t *testing.T) {
	cfg := testConfig(shortDir(t))
	r := start(t, cfg)
	_, _, serial := issued(t, r)
	path := r.backup(t)
	revoke(t, r, revokedNode, "one")
	revoke(t, r, revokedID, "shop/web")
	before := r.documents.denials()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	must(Restore(path, cfg.DataDir))
	r = start(t, cfg)
	d := r.documents.denials()
	if d.Hash() != before.Hash() || len(d.Serials()) != 1 || d.Serials()[0] != serial {
		t.Fatalf("denied after the restore: %v %v, before: %v %v", d.Serials(), d.IDs(), before.Serials(), before.IDs())
	}
}

func TestAReplacedIssuerCanBeRevoked(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	ski := hex.EncodeToString(r.Credentials().SVID.Leaf().AuthorityKeyId)
	_, _, serial := issued(t, r)
	must(r.admin.Rotate(t.Context(), &wire.RotateRequest{Verb: "start", Target: "intermediate"}))
	e := revoke(t, r, revokedIssuer, ski).GetExposed()
	if len(e) != 1 || e[0].GetSerial() != serial {
		t.Fatalf("exposed: %v", e)
	}
	if got := r.documents.denials().Issuers(); len(got) != 1 || got[0] != ski {
		t.Fatalf("denied: %v", got)
	}
}
