// This file holds the tests of key files.

package keys

import (
	"crypto"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestKeyIsMadeOnceForItsOwnerAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	uri := FileURI(path)
	if _, err := Open(t.Context(), uri); !errors.Is(err, ErrNotFound) {
		t.Fatalf("open of a missing key: %v", err)
	}
	first, created, err := OpenOrCreate(t.Context(), uri)
	if err != nil || !created {
		t.Fatal(created, err)
	}
	again, created, err := OpenOrCreate(t.Context(), uri)
	if err != nil || created {
		t.Fatal(created, err)
	}
	if !first.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(again.Public()) {
		t.Fatal("another key came back")
	}
	if fi, _ := os.Stat(path); fi.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v", fi.Mode())
	}
}

func TestLoosePermissionsAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	if _, _, err := OpenOrCreate(t.Context(), FileURI(path)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path     string
		bad, fix os.FileMode
	}{{path, 0o640, 0o600}, {filepath.Dir(path), 0o777, 0o700}} {
		os.Chmod(c.path, c.bad)
		if _, err := Open(t.Context(), FileURI(path)); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("%s with mode %v: %v", c.path, c.bad, err)
		}
		os.Chmod(c.path, c.fix)
	}
}

func TestOtherKeyManagersAreNamed(t *testing.T) {
	for _, uri := range []string{"awskms:key-id=x", "softkms:path=relative", "nonsense", ""} {
		if _, err := Open(t.Context(), uri); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v", uri, err)
		}
	}
}
