// This file holds the tests of the root's rollover on a real server with
// nodes that speak the protocol.

package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/mtls"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/rotation"
)

// member is a node that follows a rollover by acknowledging what the test
// tells it to.
type member struct {
	*testNode
	*stream
}

func (r *running) member(t testing.TB, name string) *member {
	t.Helper()
	n := r.join(t, name, nil)
	return &member{n, n.sync(t)}
}

// acks says what the node holds: a bundle, and leaves of issuers.
func (m *member) acks(t testing.TB, b identity.Bundle, issuers ...string) {
	t.Helper()
	hash := b.Hash()
	err := m.stream.Send(&wire.NodeFrame{Frame: &wire.NodeFrame_Ack{Ack: &wire.Ack{Position: m.welcome.GetPosition(), Bundles: [][]byte{hash[:]}, Issuers: issuers}}})
	if err != nil {
		t.Fatal(err)
	}
}

func (r *running) rotate(t testing.TB, verb string) *wire.RotationState {
	t.Helper()
	return must(r.admin.Rotate(t.Context(), &wire.RotateRequest{Verb: verb, Target: "root", Settle: -1}))
}

func (r *running) rotation(t testing.TB) *wire.RotationState {
	t.Helper()
	stream := must(r.admin.RotationStatus(t.Context(), &wire.RotationStatusRequest{}))
	return must(stream.Recv())
}

// awaits follows the rollover until ok holds.
func (r *running) awaits(t testing.TB, what string, ok func(*wire.RotationState) bool) *wire.RotationState {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream := must(r.admin.RotationStatus(ctx, &wire.RotationStatusRequest{Watch: true}))
	var last *wire.RotationState
	for {
		s, err := stream.Recv()
		if err != nil {
			t.Fatalf("%s: %v; last: %v", what, err, last)
		}
		if last = s; ok(s) {
			return s
		}
	}
}

func phaseIs(p rotation.Phase) func(*wire.RotationState) bool {
	return func(s *wire.RotationState) bool { return s.GetPhase() == string(p) }
}

// follows brings a rollover to a phase by having all members acknowledge.
func (r *running) follows(t testing.TB, to rotation.Phase, members ...*member) {
	t.Helper()
	if r.rotation(t).GetPhase() == "idle" {
		r.rotate(t, "start")
	}
	acked := ""
	r.awaits(t, string(to), func(s *wire.RotationState) bool {
		now := s.GetPhase()
		if now == string(to) {
			return true
		}
		// The certificates follow the phase within the same look.
		t0 := r.trust.Load()
		if now == acked || t0.sequence != r.rollover.current().Sequence {
			return false
		}
		if now == string(rotation.Published) || now == string(rotation.Active) {
			acked = now
			for _, m := range members {
				m.acks(t, t0.bundle, t0.intermediate.SKI())
			}
		}
		return false
	})
}

func TestARolloverWaitsForEachAcknowledgement(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	one, two := r.member(t, "one"), r.member(t, "two")
	before := r.trust.Load()
	one.acks(t, before.bundle, before.intermediate.SKI())
	two.acks(t, before.bundle, before.intermediate.SKI())
	r.rotate(t, "start")
	st := r.awaits(t, "published", phaseIs(rotation.Published))
	if st.GetAcked() != 0 || st.GetLive() != 2 || len(st.GetHolders()) != 2 || st.GetHolders()[0].GetLacks() != "holds an older bundle" {
		t.Fatalf("state %v", st)
	}
	both := r.trust.Load().bundle
	if len(both.Roots()) != 2 || r.trust.Load().rootCert != before.rootCert && !r.trust.Load().rootCert.Equal(before.rootCert) {
		t.Fatal("published is not: both trusted, the old one issues")
	}
	one.acks(t, both, before.intermediate.SKI())
	st = r.awaits(t, "one node followed", func(s *wire.RotationState) bool { return s.GetAcked() == 1 })
	if st.GetPhase() != "published" || st.GetHolders()[0].GetNode() != "two" {
		t.Fatalf("state %v", st)
	}
	// A proxy that holds an older snapshot counts.
	hash, old := both.Hash(), before.bundle.Hash()
	two.stream.Send(&wire.NodeFrame{Frame: &wire.NodeFrame_Ack{Ack: &wire.Ack{Bundles: [][]byte{hash[:], old[:]}, Lagging: []string{"spiffe://example.org/web"}}}})
	st = r.awaits(t, "the proxy is named", func(s *wire.RotationState) bool { return len(s.GetHolders()[0].GetProxies()) == 1 })
	if st.GetPhase() != "published" {
		t.Fatalf("state %v", st)
	}
	two.acks(t, both, before.intermediate.SKI())
	r.awaits(t, "active", phaseIs(rotation.Active))
	order := one.answer(t).GetReissue()
	if !slices.Equal(order.GetIssuers(), []string{before.intermediate.SKI()}) || order.GetSpread() > 1000 {
		t.Fatalf("order %v", order)
	}
	now := r.trust.Load()
	one.acks(t, both, now.intermediate.SKI())
	two.acks(t, both, now.intermediate.SKI(), before.intermediate.SKI())
	st = r.awaits(t, "one node followed", func(s *wire.RotationState) bool { return s.GetAcked() == 1 })
	if st.GetPhase() != "active" || st.GetHolders()[0].GetNode() != "two" {
		t.Fatalf("state %v", st)
	}
	two.acks(t, both, now.intermediate.SKI())
	st = r.awaits(t, "removed", phaseIs(rotation.Removed))
	if roots := r.trust.Load().bundle.Roots(); len(roots) != 1 || roots[0].Equal(before.rootCert) {
		t.Fatal("the old root is still in the bundle")
	}
	var phases []string
	for _, s := range st.GetSteps() {
		phases = append(phases, s.GetPhase())
	}
	if got := strings.Join(phases, " "); got != "prepared published active retiring removed" {
		t.Fatalf("steps %s", got)
	}
	if got := len(events(t, r.authorityLog, audit.KindRotation)); got != 5 {
		t.Fatalf("%d steps in the log", got)
	}
	// The old root's key is gone, and the node's credential of before too.
	if _, err := os.Stat(filepath.Join(r.cfg.DataDir, keysDir, rootKeyFile)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("key of the removed root: %v", err)
	}
}

func TestANodeThatComesBackWithTheOldOneHoldsTheRemoval(t *testing.T) {
	cfg := testConfig(shortDir(t))
	r := start(t, cfg)
	n := r.member(t, "one")
	before := r.trust.Load()
	must(r.admin.Rotate(t.Context(), &wire.RotateRequest{Verb: "start", Target: "root", Settle: time.Hour.Milliseconds()}))
	r.awaits(t, "published", phaseIs(rotation.Published))
	n.acks(t, r.trust.Load().bundle, before.intermediate.SKI())
	r.awaits(t, "active", phaseIs(rotation.Active))
	n.acks(t, r.trust.Load().bundle, r.trust.Load().intermediate.SKI())
	st := r.awaits(t, "it settles", func(s *wire.RotationState) bool {
		return s.GetPhase() == "retiring" && s.GetEarliest() > s.GetClock()+time.Minute.Milliseconds()
	})
	if !strings.Contains(st.GetGate(), "settle") {
		t.Fatalf("state %v", st)
	}
	// A second stream of the node, as of a machine that was set back.
	again := &member{n.testNode, n.testNode.sync(t)}
	again.acks(t, before.bundle, before.intermediate.SKI())
	r.awaits(t, "the node holds", func(s *wire.RotationState) bool {
		return len(s.GetHolders()) == 1 && s.GetHolders()[0].GetLacks() == "serves leaves of the old root"
	})
	_, err := r.admin.Rotate(t.Context(), &wire.RotateRequest{Verb: "advance", Target: "root"})
	wantCode(t, err, codes.FailedPrecondition, "one (serves leaves of the old root)")
	_, err = r.admin.Rotate(t.Context(), &wire.RotateRequest{Verb: "abort", Target: "root"})
	wantCode(t, err, codes.FailedPrecondition, "can't be taken back")
	// A restart forgets what was acknowledged, and nothing else.
	r.stop()
	r = start(t, cfg)
	st = r.awaits(t, "the node holds after a restart", func(s *wire.RotationState) bool { return len(s.GetHolders()) == 1 })
	if st.GetPhase() != "retiring" || st.GetHolders()[0].GetLacks() != "not seen since this server's start" {
		t.Fatalf("state %v", st)
	}
	_, err = r.admin.Rotate(t.Context(), &wire.RotateRequest{Verb: "force", Target: "root", Confirm: st.GetId() + "/active"})
	wantCode(t, err, codes.FailedPrecondition, "not "+st.GetId()+"/active as it was shown")
	if st = r.rotate(t, "force"); st.GetPhase() != "removed" {
		t.Fatalf("state %v", st)
	}
	forced := events(t, r.authorityLog, audit.KindRotation)
	if d := forced[len(forced)-1].Detail; !strings.Contains(d, "force") || !strings.Contains(d, "node one may serve leaves") {
		t.Fatalf("record of the forced step: %s", d)
	}
}

func TestAnEvictedNodeAndOneWhoseLeavesEndedHoldNothing(t *testing.T) {
	t.Parallel()
	cfg := testConfig(shortDir(t))
	cfg.NodeTTL = 6 * time.Second
	r := start(t, cfg)
	r.join(t, "evicted", nil)
	r.join(t, "ending", nil) // never connects: all that it holds ends in seconds
	must(r.admin.EvictNode(t.Context(), &wire.EvictNodeRequest{Name: "evicted"}))
	r.rotate(t, "start")
	st := r.awaits(t, "published", phaseIs(rotation.Published))
	if len(st.GetHolders()) != 1 || st.GetHolders()[0].GetNode() != "ending" || st.GetEarliest() == 0 {
		t.Fatalf("state %v", st)
	}
	r.awaits(t, "removed once nothing is valid", phaseIs(rotation.Removed))
}

func TestOfTwoOperatorsOneStarts(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	r.member(t, "one") // holds the rollover in published
	var wg sync.WaitGroup
	var mu sync.Mutex
	var won, lost int
	for range 8 {
		wg.Go(func() {
			_, err := r.admin.Rotate(t.Context(), &wire.RotateRequest{Verb: "start", Target: "root"})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if status.Code(err) == codes.FailedPrecondition && strings.Contains(err.Error(), "under way already") && strings.Contains(err.Error(), "by uid=") {
				lost++
			} else {
				t.Error(err)
			}
		})
	}
	if wg.Wait(); won != 1 || lost != 7 {
		t.Fatalf("%d started, %d were told", won, lost)
	}
}

func TestAnAbortedRolloverLeavesNothing(t *testing.T) {
	cfg := testConfig(shortDir(t))
	r := start(t, cfg)
	r.member(t, "one")
	before := r.trust.Load()
	r.rotate(t, "start")
	r.awaits(t, "published", phaseIs(rotation.Published))
	if st := r.rotate(t, "abort"); st.GetPhase() != "aborted" {
		t.Fatalf("state %v", st)
	}
	r.awaits(t, "the new key is gone", func(*wire.RotationState) bool {
		left, _ := filepath.Glob(filepath.Join(cfg.DataDir, keysDir, "root-*.key"))
		return len(left) == 0 && r.trust.Load().bundle.Equal(before.bundle)
	})
	if rec := r.rollover.current(); rec.New.DER != nil || rec.Cross != nil {
		t.Fatal("certificates of the aborted root are still in the record")
	}
	r.stop()
	r = start(t, cfg)
	if now := r.trust.Load(); !now.bundle.Equal(before.bundle) || !now.intermediate.Certificate().Equal(before.intermediate.Certificate()) {
		t.Fatal("the old root does not issue as before")
	}
	r.member(t, "two")
	r.rotate(t, "start")
	r.awaits(t, "another can start", phaseIs(rotation.Published))
}

// TestPeersOfEveryPhaseVerifyEachOther holds leaves of each phase against the
// bundles that peers may hold at that time.
func TestPeersOfEveryPhaseVerifyEachOther(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	r.apply(t, registration("shop", "web", "/web", ""))
	m := r.member(t, "one")
	old := r.trust.Load().bundle
	for _, phase := range []rotation.Phase{rotation.Published, rotation.Active} {
		r.follows(t, phase, m)
		both := r.trust.Load().bundle
		chain := m.issueOne(t)
		for name, b := range map[string]identity.Bundle{"old": old, "both": both} {
			if id := verifies(t, chain, b); id.String() != "spiffe://example.org/web" {
				t.Errorf("%s, a peer that holds %s: %s", phase, name, id)
			}
			serverChain(t, r, b)
		}
		crossed := len(chain) == 3
		if crossed != (phase == rotation.Active) {
			t.Errorf("%s: a chain of %d certificates", phase, len(chain))
		}
	}
	issued := m.issueOne(t)
	r.follows(t, rotation.Removed, m)
	now := r.trust.Load().bundle
	verifies(t, issued, now)
	verifies(t, m.issueOne(t), now)
	// An agent that was away for all of it still verifies the server, and
	// attests again.
	serverChain(t, r, old)
	for _, c := range r.Credentials().SVID.Chain[1:] {
		if c.CheckSignatureFrom(r.trust.Load().rootCert) == nil && slices.ContainsFunc(old.Roots(), func(o *x509.Certificate) bool { return o.Equal(c) }) {
			t.Fatal("the old root is signed by the new one")
		}
	}
}

// issueOne has one leaf issued and returns its chain.
func (m *member) issueOne(t testing.TB) [][]byte {
	t.Helper()
	if err := m.stream.Send(&wire.NodeFrame{Frame: &wire.NodeFrame_Issue{Issue: &wire.IssueBatch{Batch: 7, Requests: []*wire.IssueRequest{request(1, "shop/web", "/web")}}}}); err != nil {
		t.Fatal(err)
	}
	for {
		if res := m.answer(t).GetIssued(); res != nil {
			if len(res.GetResults()[0].GetChain()) == 0 {
				t.Fatalf("result %v", res)
			}
			return res.GetResults()[0].GetChain()
		}
	}
}

// serverChain verifies what the server presents by a bundle.
func serverChain(t testing.TB, r *running, b identity.Bundle) {
	t.Helper()
	_, err := mtls.NewVerifier(0).Verify(r.Credentials().SVID.Chain, identity.NewCredentials(identity.SVID{}, 1, b), mtls.PurposeServer, time.Now())
	if err != nil {
		t.Errorf("the server to a peer with %d roots: %v", len(b.Roots()), err)
	}
}

func TestAJoinerMayPinEitherRootDuringARollover(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	m := r.member(t, "one")
	r.follows(t, rotation.Active, m)
	var hashes []string
	conn := must(tls.Dial("tcp", r.Addr().String(), &tls.Config{InsecureSkipVerify: true}))
	defer conn.Close()
	for _, c := range conn.ConnectionState().PeerCertificates {
		hashes = append(hashes, identity.CertificateHash(c))
	}
	st := r.rotation(t)
	for _, h := range []string{st.GetOldHash(), st.GetNewHash()} {
		if !slices.Contains(hashes, h) {
			t.Errorf("the server's chain %v does not include %s", hashes, h)
		}
	}
}
