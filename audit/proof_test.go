// This file holds the tests of the tree, checkpoints, receipts and inclusion
// proofs.

package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func signText(t testing.TB, s *signer, text string) []byte {
	t.Helper()
	b, err := note.Sign(&note.Note{Text: text}, s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTreeIsRFC6962(t *testing.T) {
	var ours tree
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var out []tlog.Hash
		for _, i := range indexes {
			out = append(out, stored[i])
		}
		return out, nil
	})
	written := map[string]bool{}
	for n := range int64(66000) {
		if n < 1100 || n > 65500 && n%37 == 0 || n == 65536 || n == 65537 {
			want, err := tlog.TreeHash(n, reader)
			if err != nil || ours.root() != want {
				t.Fatalf("size %d: root %v, not %v (%v)", n, ours.root(), want, err)
			}
		}
		leaf := tlog.RecordHash(fmt.Appendf(nil, "leaf %d", n))
		hashes, err := tlog.StoredHashesForRecordHash(n, leaf, reader)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, hashes...)
		ours.append(leaf, func(tile tlog.Tile, hs []tlog.Hash) {
			want, err := tlog.ReadTileData(tile, reader)
			if err != nil || firstDifference(want, hs) >= 0 || len(want) != len(hs)*32 {
				t.Fatalf("tile %s differs (%v)", tilePath(tile), err)
			}
			written[tilePath(tile)] = true
		})
	}
	for _, path := range []string{"tile/0/000", "tile/0/256", "tile/1/000"} {
		if !written[path] {
			t.Errorf("no tile %s", path)
		}
	}
}

func TestCheckpointFollowsWithinASecond(t *testing.T) {
	l := mustOpen(t, testConfig(t.TempDir()))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	for i := range 3 {
		begin := time.Now()
		r := mustRecord(t, l, testEvent(i))
		for l.Stats().CheckpointSize <= r.Index {
			if time.Since(begin) > time.Second {
				t.Fatal("no checkpoint within a second")
			}
			<-time.After(5 * time.Millisecond)
		}
	}
	mustRecord(t, l, testEvent(9))
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if s := l.Stats(); s.CheckpointSize != 4 || s.CheckpointTime.IsZero() {
		t.Fatalf("the last checkpoint is missing: %+v", s)
	}
}

func TestCheckpointCatchesUpWithMoreThanMemoryHolds(t *testing.T) {
	l := mustOpen(t, testConfig(memoryDir(t)))
	fill(t, l, 300)
	l.mu.Lock()
	l.pending = l.pending[:100] // as if the bound had been met there
	l.mu.Unlock()
	fill(t, l, 50)
	checkpointNow(t, l)
	fill(t, l, 20)
	checkpointNow(t, l)
	if r := mustVerify(t, l, VerifyOptions{}); !r.Verified || r.CheckpointSize != 370 {
		t.Fatalf("%+v", r)
	}
}

func TestReceiptIsThePromiseOfOneEntry(t *testing.T) {
	l := mustOpen(t, testConfig(memoryDir(t)))
	fill(t, l, 5)
	for n := 1; n <= 20; n++ {
		var events []Event
		for i := range n {
			events = append(events, testEvent(i))
		}
		unsigned, err := l.RecordAll(t.Context(), events)
		if err != nil {
			t.Fatal(err)
		}
		if unsigned[0].Verify(l.VerifierKey()) == nil {
			t.Fatal("an unsigned receipt verified")
		}
		signed, err := l.Sign(unsigned)
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range signed {
			if err := r.Verify(l.VerifierKey()); err != nil {
				t.Fatalf("%d of %d: %v", i, n, err)
			}
			for name, forge := range map[string]func(*Receipt){
				"hash":  func(r *Receipt) { r.EntryHash[0] ^= 1 },
				"first": func(r *Receipt) { r.First++; r.Index++ },
				"log":   func(r *Receipt) { r.Log += "x" },
				"count": func(r *Receipt) { r.Count++ },
				"sig":   func(r *Receipt) { r.Signature = append([]byte{r.Signature[0] ^ 1}, r.Signature[1:]...) },
				"path":  func(r *Receipt) { r.Path = append(r.Path, [32]byte{}) },
				"index": func(r *Receipt) { r.Index = r.First + (r.Index-r.First+1)%r.Count - r.Count*(1/r.Count) },
			} {
				forged := r
				forge(&forged)
				if forged.Verify(l.VerifierKey()) == nil {
					t.Fatalf("%d of %d: a receipt with another %s verified", i, n, name)
				}
			}
		}
	}
	if _, err := l.Sign([]Receipt{{Log: testOrigin, Index: 1}, {Log: testOrigin, Index: 3}}); err == nil {
		t.Error("receipts with a gap were signed")
	}
}

func TestInclusionIsProvedOffline(t *testing.T) {
	cfg := testConfig(memoryDir(t))
	cfg.SegmentBytes = 30 << 10
	l := mustOpen(t, cfg)
	fill(t, l, 600)
	checkpointNow(t, l)
	fill(t, l, 10)
	dir := copyLog(t, cfg.Dir)
	for _, i := range []int64{0, 255, 256, 511, 512, 599} {
		p, err := ProveInclusion(dir, l.VerifierKey(), i)
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var back Proof
		if err := json.Unmarshal(text, &back); err != nil {
			t.Fatal(err)
		}
		e, err := VerifyInclusion(back, l.VerifierKey())
		if err != nil || e.Index != i || e.Serial != fmt.Sprintf("%032x", i) {
			t.Fatalf("entry %d: %+v, %v", i, e, err)
		}
		back.Entry = append(json.RawMessage(nil), back.Entry...)
		back.Entry[20] ^= 1
		if _, err := VerifyInclusion(back, l.VerifierKey()); err == nil {
			t.Fatalf("entry %d: a changed entry is proved", i)
		}
	}
	if _, err := l.Prove(600); err == nil {
		t.Error("an entry after the checkpoint is proved")
	}
}

func TestCheckpointKeepsUpWithAFlood(t *testing.T) {
	if testing.Short() {
		t.Skip("a flood of two seconds")
	}
	l := mustOpen(t, testConfig(t.TempDir()))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	for w := range 16 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if _, err := l.Record(ctx, testEvent(w)); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
	}
	for ctx.Err() == nil {
		size, begin := l.Size(), time.Now()
		for l.Stats().CheckpointSize < size && ctx.Err() == nil {
			if took := time.Since(begin); took > time.Second {
				t.Fatalf("%d entries wait for a checkpoint since %v", size, took)
			}
			<-time.After(10 * time.Millisecond)
		}
	}
	wg.Wait()
	if r := mustVerify(t, l, VerifyOptions{}); !r.Verified {
		t.Fatalf("%+v", r)
	}
}
