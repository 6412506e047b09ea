// This file holds keys in files: PKCS#8 PEM of mode 0600, encrypted where the
// URI names a passphrase.

package keys

import (
	"context"
	"crypto"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"go.step.sm/crypto/pemutil"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
)

// minPassphrase is the least that a new key file is encrypted with, in bytes.
const minPassphrase = 12

type file struct {
	path       string
	passphrase Secret
}

func fileHome(l location) (home, error) {
	if err := l.only("path", "passphrase-source"); err != nil {
		return nil, err
	}
	path, err := l.path("path")
	if err != nil {
		return nil, err
	}
	passphrase, err := ParseSecret(l.get("passphrase-source"))
	if err != nil {
		return nil, fmt.Errorf("key URI: passphrase-source: %w", err)
	}
	return file{path, passphrase}, nil
}

func (f file) open(context.Context) (*Key, error) {
	if err := CheckSecretFile(f.path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("key %s: %w", f.path, ErrNotFound)
		}
		return nil, fmt.Errorf("key %s: %w", f.path, err)
	}
	text, err := os.ReadFile(f.path)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", f.path, err)
	}
	signer, err := f.decode(text)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", f.path, err)
	}
	return NewKey(signer, nil), nil
}

func (f file) decode(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no PEM in it")
	}
	encrypted := block.Type == "ENCRYPTED PRIVATE KEY"
	switch {
	case encrypted && f.passphrase.IsZero():
		return nil, errors.New("it is encrypted: name its passphrase with passphrase-source= in the URI")
	case !encrypted && !f.passphrase.IsZero():
		return nil, errors.New("it is not encrypted, and the URI names a passphrase: encrypt it with `openssl pkcs8 -topk8 -v2 aes-256-cbc -iter 600000`")
	case !encrypted:
		return identity.DecodeKey(text)
	}
	passphrase, err := f.passphrase.Read()
	if err != nil {
		return nil, fmt.Errorf("passphrase: %w", err)
	}
	der, err := pemutil.DecryptPKCS8PrivateKey(block.Bytes, []byte(passphrase))
	if err != nil {
		return nil, fmt.Errorf("it does not open with the passphrase of %s", f.passphrase)
	}
	return identity.DecodeKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func (f file) create(_ context.Context, t identity.KeyType) (*Key, error) {
	signer, err := t.Generate()
	if err != nil {
		return nil, fmt.Errorf("make key %s: %w", f.path, err)
	}
	text, err := f.encode(signer)
	if err != nil {
		return nil, fmt.Errorf("make key %s: %w", f.path, err)
	}
	if err := audit.WriteFile(f.path, text, 0o600); err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return NewKey(signer, nil), nil
}

func (f file) encode(signer crypto.Signer) ([]byte, error) {
	if f.passphrase.IsZero() {
		return identity.EncodeKey(signer)
	}
	passphrase, err := f.passphrase.Read()
	if err != nil {
		return nil, fmt.Errorf("passphrase: %w", err)
	}
	if len(passphrase) < minPassphrase {
		return nil, fmt.Errorf("the passphrase of %s has %d characters: at least %d are asked for", f.passphrase, len(passphrase), minPassphrase)
	}
	block, err := pemutil.Serialize(signer, pemutil.WithPKCS8(true), pemutil.WithPassword([]byte(passphrase)))
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	return pem.EncodeToMemory(block), nil
}
