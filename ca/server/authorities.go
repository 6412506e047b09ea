// This file holds the server's certificates: finding or making the root and
// the intermediate, its own SVID, and their renewal.

package server

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
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
	"github.com/aval-id/aval/rotation"
)

const (
	roleRoot         = "root"
	roleIntermediate = "intermediate"
	roleServer       = "server"
)

// trust is the server's certificates of one moment. It is immutable and
// swapped whole.
type trust struct {
	root         *ca.Authority // that issues
	rootCert     *x509.Certificate
	rootKey      string // KMS URI
	bundle       identity.Bundle
	above        []*x509.Certificate // what every chain carries above the intermediate: the cross-certificate of a rollover
	tail         []*x509.Certificate // what the server's own chain carries above that: roots to pin
	intermediate *ca.Authority
	creds        *identity.Credentials // the server's SVID: leaf, intermediate, above, tail

	sequence uint64 // of the rollover's record that this follows from

	// When the two are due, with the jitter drawn once.
	intermediateDue, serverDue time.Time
}

// certificate is one certificate in force with its role.
type certificate struct {
	role string
	cert *x509.Certificate
}

func (c certificate) issued() time.Time { return c.cert.NotBefore.Add(ca.Backdate) }

// certificates returns what is in force, root first.
func (s *Server) certificates() []certificate {
	t := s.trust.Load()
	if t == nil {
		return nil
	}
	return []certificate{
		{roleRoot, t.rootCert},
		{roleIntermediate, t.intermediate.Certificate()},
		{roleServer, t.creds.SVID.Leaf()},
	}
}

// Credentials returns the server's SVID and bundle of the moment, nil before
// Run has made them.
func (s *Server) Credentials() *identity.Credentials {
	if t := s.trust.Load(); t != nil {
		return t.creds.WithDenials(s.documents.denials())
	}
	return nil
}

func (s *Server) rootPath() string { return filepath.Join(s.cfg.DataDir, rootFile) }
func (s *Server) intermediatePath() string {
	return filepath.Join(s.cfg.DataDir, keysDir, intermediateFile)
}

// readRoot reads the root certificate, nil where there is none yet, and
// refuses one of another trust domain, or an expired one.
func readRoot(cfg Config, now time.Time) (*x509.Certificate, error) {
	path := filepath.Join(cfg.DataDir, rootFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(cfg.DataDir, keysDir, intermediateFile)); err == nil {
			return nil, fmt.Errorf("root certificate %s is missing, and an intermediate under it is there: put it back", path)
		}
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	certs, err := identity.DecodeCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("root certificate %s: %w", path, err)
	}
	root := certs[0]
	switch {
	case len(certs) != 1:
		return nil, fmt.Errorf("root certificate %s: it holds %d certificates", path, len(certs))
	case len(root.URIs) != 1 || root.URIs[0].String() != cfg.TrustDomain.ID().String():
		return nil, fmt.Errorf("root certificate %s is of %v, not of the trust domain %s", path, root.URIs, cfg.TrustDomain)
	case !now.Before(root.NotAfter):
		return nil, fmt.Errorf("root certificate %s expired at %s", path, root.NotAfter.UTC().Format(time.RFC3339))
	}
	return root, nil
}

// establish finds or makes the root, the intermediate and the server's SVID,
// and puts them in force.
func (s *Server) establish(ctx context.Context, now time.Time) error {
	s.trusting.Lock()
	defer s.trusting.Unlock()
	t, err := s.establishRoots(ctx, now)
	if err != nil {
		return err
	}
	found, err := s.loadIntermediate(t, now)
	if err != nil {
		return err
	}
	if found == nil || found.Certificate().NotAfter.Sub(now) < s.cfg.MinTTL {
		if found, err = s.makeIntermediate(ctx, t, now, found != nil); err != nil {
			return err
		}
	}
	t.setIntermediate(found)
	if t, err = s.withServerSVID(ctx, t, now); err != nil {
		return err
	}
	s.trust.Store(t)
	return nil
}

func (t *trust) setIntermediate(a *ca.Authority) {
	c := certificate{roleIntermediate, a.Certificate()}
	t.intermediate = a
	t.intermediateDue = rotation.Due(c.issued(), c.cert.NotAfter, rotation.Jitter())
}

// establishRoots finds the roots of the moment: those of the rollover's record
// where there ever was a rollover, and else the one of the data directory,
// which the first start makes.
func (s *Server) establishRoots(ctx context.Context, now time.Time) (*trust, error) {
	if r := s.rollover.current(); r.known() {
		return s.rootsOfRecord(ctx, r, now)
	}
	root, cert, uri, err := s.establishRoot(ctx, now)
	if err != nil {
		return nil, err
	}
	bundle, err := identity.NewBundle(s.cfg.TrustDomain, []*x509.Certificate{cert})
	if err != nil {
		return nil, err
	}
	return &trust{root: root, rootCert: cert, rootKey: uri, bundle: bundle, tail: []*x509.Certificate{cert}}, nil
}

func (s *Server) establishRoot(ctx context.Context, now time.Time) (*ca.Authority, *x509.Certificate, string, error) {
	cert, err := readRoot(s.cfg, now)
	if err != nil {
		return nil, nil, "", err
	}
	uri := s.rootKeyURI(ctx, cert)
	if cert == nil {
		key, _, err := keys.OpenOrCreate(ctx, uri)
		if err != nil {
			return nil, nil, "", fmt.Errorf("root: %w", err)
		}
		if cert, err = s.makeRoot(ctx, key, now); err != nil {
			return nil, nil, "", err
		}
	}
	root, err := s.openRoot(ctx, cert, uri, now)
	return root, cert, uri, err
}

// rootKeyURI is where the key of the root is that no record tells of: where
// the settings say, or in the data directory, where a rollover may have left
// it under a name of its own.
func (s *Server) rootKeyURI(ctx context.Context, cert *x509.Certificate) string {
	if s.cfg.RootKey != "" {
		return s.cfg.RootKey
	}
	dir := filepath.Join(s.cfg.DataDir, keysDir)
	first := keys.FileURI(filepath.Join(dir, rootKeyFile))
	if cert == nil {
		return first
	}
	others, _ := filepath.Glob(filepath.Join(dir, "root-*.key")) // the pattern is good
	for _, path := range others {
		uri := keys.FileURI(path)
		if key, err := keys.Open(ctx, uri); err == nil {
			if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); ok && pub.Equal(cert.PublicKey) {
				return uri
			}
		}
	}
	return first
}

// openRoot opens a root's key and makes the authority of it. It is the one
// place where the key of a root is opened to sign.
func (s *Server) openRoot(ctx context.Context, cert *x509.Certificate, uri string, now time.Time) (*ca.Authority, error) {
	key, err := keys.Open(ctx, uri)
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	root, err := ca.NewRoot(s.cfg.TrustDomain, cert, key, now)
	if err != nil {
		return nil, fmt.Errorf("root %s: %w", s.rootPath(), err)
	}
	return root, nil
}

func (s *Server) makeRoot(ctx context.Context, key crypto.Signer, now time.Time) (*x509.Certificate, error) {
	draft, err := ca.DraftRoot(s.cfg.TrustDomain, key, now, s.cfg.RootTTL)
	if err != nil {
		return nil, err
	}
	cert, err := s.issuer.ReleaseRoot(ctx, draft)
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	if err := audit.WriteFile(s.rootPath(), identity.EncodeCertificates([]*x509.Certificate{cert}), 0o644); err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	s.log.Info("root made", "trust_domain", s.cfg.TrustDomain.String(), "hash", identity.CertificateHash(cert), "not_after", cert.NotAfter)
	return cert, nil
}

// loadIntermediate reads the intermediate's key and certificate from their
// one file. It returns nil where there is none; an expired one is returned as
// nil too, since a new one takes its place.
func (s *Server) loadIntermediate(t *trust, now time.Time) (*ca.Authority, error) {
	path := s.intermediatePath()
	if err := keys.CheckSecretFile(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("intermediate: %w", err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("intermediate: %w", err)
	}
	key, err := identity.DecodeKey(text)
	if err != nil {
		return nil, fmt.Errorf("intermediate %s: %w", path, err)
	}
	_, rest := pem.Decode(text)
	chain, err := identity.DecodeCertificates(rest)
	if err != nil {
		return nil, fmt.Errorf("intermediate %s: %w", path, err)
	}
	if !now.Before(chain[0].NotAfter) {
		s.log.Warn("intermediate expired while no server ran; a new one is made", "not_after", chain[0].NotAfter)
		return nil, nil
	}
	if setBack(chain[0], now) {
		s.log.Warn("the clock was set back since the intermediate was made; a new one is made", "not_before", chain[0].NotBefore)
		return nil, nil
	}
	if !bytes.Equal(chain[0].AuthorityKeyId, t.rootCert.SubjectKeyId) && s.rollover.current().known() {
		s.log.Info("the intermediate is of another root; a new one is made", "ski", fmt.Sprintf("%x", chain[0].SubjectKeyId))
		return nil, nil
	}
	a, err := ca.NewAuthority(s.cfg.TrustDomain, append(chain, t.above...), t.rootCert, key, s.profiles(), now)
	if err != nil {
		return nil, fmt.Errorf("intermediate %s: %w", path, err)
	}
	return a, nil
}

// makeIntermediate has a new intermediate signed by the root, recorded, and
// stored with its key in one file, so that the two never part.
func (s *Server) makeIntermediate(ctx context.Context, t *trust, now time.Time, renewed bool) (*ca.Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("intermediate: %w", err)
	}
	draft, err := t.root.DraftIntermediate(now, key, s.cfg.IntermediateTTL, renewed)
	if err != nil {
		return nil, err
	}
	certs, err := s.issuer.Release(ctx, t.root, []*ca.Draft{draft})
	if err != nil {
		return nil, fmt.Errorf("intermediate: %w", err)
	}
	chain := []*x509.Certificate{certs[0].Leaf}
	text, err := identity.EncodeKey(key)
	if err != nil {
		return nil, fmt.Errorf("intermediate: %w", err)
	}
	if err := audit.WriteFile(s.intermediatePath(), append(text, identity.EncodeCertificates(chain)...), 0o600); err != nil {
		return nil, fmt.Errorf("intermediate: %w", err)
	}
	s.log.Info("intermediate made", "ski", fmt.Sprintf("%x", chain[0].SubjectKeyId), "not_after", chain[0].NotAfter)
	return ca.NewAuthority(s.cfg.TrustDomain, append(chain, t.above...), t.rootCert, key, s.profiles(), now)
}

// withServerSVID returns t with a new SVID of the server's own. Its chain
// includes the roots, so that a joiner who pins a root's hash can verify it.
func (s *Server) withServerSVID(ctx context.Context, t *trust, now time.Time) (*trust, error) {
	entitled, err := ca.ServerSelf(s.cfg.TrustDomain, s.cfg.Name)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("server SVID: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("server SVID: %w", err)
	}
	if err := s.marks.reach(ctx, t.intermediate, now, s.cfg.ServerTTL); err != nil {
		return nil, fmt.Errorf("server SVID: %w", err)
	}
	result := s.issuer.Issue(ctx, now, t.intermediate, []ca.Request{{Entitlement: entitled, CSR: csr}})[0]
	if result.Err != nil {
		return nil, fmt.Errorf("server SVID: %w", result.Err)
	}
	chain, err := identity.ParseChain(result.Chain)
	if err != nil {
		return nil, fmt.Errorf("server SVID: %w", err)
	}
	svid, err := identity.NewSVID(append(chain, t.tail...), key, result.IssuedAt)
	if err != nil {
		return nil, fmt.Errorf("server SVID: %w", err)
	}
	s.metrics.issued.WithLabelValues(roleServer).Inc()
	var generation uint64 = 1
	if held := s.Credentials(); held != nil {
		generation = held.Generation + 1
	}
	next := *t
	next.creds = identity.NewCredentials(svid, generation, t.bundle)
	next.serverDue = rotation.Due(result.IssuedAt, svid.Leaf().NotAfter, rotation.Jitter())
	return &next, nil
}

func (s *Server) profiles() ca.Profiles {
	c := s.cfg
	return ca.Profiles{
		Workload: ca.Profile{Default: c.DefaultTTL, Min: c.MinTTL, Max: c.MaxTTL},
		Node:     ca.Profile{Default: c.NodeTTL, Min: min(c.NodeTTL, time.Second), Max: c.NodeTTL},
		Server:   ca.Profile{Default: c.ServerTTL, Min: min(c.ServerTTL, time.Second), Max: c.ServerTTL},
	}
}

// setBack reports whether this server's clock was set back since it issued a
// certificate: it is not valid yet, nor anything that it signs.
func setBack(c *x509.Certificate, now time.Time) bool { return now.Before(c.NotBefore) }

// keeper renews the server's intermediate and its SVID when they are due.
type keeper struct {
	server   *Server
	attempts int
}

// Renew renews what is due at now and returns when to look again.
func (k *keeper) Renew(ctx context.Context, now time.Time) time.Time {
	s := k.server
	s.trusting.Lock()
	defer s.trusting.Unlock()
	t := *s.trust.Load()
	err := func() error {
		if !now.Before(t.intermediateDue) || setBack(t.intermediate.Certificate(), now) {
			a, err := s.makeIntermediate(ctx, &t, now, true)
			if err != nil {
				return err
			}
			t.setIntermediate(a)
			renewed := t
			s.trust.Store(&renewed)
		}
		if !now.Before(t.serverDue) || setBack(t.creds.SVID.Leaf(), now) {
			next, err := s.withServerSVID(ctx, &t, now)
			if err != nil {
				return err
			}
			t = *next
			s.trust.Store(next)
		}
		return nil
	}()
	if err != nil && ctx.Err() == nil {
		wait := rotation.Backoff(k.attempts, time.Second, 5*time.Minute)
		k.attempts++
		s.log.Error("renewal of the server's certificates", "error", err, "retry_in", wait)
		return now.Add(wait)
	}
	k.attempts = 0
	if t.intermediateDue.Before(t.serverDue) {
		return t.intermediateDue
	}
	return t.serverDue
}
