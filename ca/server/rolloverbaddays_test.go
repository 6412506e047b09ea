// This file holds the bad days of a rollover: no record, a restore, clocks,
// an overdue root, a damaged record.

package server

import (
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/rotation"
)

func TestNoStepWithoutItsRecord(t *testing.T) {
	s := must(New(testConfig(shortDir(t))))
	log := &faulty{Recorder: s.authorityLog}
	s.setRecorder(log)
	r := run(t, s)
	m := r.member(t, "one")
	full := fmt.Errorf("test: %w", audit.ErrDiskFull)
	log.set(full)
	_, err := r.admin.Rotate(t.Context(), &wire.RotateRequest{Verb: "start", Target: "root", Settle: -1})
	wantCode(t, err, codes.ResourceExhausted, "until the log takes its record")
	if st := r.rotation(t); st.GetPhase() != "idle" {
		t.Fatalf("state %v", st)
	}
	log.set(nil) // the stored step is recorded and taken up by itself
	r.awaits(t, "published", phaseIs(rotation.Published))
	for _, to := range []rotation.Phase{rotation.Active, rotation.Removed} {
		log.set(full)
		now := r.trust.Load()
		m.acks(t, now.bundle, now.intermediate.SKI())
		r.awaits(t, "the fault is told", func(s *wire.RotationState) bool { return s.GetFault() != "" })
		if st := r.rotation(t); st.GetPhase() == string(to) || !r.trust.Load().bundle.Equal(now.bundle) {
			t.Fatalf("a step without a record: %v", st)
		}
		log.set(nil)
		r.awaits(t, string(to), phaseIs(to))
	}
}

func TestARolloverSurvivesARestoreFromBeforeIt(t *testing.T) {
	cfg := testConfig(shortDir(t))
	r := start(t, cfg)
	m := r.member(t, "one")
	backup := filepath.Join(shortDir(t), "backup")
	f := must(os.Create(backup))
	if err := r.store.Backup(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	f.Close()
	r.follows(t, rotation.Active, m)
	want := r.rotation(t)
	root := r.trust.Load().rootCert
	r.stop()
	if _, err := Restore(backup, cfg.DataDir); err != nil {
		t.Fatal(err)
	}
	r = start(t, cfg)
	got := r.rotation(t)
	if got.GetId() != want.GetId() || got.GetPhase() != want.GetPhase() || !r.trust.Load().rootCert.Equal(root) {
		t.Fatalf("restored to %v, was at %v", got, want)
	}
	if len(got.GetHolders()) != 1 || got.GetHighWater() == 0 {
		t.Fatalf("the gate after a restore: %v", got)
	}
}

func TestTheSequenceOfStepsGrowsOverANewStoreAndAClockSetBack(t *testing.T) {
	now := time.Now()
	last := rolloverRecord{}.after(rotation.Rollover{Phase: rotation.Prepared}, stepTaken{At: now})
	anew := rolloverRecord{}.after(rotation.Rollover{Phase: rotation.Prepared}, stepTaken{At: now.Add(time.Second)})
	if anew.Sequence <= last.Sequence {
		t.Fatal("a store that was begun anew counts from before the log")
	}
	if back := last.after(rotation.Rollover{Phase: rotation.Published}, stepTaken{At: now.Add(-time.Hour)}); back.Sequence <= last.Sequence {
		t.Fatal("a clock that was set back takes the sequence back")
	}
}

func TestAClockThatJumpsAheadLetsNoSilentNodeGo(t *testing.T) {
	v := newRollover(nil)
	now := time.Now()
	if got := v.clock(now.Add(time.Hour).Round(0)); got.Sub(now) > time.Minute {
		t.Fatalf("an hour ahead the clock says %v", got.Sub(now))
	}
	if got := v.clock(now.Add(-time.Hour).Round(0)); got.Sub(now) > -time.Hour+time.Minute {
		t.Fatalf("an hour back the clock says %v", got.Sub(now))
	}
}

func TestHighWaterIsWrittenBeforeALeafExceedsIt(t *testing.T) {
	cfg := testConfig(shortDir(t))
	r := start(t, cfg)
	r.apply(t, registration("shop", "web", "/web", ""))
	n := r.join(t, "one", nil)
	chain := n.sync(t).issue(t, request(1, "shop/web", "/web"))[0].GetChain()
	leaf := must(x509.ParseCertificate(chain[0]))
	_, mark := r.marks.below(hex.EncodeToString(r.trust.Load().rootCert.SubjectKeyId))
	if mark.Before(leaf.NotAfter) {
		t.Fatalf("the mark is %v, a leaf ends at %v", mark, leaf.NotAfter)
	}
	stored, _, _ := r.store.Scan(prefixMark, 0)
	if len(stored) != 1 || string(stored[0].Value) != mark.UTC().Format(time.RFC3339) {
		t.Fatalf("stored marks %v", stored)
	}
}

func TestARootIsRolledOverByItselfAtTwoThirdsOfItsLife(t *testing.T) {
	t.Parallel()
	cfg := testConfig(shortDir(t))
	cfg.RootTTL, cfg.IntermediateTTL, cfg.NodeTTL = 6*time.Second, 5*time.Second, 2*time.Second
	cfg.MaxTTL, cfg.ServerTTL = 2*time.Second, 2*time.Second
	r := start(t, cfg)
	first := r.trust.Load().rootCert
	st := r.awaits(t, "a rollover begins", func(s *wire.RotationState) bool { return s.GetPhase() != "idle" })
	if now, due := time.Now(), first.NotAfter.Add(-2*time.Second); now.Before(due) {
		t.Errorf("it began %v before it was due", due.Sub(now))
	}
	if st.GetStartedBy() != automaticActor {
		t.Fatalf("state %v", st)
	}
}

func TestAnOverdueRootIsToldAtEachTenth(t *testing.T) {
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	end := began.Add(10 * time.Hour)
	for at, want := range map[time.Duration]int{-time.Hour: 0, 0: 1, time.Hour: 2, 90 * time.Minute: 2, 9*time.Hour + time.Minute: 10, 30 * time.Hour: 10} {
		if got, _ := overdue(began, end, began.Add(at)); got != want {
			t.Errorf("%v after it was due: %d tenths, want %d", at, got, want)
		}
	}
}

func FuzzRolloverRecord(f *testing.F) {
	f.Add([]byte(`{"id":"a","sequence":1,"state":{"phase":"published"},"old":{"key":"k"},"new":{"key":"n"}}`))
	f.Add([]byte(`{"state":{"phase":"gone"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := parseRolloverRecord(raw)
		if err == nil && (len(r.Old.DER) == 0 || r.State.NewIssues() && len(r.Cross) == 0) {
			t.Fatal("a record without its certificates was taken")
		}
	})
}

func TestATaintedRootIsReplacedWithoutWaitingAndNeverServedAgain(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	r.apply(t, registration("shop", "web", "/web", ""))
	m := r.member(t, "one") // acknowledges nothing
	old := r.trust.Load()
	hash := r.rotation(t).GetOldHash()
	_, err := r.admin.Rotate(t.Context(), &wire.RotateRequest{Verb: "taint", Target: "root", Confirm: "sha256:other"})
	wantCode(t, err, codes.FailedPrecondition, "is "+hash+" by now")
	must(r.admin.Rotate(t.Context(), &wire.RotateRequest{Verb: "taint", Target: "root", Confirm: hash, Settle: -1, Reason: "the key was copied"}))
	st := r.awaits(t, "active without an acknowledgement", phaseIs(rotation.Active))
	if !st.GetEmergency() || len(st.GetHolders()) != 1 {
		t.Fatalf("state %v", st)
	}
	verifies(t, m.issueOne(t), old.bundle) // a late peer is served
	now := r.trust.Load()
	m.acks(t, now.bundle, now.intermediate.SKI())
	r.awaits(t, "removed", phaseIs(rotation.Removed))
	for _, c := range r.Credentials().SVID.Chain {
		if c.CheckSignatureFrom(old.rootCert) == nil {
			t.Fatalf("the server still presents a certificate of the tainted root: %s", c.Subject)
		}
	}
	if d := events(t, r.authorityLog, audit.KindRotation)[0].Detail; !strings.Contains(d, "the key was copied") {
		t.Fatalf("record: %s", d)
	}
}

func TestAnOperatorsTaintTurnsARolloverUnderWayIntoAnEmergency(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	r.member(t, "one")
	r.rotate(t, "start")
	r.awaits(t, "published", phaseIs(rotation.Published))
	if st := r.rotate(t, "taint"); st.GetPhase() != "active" || !st.GetEmergency() {
		t.Fatalf("state %v", st)
	}
}
