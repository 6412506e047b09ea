// This file holds the tests of kept checkpoints.

package history

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/mod/sumdb/note"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const log = "example.org/authority/server-1"

type logKey struct {
	t      testing.TB
	signer note.Signer
	public string
}

func newKey(t testing.TB) logKey {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, log)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	return logKey{t, signer, public}
}

func (k logKey) checkpoint(size int64, seed string) []byte {
	k.t.Helper()
	root := sha256.Sum256([]byte(seed))
	text, err := note.Sign(&note.Note{Text: fmt.Sprintf("%s\n%d\n%s\n", log, size, base64.StdEncoding.EncodeToString(root[:]))}, k.signer)
	if err != nil {
		k.t.Fatal(err)
	}
	return text
}

func openHistory(t *testing.T, dir string) *History {
	t.Helper()
	h, err := Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func sizes(t *testing.T, dir string) []int64 {
	t.Helper()
	kept, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []int64
	for _, c := range kept {
		out = append(out, c.Size)
	}
	return out
}

var now = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestWhatIsKeptOutlivesTheProcessAndContradictsACut(t *testing.T) {
	dir, k := t.TempDir(), newKey(t)
	h := openHistory(t, dir)
	for _, size := range []int64{1, 5, 5, 9} {
		if err := h.Keep(log, k.checkpoint(size, fmt.Sprint(size)), k.public, now); err != nil {
			t.Fatal(err)
		}
	}
	h = openHistory(t, dir)
	if err := h.Keep(log, k.checkpoint(9, "9"), k.public, now); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"cut": k.checkpoint(7, "7"), "fork": k.checkpoint(9, "another")} {
		if err := h.Keep(log, text, k.public, now); !errors.Is(err, ErrContradiction) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := sizes(t, dir); len(got) != 5 {
		t.Fatalf("evidence is not kept: %v", got)
	}
	other := newKey(t)
	if err := h.Keep(log, other.checkpoint(20, "20"), other.public, now); !errors.Is(err, ErrContradiction) {
		t.Errorf("another key: %v", err)
	}
	if err := h.Keep(log, other.checkpoint(20, "20"), k.public, now); err == nil {
		t.Error("a signature of another key passed")
	}
	if err := h.Keep("example.org/connections/server-1", k.checkpoint(20, "20"), k.public, now); err == nil {
		t.Error("a checkpoint of another log passed")
	}
}

func TestOldCheckpointsAreThinnedAndEvidenceStays(t *testing.T) {
	dir, k := t.TempDir(), newKey(t)
	h := openHistory(t, dir)
	keep := func(size int64, seed string) { h.Keep(log, k.checkpoint(size, seed), k.public, now) }
	keep(1, "first")
	keep(50, "50")
	keep(40, "cut") // evidence
	for size := range int64(1200) {
		keep(100+size, fmt.Sprint(size))
	}
	got := sizes(t, dir)
	if len(got) > maxKept || len(got) < maxKept/2 {
		t.Fatalf("%d are kept", len(got))
	}
	if got[0] != 1 || got[1] != 50 || got[2] != 40 || got[len(got)-1] != 1299 {
		t.Fatalf("starts %v", got[:4])
	}
}

func TestATornLastLineIsLeftOutAndAForgedOneRefused(t *testing.T) {
	dir, k := t.TempDir(), newKey(t)
	h := openHistory(t, dir)
	if err := h.Keep(log, k.checkpoint(1, "1"), k.public, now); err != nil {
		t.Fatal(err)
	}
	names, _ := filepath.Glob(filepath.Join(dir, "*"))
	whole, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(names[0], append(whole, whole[:20]...), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := sizes(t, dir); len(got) != 1 {
		t.Fatal(got)
	}
	if err := openHistory(t, dir).Keep(log, k.checkpoint(2, "2"), k.public, now); err != nil {
		t.Fatal(err)
	}
	if got := sizes(t, dir); len(got) != 2 {
		t.Fatalf("after the torn line: %v", got)
	}
	if err := os.WriteFile(names[0], append([]byte(`{"log":"x"}`+"\n"), whole...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil {
		t.Fatal("a forged line passed")
	}
	openHistory(t, dir)
	if got := sizes(t, dir); got != nil {
		t.Fatalf("the damaged file is still used: %v", got)
	}
	if kept, err := Load(filepath.Join(dir, "absent")); err != nil || kept != nil {
		t.Fatal(kept, err)
	}
}

func FuzzCheckpoint(f *testing.F) {
	k := newKey(f)
	f.Add(string(k.checkpoint(1, "1")), k.public)
	f.Add("a\n1\nb\n", "x")
	f.Fuzz(func(t *testing.T, text, key string) {
		if c, err := verify(log, []byte(text), key); err == nil && (c.Size < 0 || c.Log != log) {
			t.Fatal(c)
		}
	})
}
