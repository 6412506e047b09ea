// This file holds the tests of PrivateDir.

package audit

import (
	"os"
	"path/filepath"
	"testing"
)

func TestADirectoryThatOthersMayEnterIsNarrowedOnlyWhileEmpty(t *testing.T) {
	perm := func(dir string) os.FileMode {
		fi, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		return fi.Mode().Perm()
	}
	made := filepath.Join(t.TempDir(), "a", "b")
	if err := PrivateDir(made); err != nil || perm(made) != 0o700 {
		t.Fatalf("a missing one: %v, mode %v", err, perm(made))
	}
	loose := t.TempDir()
	if err := os.Chmod(loose, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := PrivateDir(loose); err != nil || perm(loose) != 0o700 {
		t.Fatalf("an empty one: %v, mode %v", err, perm(loose))
	}
	file := filepath.Join(loose, "key")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(loose, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := PrivateDir(loose); err == nil || perm(loose) != 0o755 {
		t.Fatalf("one that holds something: %v, mode %v", err, perm(loose))
	}
	if err := PrivateDir(file); err == nil {
		t.Fatal("a file passed for a directory")
	}
}

func TestADirectoryOfAnotherUserIsNotNarrowed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give a directory away")
	}
	dir := filepath.Join(t.TempDir(), "theirs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 4321, 4321); err != nil {
		t.Fatal(err)
	}
	if err := PrivateDir(dir); err == nil {
		t.Error("a directory that its owner can widen again was taken")
	}
}
