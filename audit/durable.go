// This file holds durable file writes: a reader finds the old content or
// the new, never a part, and what was written survives a power cut once the
// call has returned.

package audit

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// WriteFile replaces path with data and mode, durably and at once: it writes
// a temporary file beside it, syncs it, renames it over path, and syncs the
// directory. After an error path holds its old content, or, where only the
// last sync was refused, the new one. Concurrent writers of one path leave
// the content of one of them.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	if err := replaceFile(path, data, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// replaceFile does all of WriteFile but the sync of the directory.
func replaceFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-"+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	if err := fillFile(f, data, mode); err != nil {
		os.Remove(f.Name())
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		os.Remove(f.Name())
		return err
	}
	return nil
}

// fillFile writes, syncs and closes f.
func fillFile(f *os.File, data []byte, mode os.FileMode) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}

// PrivateDir makes sure that dir is a directory that nobody but its owner may
// enter. A missing one is made with mode 0700, and an empty one of this user is
// narrowed to it. One that holds something already is refused where others may
// look into it: what lies there may have been read or replaced. So is a wide
// one of another user, who could widen it again.
func PrivateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	perm := fi.Mode().Perm()
	if perm&0o077 == 0 {
		return nil
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	own := ok && int(st.Uid) == os.Geteuid() // root may change the mode of any
	if entries, err := os.ReadDir(dir); own && err == nil && len(entries) == 0 && os.Chmod(dir, 0o700) == nil {
		return nil
	}
	return fmt.Errorf("%s has mode %04o: others may look into it; chmod 0700 it", dir, perm)
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if closed := d.Close(); err == nil {
		err = closed
	}
	return err
}

// makeDir makes dir and its missing parents with mode 0700, durably, and
// refuses a directory that others may write to.
func makeDir(dir string) error {
	parent := filepath.Dir(dir)
	if _, err := os.Stat(dir); os.IsNotExist(err) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := syncDir(parent); err != nil {
			return err
		}
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	if fi.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s has mode %04o: others may write to it; chmod go-w it", dir, fi.Mode().Perm())
	}
	return nil
}
