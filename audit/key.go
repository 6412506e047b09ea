// This file holds the log's signing key: its file, and the signed-note
// signer and verifier made from it.

package audit

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"unicode"

	"golang.org/x/mod/sumdb/note"
)

// LoadOrCreateKey reads the Ed25519 key of a log's checkpoints from a
// PKCS#8 PEM file, or makes one and stores it durably with mode 0600. A
// file that anyone but its owner may read or write is refused.
func LoadOrCreateKey(path string) (ed25519.PrivateKey, error) {
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return createKey(path)
	case err != nil:
		return nil, fmt.Errorf("checkpoint key: %w", err)
	case !fi.Mode().IsRegular():
		return nil, fmt.Errorf("checkpoint key: %s is not a regular file", path)
	case fi.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("checkpoint key: %s has mode %04o, which lets others at it; chmod 600 it", path, fi.Mode().Perm())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("checkpoint key: %w", err)
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, fmt.Errorf("checkpoint key: %s: %w", path, err)
	}
	return key, nil
}

// parseKey parses a PKCS#8 PEM file that holds one Ed25519 key.
func parseKey(text []byte) (ed25519.PrivateKey, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" || len(strings.TrimSpace(string(rest))) != 0 {
		return nil, errors.New("not one PRIVATE KEY block of PEM")
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("not a PKCS#8 private key")
	}
	key, ok := any.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("it holds a %T, not an Ed25519 key", any)
	}
	return key, nil
}

// createKey makes a key and stores it.
func createKey(path string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("checkpoint key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("checkpoint key: %w", err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := WriteFile(path, text, 0o600); err != nil {
		return nil, fmt.Errorf("checkpoint key: %w", err)
	}
	return key, nil
}

// signer signs notes and receipts of one origin; it is a note.Signer.
type signer struct {
	verifier note.Verifier
	text     string // of the verifier, as VerifierKey gives it
	key      ed25519.PrivateKey
}

// newSigner refuses an origin that can't be a key name.
func newSigner(origin string, key ed25519.PrivateKey) (*signer, error) {
	if err := checkOrigin(origin); err != nil {
		return nil, err
	}
	if len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("checkpoint key is missing")
	}
	text, err := note.NewEd25519VerifierKey(origin, key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, fmt.Errorf("verifier key: %w", err)
	}
	v, err := note.NewVerifier(text)
	if err != nil {
		return nil, fmt.Errorf("verifier key: %w", err)
	}
	return &signer{verifier: v, text: text, key: key}, nil
}

// checkOrigin refuses what a signed note can't carry as a name, and the
// first line of a receipt.
func checkOrigin(origin string) error {
	switch {
	case origin == "":
		return errors.New("origin is missing")
	case origin == receiptMagic:
		return fmt.Errorf("origin %q begins receipts", origin)
	case strings.ContainsRune(origin, '+') || strings.ContainsFunc(origin, unicode.IsSpace):
		return fmt.Errorf("origin %q has a plus or a space in it", origin)
	}
	return nil
}

// Name implements note.Signer.
func (s *signer) Name() string { return s.verifier.Name() }

// KeyHash implements note.Signer.
func (s *signer) KeyHash() uint32 { return s.verifier.KeyHash() }

// Sign implements note.Signer.
func (s *signer) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.key, msg), nil }
