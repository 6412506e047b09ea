// This file runs the conformance suite, and the tests of backup and restore.

package bolt

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/aval-id/aval/ca/store"
	"github.com/aval-id/aval/ca/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openAt(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(Config{Path: path, LockTimeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestConformance(t *testing.T) {
	storetest.Run(t, storetest.Backend{Open: func(dir string) (store.Store, error) {
		return Open(Config{Path: filepath.Join(dir, "store.db")})
	}})
}

func TestSecondProcessIsToldWhoHoldsTheStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	openAt(t, path)
	if _, err := Open(Config{Path: path, LockTimeout: 20 * time.Millisecond}); !errors.Is(err, store.ErrLocked) {
		t.Fatalf("error %v", err)
	}
}

func TestLooseModeIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	openAt(t, path).Close()
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Path: path}); err == nil {
		t.Fatal("a store that a group may read was opened")
	}
}

// backupOf makes a store of one entry and its backup.
func backupOf(t *testing.T) (backup []byte, at store.Position) {
	t.Helper()
	s := openAt(t, filepath.Join(t.TempDir(), "store.db"))
	at, err := s.Txn(t.Context(), nil, []store.Op{store.Put("a", []byte("1"))})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := s.Backup(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), at
}

func writeTemp(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "backup")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRestoreStartsANewEpoch(t *testing.T) {
	raw, at := backupOf(t)
	backup, path := writeTemp(t, raw), filepath.Join(t.TempDir(), "store.db")
	last := at
	for range 2 { // the second time over the first, from the same backup
		head, to, err := Restore(backup, path, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if head.Position != at || to.Epoch <= last.Epoch || to.Revision != at.Revision {
			t.Fatalf("restored %v to %v after %v", head.Position, to, last)
		}
		last = to
		s := openAt(t, path)
		if e, ok, _ := s.Get("a"); !ok || string(e.Value) != "1" || s.Position() != to {
			t.Fatalf("entry %+v at %v", e, s.Position())
		}
		if _, _, err := Restore(backup, path, time.Now()); !errors.Is(err, store.ErrLocked) {
			t.Fatalf("restore over an open store: %v", err)
		}
		s.Close()
	}
}

func TestDamagedBackupReplacesNothing(t *testing.T) {
	raw, _ := backupOf(t)
	path := filepath.Join(t.TempDir(), "store.db")
	s := openAt(t, path)
	if _, err := s.Txn(t.Context(), nil, []store.Op{store.Put("mine", nil)}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	flip := func(at int) []byte {
		b := bytes.Clone(raw)
		b[at] ^= 1
		return b
	}
	for name, bad := range map[string][]byte{
		"empty": nil, "cut": raw[:len(raw)-1], "longer": append(bytes.Clone(raw), 0),
		"magic": flip(0), "length": flip(len(backupMagic)), "header": flip(len(backupMagic) + 10),
		"body": flip(len(raw) / 2), "trailer": flip(len(raw) - 1),
	} {
		if _, _, err := Restore(writeTemp(t, bad), path, time.Now()); err == nil {
			t.Errorf("%s: restored", name)
		}
	}
	if _, ok, _ := openAt(t, path).Get("mine"); !ok {
		t.Fatal("a failed restore replaced the store")
	}
	if left, _ := filepath.Glob(path + "?*"); len(left) > 0 {
		t.Fatalf("left behind: %v", left)
	}
}

func FuzzHistory(f *testing.F) {
	f.Add(historyKey(1, 2), encodeHistory(store.Put("key", []byte("value")), encodeEntry(1, 2, []byte("old"))))
	f.Add(historyKey(1, 2), encodeHistory(store.Delete("key"), nil))
	f.Add([]byte("short"), []byte{})
	f.Fuzz(func(t *testing.T, key, raw []byte) {
		r, err := decodeHistory(key, raw)
		if err != nil {
			return
		}
		if r.before != nil {
			decodeEntry(r.key, r.before)
		}
		r.change(nil)
	})
}

func FuzzBackupHeader(f *testing.F) {
	f.Add([]byte(backupMagic + "\x00\x00\x00\x02{}"))
	f.Add([]byte(backupMagic + "\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := readHeader(bytes.NewReader(raw)); err != nil {
			return
		}
	})
}
