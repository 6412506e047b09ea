// This file holds what a rollover needs of keys: a place for the next one
// beside the present one, and the end of one that counts no more.

package keys

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"go.step.sm/crypto/kms/apiv1"
)

// Beside returns the URI for a new key called name, beside the one behind
// kmsURI: a file NAME.key in its directory, encrypted as that one is. Where the
// kind of key has no such place, the error says to name one.
func Beside(kmsURI, name string) (string, error) {
	l, err := parseURI(kmsURI)
	if err != nil {
		return "", err
	}
	if l.kind != apiv1.SoftKMS {
		return "", fmt.Errorf("keys of the kind %s have no place beside each other: name the new key's URI", l.kind)
	}
	path, err := l.path("path")
	if err != nil {
		return "", err
	}
	l.values = maps.Clone(l.values)
	l.values.Set("path", filepath.Join(filepath.Dir(path), name+".key"))
	return l.text(), nil
}

// Destroy removes the key behind a URI where it is a file in dir, durably,
// and reports whether it is gone. A key that is kept elsewhere is its
// keeper's to destroy.
func Destroy(kmsURI, dir string) (bool, error) {
	l, err := parseURI(kmsURI)
	if err != nil || l.kind != apiv1.SoftKMS {
		return false, nil
	}
	path, err := l.path("path")
	if err != nil {
		return false, err
	}
	if filepath.Dir(path) != filepath.Clean(dir) {
		return false, nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("destroy key: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return false, fmt.Errorf("destroy key: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return false, fmt.Errorf("destroy key: %w", err)
	}
	return true, nil
}

// Name returns what a person calls the key behind a URI.
func Name(kmsURI string) string {
	l, err := parseURI(kmsURI)
	if err != nil {
		return "key"
	}
	if path, err := l.path("path"); l.kind == apiv1.SoftKMS && err == nil {
		return path
	}
	return string(l.kind) + " key"
}
