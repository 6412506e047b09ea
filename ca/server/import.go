// This file holds the import of authorities that were signed elsewhere: the
// request with its key, and what is staged while no server runs.

package server

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/ca/keys"
	"github.com/aval-id/aval/identity"
)

// imported is what an import brings: a root to pin, an intermediate with its
// key, or both. It is staged in one file, so that it comes into force whole.
type imported struct {
	key   crypto.Signer       // of chain[0]; nil where only a root is imported
	chain []*x509.Certificate // without the root
	root  *x509.Certificate   // nil where the pinned one is meant
}

// Import is what an operator brings to a server that does not run.
type Import struct {
	// Certificates are the chain, the intermediate first, and the root.
	Certificates []*x509.Certificate
	// Key is the intermediate's, nil where it is the one that was requested.
	Key crypto.Signer
	// RootKey is the KMS URI of the root's key, where a root is brought that
	// this server is to sign with.
	RootKey string
}

func (s *Server) requestPath() string { return filepath.Join(s.cfg.DataDir, keysDir, requestFile) }
func (s *Server) importPath() string  { return filepath.Join(s.cfg.DataDir, keysDir, importFile) }

// request returns a request for an intermediate as DER. Its key is durable
// before the request leaves; a key that waits for its certificate already is
// used again.
func (s *Server) request() ([]byte, error) {
	key, err := readKey(s.requestPath())
	if errors.Is(err, fs.ErrNotExist) {
		if key, err = s.cfg.IssuerKeyType.Generate(); err != nil {
			return nil, fmt.Errorf("request an intermediate: %w", err)
		}
		text, err := identity.EncodeKey(key)
		if err != nil {
			return nil, fmt.Errorf("request an intermediate: %w", err)
		}
		if err := audit.WriteFile(s.requestPath(), text, 0o600); err != nil {
			return nil, fmt.Errorf("request an intermediate: %w", err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("request an intermediate: %w", err)
	}
	return ca.RequestIntermediate(s.cfg.TrustDomain, key, 0)
}

func readKey(path string) (crypto.Signer, error) {
	if err := keys.CheckSecretFile(path); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, err := identity.DecodeKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// prepareImport checks what an operator brought against the pinned root, if
// there is one. Nothing is stored or in force yet.
func (s *Server) prepareImport(ctx context.Context, in Import, pinned *x509.Certificate, now time.Time) (*imported, error) {
	out := &imported{key: in.Key}
	for _, c := range in.Certificates {
		if c.CheckSignatureFrom(c) == nil {
			if out.root != nil && !out.root.Equal(c) {
				return nil, fmt.Errorf("import: it holds two roots")
			}
			out.root = c
			continue
		}
		out.chain = append(out.chain, c)
	}
	root := pinned
	if root == nil {
		root = out.root
	}
	switch {
	case len(in.Certificates) == 0:
		return nil, fmt.Errorf("import: no certificate was given")
	case root == nil:
		return nil, fmt.Errorf("import: no root is pinned yet, and none was given: name its certificate with --root")
	}
	if err := out.checkAgainst(pinned); err != nil {
		return nil, err
	}
	if len(out.chain) == 0 {
		return out, s.checkImportedRoot(ctx, in, root, now)
	}
	if out.key == nil {
		key, err := readKey(s.requestPath())
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("import: no request waits for a certificate: begin with `aval ca csr`, or bring the intermediate's key with --key")
		}
		if err != nil {
			return nil, fmt.Errorf("import: %w", err)
		}
		out.key = key
	}
	if _, err := identity.EncodeKey(out.key); err != nil {
		return nil, fmt.Errorf("import: the intermediate's key must be in this process: %w", err)
	}
	_, err := ca.Adopt(s.cfg.TrustDomain, out.chain, root, out.key, s.profiles(), s.leastIntermediate(), false, now)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	return out, nil
}

// checkImportedRoot checks a root that comes alone: this server will sign with
// its key.
func (s *Server) checkImportedRoot(ctx context.Context, in Import, root *x509.Certificate, now time.Time) error {
	if err := ca.CheckRoot(s.cfg.TrustDomain, root, now); err != nil {
		return fmt.Errorf("import: %w", err)
	}
	if in.RootKey == "" {
		return nil // the upstream's or an offline root, pinned before the first intermediate
	}
	key, err := keys.Open(ctx, in.RootKey)
	if err != nil {
		return fmt.Errorf("import: root: %w", err)
	}
	_, err = ca.NewRoot(s.cfg.TrustDomain, root, key, now)
	if err := errors.Join(err, key.Close()); err != nil {
		return fmt.Errorf("import: root: %w", err)
	}
	return nil
}

// checkAgainst refuses a root other than the pinned one.
func (i *imported) checkAgainst(pinned *x509.Certificate) error {
	if pinned == nil || i.root == nil || i.root.Equal(pinned) {
		return nil
	}
	return fmt.Errorf("import: the root %s is not the pinned %s: every node verifies by the pinned one, and another root is a rollover",
		identity.CertificateHash(i.root), identity.CertificateHash(pinned))
}

// stage stores an import durably, whole.
func (s *Server) stage(i *imported) error {
	var text []byte
	if i.key != nil && len(i.chain) > 0 {
		var err error
		if text, err = identity.EncodeKey(i.key); err != nil {
			return fmt.Errorf("import: %w", err)
		}
	}
	certs := i.chain
	if i.root != nil {
		certs = append(certs[:len(certs):len(certs)], i.root)
	}
	if err := audit.WriteFile(s.importPath(), append(text, identity.EncodeCertificates(certs)...), 0o600); err != nil {
		return fmt.Errorf("import: %w", err)
	}
	return nil
}

// loadImport reads what is staged, nil where nothing is.
func (s *Server) loadImport() (*imported, error) {
	path := s.importPath()
	if err := keys.CheckSecretFile(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("import: %w", err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	i, err := parseImport(text)
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", path, err)
	}
	return i, nil
}

// parseImport reads a key, if there is one, the chain, and the root, if there
// is one.
func parseImport(text []byte) (_ *imported, err error) {
	i := &imported{}
	if b, rest := pem.Decode(text); b != nil && b.Type == "PRIVATE KEY" {
		if i.key, err = identity.DecodeKey(text); err != nil {
			return nil, err
		}
		text = rest
	}
	if i.chain, err = identity.DecodeCertificates(text); err != nil {
		return nil, err
	}
	if last := i.chain[len(i.chain)-1]; last.CheckSignatureFrom(last) == nil {
		i.root, i.chain = last, i.chain[:len(i.chain)-1]
	}
	if (i.key == nil) != (len(i.chain) == 0) {
		return nil, errors.New("an intermediate and its key are not both there")
	}
	return i, nil
}

// adoptImport brings a staged import into force, with its record, and forgets
// the staging. It returns nil where no intermediate was in it.
func (s *Server) adoptImport(ctx context.Context, rootCert *x509.Certificate, i *imported, actor string, renewed bool, now time.Time) (a *ca.Authority, err error) {
	if len(i.chain) > 0 {
		adoption, err := ca.Adopt(s.cfg.TrustDomain, i.chain, rootCert, i.key, s.profiles(), s.leastIntermediate(), renewed, now)
		if err != nil {
			return nil, fmt.Errorf("import %s: %w; remove that file to go on without it", s.importPath(), err)
		}
		if a, err = s.issuer.Adopt(ctx, adoption, actor); err != nil {
			return nil, fmt.Errorf("import: %w", err)
		}
		if err := s.storeIntermediate(&trust{}, a, i.key); err != nil {
			return nil, err
		}
		s.upstream.succeeded(now)
	}
	for _, path := range []string{s.importPath(), s.requestPath()} {
		if path == s.requestPath() && a == nil {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("import: %w", err)
		}
	}
	return a, nil
}

// forgetSpentRequest removes a request's key that is in force already, which a
// crash left: the next request has a key of its own.
func (s *Server) forgetSpentRequest(a *ca.Authority) error {
	key, err := readKey(s.requestPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("request of an intermediate: %w", err)
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(a.Certificate().PublicKey) {
		return nil
	}
	if err := os.Remove(s.requestPath()); err != nil {
		return fmt.Errorf("request of an intermediate: %w", err)
	}
	return nil
}

// importLive takes an import into a running server.
func (s *Server) importLive(ctx context.Context, certs []*x509.Certificate, actor string, now time.Time) (*ca.Authority, error) {
	s.importing.Lock()
	defer s.importing.Unlock()
	t := s.trust.Load()
	if len(t.above) > 0 {
		return nil, errors.New("import: a rollover of the root is under way; import once it has ended")
	}
	pinned := t.rootCert
	i, err := s.prepareImport(ctx, Import{Certificates: certs}, pinned, now)
	if err != nil {
		return nil, err
	}
	if len(i.chain) == 0 {
		return nil, fmt.Errorf("import: the root is pinned already, and no intermediate was given")
	}
	if err := s.stage(i); err != nil {
		return nil, err
	}
	a, err := s.adoptImport(ctx, pinned, i, actor, true, now)
	if err != nil {
		// The operator hears that it failed, so that no later start may take it.
		return nil, errors.Join(err, os.Remove(s.importPath()))
	}
	s.activate(a, now)
	return a, nil
}

// atRest takes the data directory of a server that does not run.
func atRest(cfg Config, fn func(s *Server) error) error {
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0" // not listened on
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	for _, dir := range []string{cfg.DataDir, filepath.Join(cfg.DataDir, keysDir)} {
		if err := secureDir(dir); err != nil {
			return err
		}
	}
	lock, err := lockDir(cfg.DataDir, cfg.LockTimeout)
	if err != nil {
		return err
	}
	defer lock.Close()
	return fn(&Server{cfg: cfg, log: cfg.Logger})
}

// RequestAtRest returns a request for an intermediate, as DER, of a server
// that does not run. The data directory may be new.
func RequestAtRest(cfg Config) (der []byte, err error) {
	err = atRest(cfg, func(s *Server) error {
		der, err = s.request()
		return err
	})
	return der, err
}

// ImportAtRest checks an import and stages it for the next start of a server
// that does not run. The start records it and puts it in force.
func ImportAtRest(ctx context.Context, cfg Config, in Import, now time.Time) error {
	return atRest(cfg, func(s *Server) error {
		pinned, err := readRoot(s.cfg, now)
		if err != nil {
			return err
		}
		i, err := s.prepareImport(ctx, in, pinned, now)
		if err != nil {
			return err
		}
		return s.stage(i)
	})
}
