// This file holds the node's files: the credential, the key of an attestation
// or renewal under way, and the bundle.

package join

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
)

const (
	credentialFile = "credential.pem" // key, then chain: one file, so that they never disagree
	pendingFile    = "pending.key"
	bundleFile     = "bundle.pem"
)

// backdate is how long before its issue a certificate's NotBefore lies.
const backdate = time.Minute

// files are the node's files in one directory. Every write is durable and
// leaves the old file or the new one.
type files struct{ dir string }

// load reads credential and bundle. Both are zero on a node that has not
// joined.
func (f files) load() (identity.SVID, identity.Bundle, error) {
	text, err := f.read(credentialFile)
	if errors.Is(err, fs.ErrNotExist) {
		return identity.SVID{}, identity.Bundle{}, nil
	}
	if err != nil {
		return identity.SVID{}, identity.Bundle{}, err
	}
	svid, err := parseCredential(text)
	if err != nil {
		return identity.SVID{}, identity.Bundle{}, fmt.Errorf("%s: %w", f.path(credentialFile), err)
	}
	text, err = f.read(bundleFile)
	if err != nil {
		return identity.SVID{}, identity.Bundle{}, err
	}
	bundle, err := readBundle(text, svid.ID.TrustDomain().String())
	if err != nil {
		return identity.SVID{}, identity.Bundle{}, fmt.Errorf("%s: %w", f.path(bundleFile), err)
	}
	return svid, bundle, f.settlePending(svid)
}

// save makes the pair the node's credential. The bundle is written first: a
// credential without one would be of no use.
func (f files) save(svid identity.SVID, bundle identity.Bundle) error {
	if err := f.saveBundle(bundle); err != nil {
		return err
	}
	key, err := identity.EncodeKey(svid.Key)
	if err != nil {
		return fmt.Errorf("%s: %w", f.path(credentialFile), err)
	}
	if err := audit.WriteFile(f.path(credentialFile), append(key, identity.EncodeCertificates(svid.Chain)...), 0o600); err != nil {
		return err
	}
	return f.settlePending(svid)
}

// saveBundle writes the roots, unless the file holds them already.
func (f files) saveBundle(b identity.Bundle) error {
	text := identity.EncodeCertificates(b.Roots())
	if old, err := os.ReadFile(f.path(bundleFile)); err == nil && bytes.Equal(old, text) {
		return nil
	}
	return audit.WriteFile(f.path(bundleFile), text, 0o600)
}

// pendingKey returns the key of an attestation or renewal that has not ended,
// or nil.
func (f files) pendingKey() (*ecdsa.PrivateKey, error) {
	text, err := f.read(pendingFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	signer, err := identity.DecodeKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.path(pendingFile), err)
	}
	key, ok := signer.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: key of type %T", f.path(pendingFile), signer)
	}
	return key, nil
}

func (f files) savePending(key *ecdsa.PrivateKey) error {
	text, err := identity.EncodeKey(key)
	if err != nil {
		return fmt.Errorf("%s: %w", f.path(pendingFile), err)
	}
	return audit.WriteFile(f.path(pendingFile), text, 0o600)
}

// settlePending removes the pending key once it is the credential's.
func (f files) settlePending(svid identity.SVID) error {
	key, err := f.pendingKey()
	if err != nil || key == nil || !key.PublicKey.Equal(svid.Key.Public()) {
		return err
	}
	if err := os.Remove(f.path(pendingFile)); err != nil {
		return fmt.Errorf("pending key: %w", err)
	}
	return nil
}

// read reads a file that must be for its owner alone.
func (f files) read(name string) ([]byte, error) {
	fi, err := os.Stat(f.path(name))
	if err != nil {
		return nil, err
	}
	if perm := fi.Mode().Perm(); perm&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o: others may read or write it; chmod 600 it", f.path(name), perm)
	}
	return os.ReadFile(f.path(name))
}

func (f files) path(name string) string { return filepath.Join(f.dir, name) }

// parseCredential takes a credential file apart: one PKCS#8 key, then the
// chain, leaf first.
func parseCredential(text []byte) (identity.SVID, error) {
	block, rest := pem.Decode(text)
	if block == nil {
		return identity.SVID{}, errors.New("no PEM block found")
	}
	key, err := identity.DecodeKey(pem.EncodeToMemory(block))
	if err != nil {
		return identity.SVID{}, err
	}
	chain, err := identity.DecodeCertificates(rest)
	if err != nil {
		return identity.SVID{}, err
	}
	issued := chain[0].NotBefore.Add(backdate)
	if issued.After(chain[0].NotAfter) {
		issued = chain[0].NotBefore
	}
	svid, err := identity.NewSVID(chain, key, issued)
	if err != nil {
		return identity.SVID{}, err
	}
	if svid.ID.Role() != identity.RoleNode {
		return identity.SVID{}, fmt.Errorf("credential is for %s, which is no node", svid.ID)
	}
	return svid, nil
}
