// This file holds the tests of the verifier and of the quota.

package audit

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

func copyLog(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(memoryDir(t), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// brokenCopy copies a log, lets edit change it, and verifies it.
func brokenCopy(t *testing.T, l *Log, opts VerifyOptions, edit func(dir string)) Report {
	t.Helper()
	dir := copyLog(t, l.cfg.Dir)
	edit(dir)
	r, err := Verify(dir, l.VerifierKey(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestEveryFlippedLedgerByteNamesItsEntry(t *testing.T) {
	cfg := testConfig(memoryDir(t))
	cfg.SegmentBytes = 900
	l := mustOpen(t, cfg)
	const entries = 8
	for i := range entries {
		mustRecord(t, l, testEvent(i))
	}
	checkpointNow(t, l)
	dir := copyLog(t, cfg.Dir)
	firsts, _ := listSegments(dir)
	if len(firsts) < 2 {
		t.Fatal("one segment only")
	}
	for _, first := range firsts {
		path := segmentPath(dir, first)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		index, end := first, segmentHead
		for at := range whole {
			if at == end {
				f, err := parseFrame(whole[at:])
				if err != nil {
					t.Fatal(err)
				}
				if end += int(f.size()); at > segmentHead {
					index++
				}
			}
			bad := append([]byte(nil), whole...)
			bad[at] ^= 1 << (at % 8)
			os.WriteFile(path, bad, 0o600)
			r, err := Verify(dir, l.VerifierKey(), VerifyOptions{})
			if err != nil || r.Verified || r.BadIndex == nil || *r.BadIndex != index {
				t.Fatalf("byte %d of segment %d: %v, %+v, not entry %d", at, first, err, r, index)
			}
		}
		os.WriteFile(path, whole, 0o600)
	}
	if r, _ := Verify(dir, l.VerifierKey(), VerifyOptions{}); !r.Verified || r.Entries != entries {
		t.Fatalf("undamaged: %+v", r)
	}
}

func TestEveryFlippedTileOrCheckpointByteIsNamed(t *testing.T) {
	l := mustOpen(t, testConfig(memoryDir(t)))
	fill(t, l, 300)
	checkpointNow(t, l)
	dir := copyLog(t, l.cfg.Dir)
	fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasPrefix(path, tileDir) && path != checkpointFile {
			return err
		}
		name := filepath.Join(dir, path)
		whole, _ := os.ReadFile(name)
		for at := 0; at < len(whole); at += 1 + len(whole)/50 {
			bad := append([]byte(nil), whole...)
			bad[at] ^= 1
			os.WriteFile(name, bad, 0o600)
			r, err := Verify(dir, l.VerifierKey(), VerifyOptions{})
			if err != nil || r.Verified || r.BadIndex != nil {
				t.Fatalf("byte %d of %s: %v, %+v", at, path, err, r)
			}
			if path == checkpointFile && !r.BadCheckpoint || path != checkpointFile && r.BadTile != path {
				t.Fatalf("byte %d of %s: %+v", at, path, r)
			}
		}
		os.WriteFile(name, whole, 0o600)
		return nil
	})
}

// rewrite writes a ledger of the same length anew, with another entry at
// index, and its chain all the way.
func rewrite(t *testing.T, dir string, index int64) {
	t.Helper()
	var frames []frame
	w, err := walkFrom(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	for {
		f, _, err := w.next()
		if err != nil {
			break
		}
		f.payload = append([]byte(nil), f.payload...)
		frames = append(frames, f)
	}
	w.close()
	frames[index].payload[len(frames[index].payload)-3] ^= 1
	out := appendSegmentHead(nil, 0, chainHash{})
	var chain chainHash
	for _, f := range frames {
		chain = chain.next(tlog.RecordHash(f.payload))
		out = appendFrame(out, f.group, f.left, chain, f.payload)
	}
	if err := os.WriteFile(segmentPath(dir, 0), out, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestRewrittenHistoryShows(t *testing.T) {
	l := mustOpen(t, testConfig(memoryDir(t)))
	fill(t, l, 200)
	checkpointNow(t, l)
	kept := l.Checkpoint()
	fill(t, l, 200)
	checkpointNow(t, l)

	if r := brokenCopy(t, l, VerifyOptions{Checkpoints: [][]byte{kept}}, func(string) {}); !r.Verified || r.Kept != 1 {
		t.Errorf("undamaged: %+v", r)
	}
	for _, index := range []int64{3, 399} {
		r := brokenCopy(t, l, VerifyOptions{}, func(dir string) { rewrite(t, dir, index) })
		if r.Verified || r.BadIndex == nil || *r.BadIndex != index {
			t.Errorf("chain computed anew from %d: %+v", index, r)
		}
	}
	// Tiles too, but without the key: nothing names the entry any more.
	without := func(dir string) {
		rewrite(t, dir, 3)
		var tr tree
		w, _ := walkFrom(dir, 0)
		defer w.close()
		write := func(tile tlog.Tile, hashes []tlog.Hash) {
			os.WriteFile(filepath.Join(dir, tilePath(tile)), tileData(hashes), 0o600)
		}
		for {
			_, leaf, err := w.next()
			if err != nil {
				break
			}
			tr.append(leaf, write)
		}
		tr.partial(write)
	}
	if r := brokenCopy(t, l, VerifyOptions{}, without); r.Verified || r.Detail == "" {
		t.Errorf("ledger and tiles rewritten: %+v", r)
	}
	// With the key: only a checkpoint that someone kept shows it.
	with := func(dir string) {
		rewrite(t, dir, 3)
		os.Remove(filepath.Join(dir, checkpointFile))
		os.RemoveAll(filepath.Join(dir, tileDir))
		os.Remove(filepath.Join(dir, "lock"))
		os.WriteFile(filepath.Join(dir, checkpointFile), forgedStart(t), 0o600)
		forged := mustOpen(t, testConfig(dir))
		checkpointNow(t, forged)
		forged.Close()
	}
	if r := brokenCopy(t, l, VerifyOptions{}, with); !r.Verified {
		t.Errorf("rewritten with the key, nothing kept: %+v", r)
	}
	if r := brokenCopy(t, l, VerifyOptions{Checkpoints: [][]byte{kept}}, with); r.Verified || !strings.Contains(r.Detail, "earlier checkpoint") {
		t.Errorf("rewritten with the key: %+v", r)
	}
	// Cut back with the key.
	newest := l.Checkpoint()
	short := func(dir string) {
		os.RemoveAll(dir)
		forged := mustOpen(t, testConfig(dir))
		fill(t, forged, 200)
		checkpointNow(t, forged)
		forged.Close()
	}
	if r := brokenCopy(t, l, VerifyOptions{Checkpoints: [][]byte{kept, newest}}, short); r.Verified || r.BadIndex == nil || *r.BadIndex != 200 {
		t.Errorf("cut back with the key: %+v", r)
	}
	// A checkpoint of another key is no evidence.
	other, _ := newSigner(testOrigin, testKey(1))
	foreign := signText(t, other, checkpointText(testOrigin, 1, tlog.Hash{}))
	if _, err := Verify(l.cfg.Dir, l.VerifierKey(), VerifyOptions{Checkpoints: [][]byte{foreign}}); err == nil {
		t.Error("a foreign checkpoint was taken")
	}
}

// forgedStart is a signed checkpoint of an empty log.
func forgedStart(t *testing.T) []byte {
	s, err := newSigner(testOrigin, testKey(0))
	if err != nil {
		t.Fatal(err)
	}
	return signText(t, s, checkpointText(testOrigin, 0, (&tree{}).root()))
}

func TestMissingPiecesShow(t *testing.T) {
	cfg := testConfig(memoryDir(t))
	cfg.SegmentBytes = 8 << 10
	l := mustOpen(t, cfg)
	for i := range 200 {
		mustRecord(t, l, testEvent(i))
	}
	checkpointNow(t, l)
	firsts, _ := listSegments(cfg.Dir)
	if len(firsts) < 4 {
		t.Fatalf("segments %v", firsts)
	}
	remove := func(first int64) func(string) {
		return func(dir string) { os.Remove(segmentPath(dir, first)) }
	}
	last := firsts[len(firsts)-1]
	for name, c := range map[string]struct {
		edit func(string)
		bad  int64
	}{
		"the first segment": {remove(0), 0},
		"a segment between": {remove(firsts[1]), firsts[1]},
		"the last segment":  {remove(last), last},
		"the last byte":     {func(dir string) { editFile(t, lastSegment(t, dir), func(b []byte) []byte { return b[:len(b)-1] }) }, 199},
		"all of the ledger": {func(dir string) { os.RemoveAll(filepath.Join(dir, ledgerDir)) }, 0},
		"nothing, but more": {func(dir string) {
			editFile(t, lastSegment(t, dir), func(b []byte) []byte { return append(b, strings.Repeat("x", 99)...) })
		}, 200},
		"a segment's middle": {func(dir string) {
			editFile(t, segmentPath(dir, firsts[1]), func(b []byte) []byte { return b[:len(b)-5] })
		}, firsts[2] - 1},
	} {
		r := brokenCopy(t, l, VerifyOptions{}, c.edit)
		if r.Verified || r.BadIndex == nil || *r.BadIndex != c.bad {
			t.Errorf("without %s: %+v, not entry %d", name, r, c.bad)
		}
	}
	if _, err := Verify(t.TempDir(), "nonsense", VerifyOptions{}); err == nil {
		t.Error("a verifier key of nonsense was taken")
	}
	if r, err := Verify(t.TempDir(), l.VerifierKey(), VerifyOptions{}); err == nil && (r.Verified || !r.BadCheckpoint) {
		t.Errorf("an empty directory verified: %+v", r)
	}
}

func TestEmptyLogVerifies(t *testing.T) {
	l := mustOpen(t, testConfig(memoryDir(t)))
	if r := mustVerify(t, l, VerifyOptions{}); !r.Verified || r.Entries != 0 {
		t.Fatalf("%+v", r)
	}
}

func TestVerifyWhileTheServerWrites(t *testing.T) {
	cfg := testConfig(memoryDir(t))
	cfg.SegmentBytes, cfg.Quota, cfg.CheckpointEvery = 32<<10, 400<<10, 10*time.Millisecond
	l := mustOpen(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	ran, wrote := make(chan error, 1), make(chan error, 1)
	go func() { ran <- l.Run(ctx) }()
	go func() {
		for i := 0; ctx.Err() == nil; i++ {
			if _, err := l.Record(ctx, testEvent(i)); err != nil && ctx.Err() == nil {
				wrote <- err
				return
			}
		}
		wrote <- nil
	}()
	var kept [][]byte
	for n := 0; n < 10 || l.Stats().First == 0 && !t.Failed(); n++ {
		kept = append(kept, l.Checkpoint())
		if r := mustVerify(t, l, VerifyOptions{Checkpoints: kept[max(0, len(kept)-2):]}); !r.Verified {
			t.Errorf("false alarm: %+v", r)
		}
	}
	cancel()
	if err := errors.Join(<-ran, <-wrote); err != nil {
		t.Fatal(err)
	}
}

func TestOldestGoWithACountWhenOverQuota(t *testing.T) {
	cfg := testConfig(memoryDir(t))
	cfg.Quota = 64 << 10
	l := mustOpen(t, cfg)
	for range 30 {
		fill(t, l, 100)
		checkpointNow(t, l)
		if err := l.prune(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s := l.Stats()
	if s.Bytes > cfg.Quota+l.cfg.SegmentBytes+30<<10 || s.First == 0 {
		t.Fatalf("stats %+v", s)
	}
	checkpointNow(t, l)
	r := mustVerify(t, l, VerifyOptions{})
	if !r.Verified || r.First != s.First || r.Entries != s.Entries {
		t.Fatalf("%+v", r)
	}
	var lost, keptFrom uint64
	for e, err := range l.Entries(0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == KindLoss {
			lost, keptFrom = lost+e.Lost, max(keptFrom, e.KeptFrom)
		}
	}
	if keptFrom != uint64(s.First) || lost == 0 {
		t.Fatalf("recorded: lost %d, kept from %d; the oldest is %d", lost, keptFrom, s.First)
	}
	if _, err := l.Prove(s.Entries - 1); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Prove(0); !errors.Is(err, ErrDropped) {
		t.Fatalf("proof of a dropped entry: %v", err)
	}
	if _, err := os.Stat(filepath.Join(cfg.Dir, "tile/0/000")); err == nil {
		t.Error("a tile of dropped entries is still there")
	}
	// Taking one segment more is theft, not quota, whatever a node says.
	mustRecord(t, l, Event{Time: testTime, Kind: KindLoss, Node: "spiffe://example.org/aval/node/one", KeptFrom: uint64(s.Entries)})
	checkpointNow(t, l)
	firsts, _ := listSegments(cfg.Dir)
	if r := brokenCopy(t, l, VerifyOptions{}, func(dir string) { os.Remove(segmentPath(dir, firsts[0])) }); r.Verified || r.BadIndex == nil || *r.BadIndex != s.First {
		t.Errorf("one segment more is gone: %+v", r)
	}
	l.Close()
	l = mustOpen(t, cfg)
	fill(t, l, 3)
	checkpointNow(t, l)
	if r := mustVerify(t, l, VerifyOptions{}); !r.Verified {
		t.Fatalf("reopened: %+v", r)
	}
}
