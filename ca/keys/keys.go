// Package keys opens the signing keys of an authority by KMS URI, and makes
// them where they are missing: in a file, in a PKCS#11 token, in a TPM 2.0, or
// (opened alone) in the key service of AWS, Google or Azure.
//
// It owns where a key lives, who may read it, and how the PIN or passphrase
// that opens it is found; what the key signs is decided above. It stands on
// the second floor, below package ca's server.
package keys

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.step.sm/crypto/kms/apiv1"

	"github.com/aval-id/aval/identity"
)

// ErrNotFound means that the URI is good and there is no key behind it.
var ErrNotFound = errors.New("key is not there")

// ErrAway means that the home of the key does not answer, or not now.
var ErrAway = errors.New("its home does not answer")

// ErrNotBuiltIn means that the URI's home is not part of this binary.
var ErrNotBuiltIn = errors.New("not built into this aval; `make build-full` builds one that has it")

// Key is an open signing key. Its holder closes it, which lets go of the
// session with the device.
type Key struct {
	crypto.Signer
	close func() error
}

// NewKey makes a Key of a signer that is open already. A nil close does
// nothing.
func NewKey(signer crypto.Signer, close func() error) *Key {
	return &Key{Signer: signer, close: close}
}

// Close ends the use of the key.
func (k *Key) Close() error {
	if k.close == nil {
		return nil
	}
	return k.close()
}

// home is one kind of place for keys.
type home interface {
	// open returns the key, or an error that wraps ErrNotFound.
	open(ctx context.Context) (*Key, error)
	// create makes the key, durably, and returns it.
	create(ctx context.Context, t identity.KeyType) (*Key, error)
}

// homeOf picks the home for a URI and checks its attributes.
func homeOf(text string) (home, error) {
	u, err := parseURI(text)
	if err != nil {
		return nil, err
	}
	switch u.kind {
	case apiv1.SoftKMS:
		return fileHome(u)
	case apiv1.PKCS11:
		return pkcs11Home(u)
	case apiv1.TPMKMS:
		return tpmHome(u)
	case apiv1.AmazonKMS:
		return awsHome(u)
	case apiv1.CloudKMS:
		return googleHome(u)
	case apiv1.AzureKMS:
		return azureHome(u)
	}
	return nil, fmt.Errorf("key URI: no key lives at %q; softkms, pkcs11, tpmkms, awskms, cloudkms and azurekms are known", u.kind)
}

// Check checks a URI without opening what it names. The error wraps
// ErrNotBuiltIn where this binary can't open it.
func Check(kmsURI string) error {
	_, err := homeOf(kmsURI)
	return err
}

// Open opens the key behind a KMS URI. A key file that others may read, or in
// a directory that others may write to, is refused. The error wraps
// ErrNotFound where there is no key. No error holds a PIN or a passphrase.
func Open(ctx context.Context, kmsURI string) (*Key, error) {
	h, err := homeOf(kmsURI)
	if err != nil {
		return nil, err
	}
	return opened(h.open(ctx))
}

// OpenOrCreate opens the key behind a KMS URI, or makes one of the given type
// there; a key that is there keeps its type. A key that was made is durable
// before the call returns. Keys in a cloud's service are never made here.
func OpenOrCreate(ctx context.Context, kmsURI string, t identity.KeyType) (key *Key, created bool, err error) {
	h, err := homeOf(kmsURI)
	if err != nil {
		return nil, false, err
	}
	key, err = opened(h.open(ctx))
	if err == nil || !errors.Is(err, ErrNotFound) {
		return key, false, err
	}
	key, err = opened(h.create(ctx, t))
	return key, err == nil, err
}

// opened refuses a key of a kind that no verifier of ours takes.
func opened(key *Key, err error) (*Key, error) {
	if err != nil {
		return nil, err
	}
	if _, err := identity.KeyTypeOf(key.Public()); err != nil {
		return nil, errors.Join(fmt.Errorf("key: %w", err), key.Close())
	}
	return key, nil
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
	return checkSecretDir(filepath.Dir(path))
}

func checkSecretDir(path string) error {
	dir, err := os.Stat(path)
	if err != nil {
		return err
	}
	if perm := dir.Mode().Perm(); perm&0o022 != 0 {
		return fmt.Errorf("%s has mode %04o: others may write to it; chmod 0700 it", path, perm)
	}
	return nil
}
