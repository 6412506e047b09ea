// This file holds the tests of opening a log that was left in any state.

package audit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReopenedLogGoesOnWhereItEnded(t *testing.T) {
	cfg := testConfig(memoryDir(t))
	cfg.SegmentBytes = 20 << 10
	total := 0
	for round, n := range []int{0, 1, 255, 1, 700, 3} {
		l := mustOpen(t, cfg)
		if l.Size() != int64(total) {
			t.Fatalf("round %d: size %d, not %d", round, l.Size(), total)
		}
		fill(t, l, n)
		total += n
		if round%2 == 0 {
			checkpointNow(t, l)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l := mustOpen(t, cfg)
	checkpointNow(t, l)
	if r := mustVerify(t, l, VerifyOptions{}); !r.Verified || r.Entries != int64(total) || r.CheckpointSize != int64(total) {
		t.Fatalf("%+v", r)
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	cfg := testConfig(memoryDir(t))
	mustOpen(t, cfg)
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Fatalf("second open: %v", err)
	}
}

func TestForeignKeyOrOriginIsRefused(t *testing.T) {
	cfg := testConfig(memoryDir(t))
	mustOpen(t, cfg).Close()
	other := cfg
	other.Key = testKey(1)
	if _, err := Open(other); err == nil {
		t.Error("another key opened the log")
	}
	other = cfg
	other.Origin = "example.org/authority/two"
	if _, err := Open(other); err == nil {
		t.Error("another origin opened the log")
	}
	for _, origin := range []string{"", "a b", "a+b", receiptMagic} {
		other.Origin, other.Dir = origin, t.TempDir()
		if _, err := Open(other); err == nil {
			t.Errorf("origin %q was accepted", origin)
		}
	}
}

func TestUnfinishedWriteIsCutOff(t *testing.T) {
	for _, torn := range []struct {
		name string
		edit func([]byte) []byte
	}{
		{"inside a frame", func(b []byte) []byte { return b[:len(b)-7] }},
		{"inside a frame's head", func(b []byte) []byte { return append(b, 0xa5, 0xd1, 0xf9) }},
		{"zeros", func(b []byte) []byte { return append(b, make([]byte, 5000)...) }},
		{"noise", func(b []byte) []byte { return append(b, strings.Repeat("noise", 999)...) }},
	} {
		t.Run(torn.name, func(t *testing.T) {
			cfg := testConfig(memoryDir(t))
			l := mustOpen(t, cfg)
			fill(t, l, 10)
			checkpointNow(t, l)
			mustRecord(t, l, testEvent(10))
			l.Close()
			editFile(t, lastSegment(t, cfg.Dir), torn.edit)
			l = mustOpen(t, cfg)
			if l.Size() < 10 {
				t.Fatalf("size %d", l.Size())
			}
			fill(t, l, 5)
			checkpointNow(t, l)
			if r := mustVerify(t, l, VerifyOptions{}); !r.Verified {
				t.Fatalf("%+v", r)
			}
		})
	}
}

func TestRecordAllIsAllOrNothingAfterACrash(t *testing.T) {
	cfg := testConfig(memoryDir(t))
	l := mustOpen(t, cfg)
	fill(t, l, 10)
	before := l.writer.at.offset
	fill(t, l, 7)
	after := l.writer.at.offset
	l.Close()
	path := lastSegment(t, cfg.Dir)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := before; cut < after; cut += 13 {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		l := mustOpen(t, cfg)
		if l.Size() != 10 {
			t.Fatalf("cut at %d: size %d", cut, l.Size())
		}
		l.Close()
	}
}

func TestDamageBeforeTheEndIsRefused(t *testing.T) {
	cfg := testConfig(memoryDir(t))
	l := mustOpen(t, cfg)
	for i := range 5 {
		mustRecord(t, l, testEvent(i))
	}
	middle := l.writer.at.offset
	for i := range 5 {
		mustRecord(t, l, testEvent(i))
	}
	l.Close()
	// No checkpoint covers any of it: what follows tells that it was
	// acknowledged.
	editFile(t, lastSegment(t, cfg.Dir), func(b []byte) []byte { b[middle+frameHead+4] ^= 1; return b })
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "entry 5 is damaged") {
		t.Fatalf("open: %v", err)
	}
}

func TestMissingAcknowledgedEntriesAreRefused(t *testing.T) {
	cfg := testConfig(memoryDir(t))
	l := mustOpen(t, cfg)
	fill(t, l, 10)
	checkpointNow(t, l)
	l.Close()
	path := lastSegment(t, cfg.Dir)
	editFile(t, path, func(b []byte) []byte { return b[:len(b)-1] })
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "is damaged or missing") {
		t.Fatalf("open: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "there is no ledger") {
		t.Fatalf("open: %v", err)
	}
}

func TestMissingCheckpointIsRefused(t *testing.T) {
	cfg := testConfig(memoryDir(t))
	l := mustOpen(t, cfg)
	fill(t, l, 10)
	l.Close()
	os.Remove(filepath.Join(cfg.Dir, checkpointFile))
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "no checkpoint") {
		t.Fatalf("open: %v", err)
	}
}

func TestDamagedTilesAreComputedAnew(t *testing.T) {
	cfg := testConfig(memoryDir(t))
	cfg.SegmentBytes = 30 << 10
	l := mustOpen(t, cfg)
	fill(t, l, 700)
	checkpointNow(t, l)
	l.Close()
	if err := os.RemoveAll(filepath.Join(cfg.Dir, tileDir)); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, cfg)
	fill(t, l, 1)
	checkpointNow(t, l)
	if r := mustVerify(t, l, VerifyOptions{}); !r.Verified || r.CheckpointSize != 701 {
		t.Fatalf("%+v", r)
	}
}
