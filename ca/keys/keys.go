// Package keys opens the signing keys of an authority by KMS URI and makes
// them where they are missing. So far the one kind is a file,
// softkms:path=FILE: PKCS#8 PEM with mode 0600 in a directory that others
// may not enter.
//
// It owns where a key lives and who may read it; what it signs is decided
// above. It stands on the second floor, below package ca's server.
package keys

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/softkms"
	"go.step.sm/crypto/kms/uri"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
)

// ErrNotFound means that the URI is good and there is no key behind it.
var ErrNotFound = errors.New("key is not there")

// FileURI returns the URI of a key in a file.
func FileURI(path string) string {
	return uri.New(softkms.Scheme, map[string][]string{"path": {path}}).String()
}

// Open opens the key behind a KMS URI. A key file that others may read, or in
// a directory that others may write to, is refused. The error wraps
// ErrNotFound where there is no key.
func Open(ctx context.Context, kmsURI string) (crypto.Signer, error) {
	manager, path, err := managerOf(ctx, kmsURI)
	if err != nil {
		return nil, err
	}
	defer manager.Close()
	if err := CheckSecretFile(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("key %s: %w", path, ErrNotFound)
		}
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	signer, err := manager.CreateSigner(&apiv1.CreateSignerRequest{SigningKey: kmsURI})
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	return signer, nil
}

// OpenOrCreate opens the key behind a KMS URI, or makes a P-256 key there. A
// key that was made is durable before the call returns.
func OpenOrCreate(ctx context.Context, kmsURI string) (signer crypto.Signer, created bool, err error) {
	signer, err = Open(ctx, kmsURI)
	if err == nil || !errors.Is(err, ErrNotFound) {
		return signer, false, err
	}
	manager, path, err := managerOf(ctx, kmsURI)
	if err != nil {
		return nil, false, err
	}
	defer manager.Close()
	made, err := manager.CreateKey(&apiv1.CreateKeyRequest{Name: kmsURI, SignatureAlgorithm: apiv1.ECDSAWithSHA256})
	if err != nil {
		return nil, false, fmt.Errorf("make key %s: %w", path, err)
	}
	signer, ok := made.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, false, fmt.Errorf("make key %s: the key manager returned a %T", path, made.PrivateKey)
	}
	text, err := identity.EncodeKey(signer)
	if err != nil {
		return nil, false, fmt.Errorf("make key %s: %w", path, err)
	}
	if err := audit.WriteFile(path, text, 0o600); err != nil {
		return nil, false, fmt.Errorf("make key: %w", err)
	}
	return signer, true, nil
}

// managerOf picks the key manager for a URI and, for keys in files, the path.
func managerOf(ctx context.Context, kmsURI string) (apiv1.KeyManager, string, error) {
	kind, err := apiv1.TypeOf(kmsURI)
	if err != nil {
		return nil, "", fmt.Errorf("key URI: %w", err)
	}
	switch kind {
	case apiv1.SoftKMS:
		u, err := uri.ParseWithScheme(softkms.Scheme, kmsURI)
		if err != nil {
			return nil, "", fmt.Errorf("key URI: %w", err)
		}
		path := u.Get("path")
		if !filepath.IsAbs(path) {
			return nil, "", fmt.Errorf("key URI: path %q is not absolute", path)
		}
		m, err := softkms.New(ctx, apiv1.Options{})
		if err != nil {
			return nil, "", fmt.Errorf("key manager: %w", err)
		}
		return m, path, nil
	}
	return nil, "", fmt.Errorf("key URI: the key manager %q is not built in; softkms is", kind)
}

// CheckSecretFile checks that path is a regular file that only its owner may
// read and write, in a directory that no one else may write to. The error
// wraps fs.ErrNotExist where there is no file.
func CheckSecretFile(path string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
	}
	if perm := fi.Mode().Perm(); perm&0o077 != 0 {
		return fmt.Errorf("%s has mode %04o: others may use it; chmod 0600 it", path, perm)
	}
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return err
	}
	if perm := dir.Mode().Perm(); perm&0o022 != 0 {
		return fmt.Errorf("%s has mode %04o: others may write to it; chmod 0700 it", filepath.Dir(path), perm)
	}
	return nil
}
