// This file holds what a rollover needs of keys: a place for the next one
// beside the present one, and the end of one that counts no more.

package keys

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/uri"
)

// Beside returns the URI for a new key called name, beside the one behind
// kmsURI: a file NAME.key in its directory. Where the kind of key has no such
// place, the error says to name one.
func Beside(ctx context.Context, kmsURI, name string) (string, error) {
	if kind, err := apiv1.TypeOf(kmsURI); err == nil && kind != apiv1.SoftKMS {
		return "", fmt.Errorf("keys of the kind %s have no place beside each other: name the new key's URI", kind)
	}
	_, path, err := managerOf(ctx, kmsURI)
	if err != nil {
		return "", err
	}
	return FileURI(filepath.Join(filepath.Dir(path), name+".key")), nil
}

// Destroy removes the key behind a URI where it is a file in dir, durably,
// and reports whether it is gone. A key that is kept elsewhere is its
// keeper's to destroy.
func Destroy(ctx context.Context, kmsURI, dir string) (bool, error) {
	if kind, err := apiv1.TypeOf(kmsURI); err != nil || kind != apiv1.SoftKMS {
		return false, nil
	}
	_, path, err := managerOf(ctx, kmsURI)
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

// secretNames are the parts of a key URI that hold a secret itself.
var secretNames = []string{"pin-value", "pin", "password", "passphrase", "secret", "token-value"}

// CheckRecordable refuses a URI that holds a secret itself: the URI of a key
// that takes part in a rollover is kept in the store and in the log.
func CheckRecordable(kmsURI string) error {
	u, err := uri.Parse(kmsURI)
	if err != nil {
		return errors.New("key URI can't be read") // the cause quotes it
	}
	for _, name := range secretNames {
		if u.Get(name) != "" || u.URL.Query().Get(name) != "" {
			return fmt.Errorf("key URI holds a secret: %s; name a file that holds it instead (pin-source), since the URI is recorded", name)
		}
	}
	return nil
}

// Name returns what a person calls the key behind a URI, without secrets that
// a URI may carry.
func Name(kmsURI string) string {
	kind, err := apiv1.TypeOf(kmsURI)
	if err != nil {
		return "key"
	}
	if kind == apiv1.SoftKMS {
		if _, path, err := managerOf(context.Background(), kmsURI); err == nil {
			return path
		}
	}
	return string(kind) + " key"
}
