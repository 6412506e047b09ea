// This file holds the crash test of the rollover: a real server that kills
// itself before each of its durable writes in turn.

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/ca/store"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/rotation"
)

// reaper kills this process before a durable write: the one after so many
// others, counted from the first that a rollover makes.
type reaper struct {
	left  atomic.Int64
	armed atomic.Bool
}

func (r *reaper) write() {
	if r.armed.Load() && r.left.Add(-1) < 0 {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

type reapedStore struct {
	store.Store
	*reaper
}

func (s reapedStore) Txn(ctx context.Context, conditions []store.Condition, ops []store.Op) (store.Position, error) {
	for _, op := range ops {
		if op.Key == rolloverKey {
			s.armed.Store(true)
		}
	}
	s.write()
	return s.Store.Txn(ctx, conditions, ops)
}

type reapedRecorder struct {
	ca.Recorder
	*reaper
}

func (r reapedRecorder) RecordAll(ctx context.Context, events []audit.Event) ([]audit.Receipt, error) {
	r.write()
	return r.Recorder.RecordAll(ctx, events)
}

// childRollover runs a server that dies before a durable write of a rollover.
func childRollover(arg string) error {
	dir, after, _ := strings.Cut(arg, " ")
	n, err := strconv.ParseInt(after, 10, 64)
	if err != nil {
		return err
	}
	s, err := New(testConfig(dir))
	if err != nil {
		return err
	}
	r := &reaper{}
	r.left.Store(n)
	s.setRecorder(reapedRecorder{s.authorityLog, r})
	s.store = reapedStore{s.store, r}
	s.documents.store, s.nodes.store, s.marks.store = s.store, s.store, s.store
	return s.Run(context.Background())
}

// rollUntilKilled starts a rollover on such a server and reports whether it
// died of it.
func rollUntilKilled(t *testing.T, cfg Config, dir string, after int) (killed bool) {
	t.Helper()
	cmd := exec.Command(must(os.Executable()))
	cmd.Env = append(os.Environ(), "AVAL_TEST_CHILD=rollover", fmt.Sprintf("AVAL_TEST_ARG=%s %d", dir, after))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	conn := must(grpc.NewClient("unix://"+cfg.AdminSocket, grpc.WithTransportCredentials(insecure.NewCredentials())))
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	admin := wire.NewAdminClient(conn)
	must(admin.ServerStatus(ctx, &wire.ServerStatusRequest{}, grpc.WaitForReady(true)))
	if _, err := admin.Rotate(ctx, &wire.RotateRequest{Verb: "start", Target: "root", Settle: -1}); err != nil {
		return true
	}
	stream, err := admin.RotationStatus(ctx, &wire.RotationStatusRequest{Watch: true})
	for err == nil {
		var s *wire.RotationState
		if s, err = stream.Recv(); err == nil && s.GetPhase() == string(rotation.Removed) {
			return false
		}
	}
	if ctx.Err() != nil {
		t.Fatalf("after %d writes the rollover neither ended nor died", after)
	}
	return true
}

func TestARolloverKilledAtEachDurableWriteGoesOn(t *testing.T) {
	t.Parallel()
	stride := 1
	if testing.Short() {
		stride = 9
	}
	kills := 0
	for after := 0; ; after += stride {
		dir := shortDir(t)
		cfg := testConfig(dir)
		killed := rollUntilKilled(t, cfg, dir, after)
		if killed {
			kills++
		}
		recovers(t, cfg, after)
		if !killed || t.Failed() {
			break
		}
	}
	if kills < 15/stride {
		t.Fatalf("only %d durable writes", kills)
	}
	t.Logf("killed before each of %d durable writes", kills)
}

// recovers starts the server again and holds it against what a rollover
// promises.
func recovers(t *testing.T, cfg Config, after int) {
	t.Helper()
	r := start(t, cfg)
	defer r.stop()
	st := r.awaits(t, "it ends or never began", func(s *wire.RotationState) bool {
		return s.GetPhase() == string(rotation.Removed) || s.GetPhase() == "idle"
	})
	if st.GetPhase() == "idle" {
		if after > 0 {
			t.Fatalf("after %d writes there is no rollover", after)
		}
		return
	}
	seen := map[uint64]bool{}
	for _, e := range events(t, r.authorityLog, audit.KindRotation) {
		var rec rolloverRecord
		if err := json.Unmarshal([]byte(e.Rollover), &rec); err != nil {
			t.Fatal(err)
		}
		if seen[rec.Sequence] {
			t.Errorf("after %d writes: step %d is recorded twice", after, rec.Sequence)
		}
		seen[rec.Sequence] = true
	}
	if len(seen) != 5 {
		t.Errorf("after %d writes: %d steps are recorded", after, len(seen))
	}
	left, _ := filepath.Glob(filepath.Join(cfg.DataDir, keysDir, "root*.key"))
	if len(left) != 1 || strings.HasSuffix(left[0], rootKeyFile) {
		t.Errorf("after %d writes: keys of roots %v", after, left)
	}
	r.apply(t, registration("shop", "web", "/web", ""))
	n := r.join(t, "one", nil)
	verifies(t, n.sync(t).issue(t, request(1, "shop/web", "/web"))[0].GetChain(), r.trust.Load().bundle)
	if roots := r.trust.Load().bundle.Roots(); len(roots) != 1 || !roots[0].Equal(must(readRoot(cfg, time.Now()))) {
		t.Errorf("after %d writes: the root of the file is not the bundle's", after)
	}
}
