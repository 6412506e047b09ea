// This file holds the server's certificates: finding or making the root and
// the intermediate, its own SVID, and their renewal.

package server

import (
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
	rootCert     *x509.Certificate
	bundle       identity.Bundle
	intermediate *ca.Authority
	creds        *identity.Credentials // the server's SVID: leaf, intermediate, root

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
		return t.creds
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
	case len(root.URIs) > 1 || len(root.URIs) == 1 && root.URIs[0].String() != cfg.TrustDomain.ID().String():
		return nil, fmt.Errorf("root certificate %s is of %v, not of the trust domain %s", path, root.URIs, cfg.TrustDomain)
	case !now.Before(root.NotAfter):
		return nil, fmt.Errorf("root certificate %s expired at %s", path, root.NotAfter.UTC().Format(time.RFC3339))
	}
	return root, nil
}

// establish finds or makes the root, the intermediate and the server's SVID.
func (s *Server) establish(ctx context.Context, now time.Time) error {
	staged, err := s.loadImport()
	if err != nil {
		return err
	}
	rootCert, err := s.establishRoot(ctx, staged, now)
	if err != nil {
		return err
	}
	bundle, err := identity.NewBundle(s.cfg.TrustDomain, []*x509.Certificate{rootCert})
	if err != nil {
		return err
	}
	t := &trust{rootCert: rootCert, bundle: bundle}
	found, err := s.establishIntermediate(ctx, t, staged, now)
	if err != nil {
		return err
	}
	t.setIntermediate(found, now)
	if err := s.forgetSpentRequest(found); err != nil {
		return err
	}
	if t, err = s.withServerSVID(ctx, t, now); err != nil {
		return err
	}
	s.trust.Store(t)
	return nil
}

// establishIntermediate adopts what was imported while no server ran, or
// finds the intermediate, or has one signed.
func (s *Server) establishIntermediate(ctx context.Context, t *trust, staged *imported, now time.Time) (*ca.Authority, error) {
	found, err := s.loadIntermediate(t, now)
	if err != nil {
		return nil, err
	}
	if staged != nil {
		a, err := s.adoptImport(ctx, t.rootCert, staged, "", found != nil, now)
		if err != nil || a != nil {
			return a, err
		}
	}
	live := found != nil && found.Certificate().NotAfter.Sub(now) >= s.cfg.MinTTL
	if s.cfg.Upstream == nil {
		if err := s.checkRootKey(ctx, t.rootCert, live, now); err != nil {
			return nil, err
		}
	}
	if live {
		return found, nil
	}
	return s.makeIntermediate(ctx, t.rootCert, now, found != nil)
}

// checkRootKey sees that the own root's key is there and the right one. A
// device that does not answer is reported, and stops nothing while there is a
// live intermediate.
func (s *Server) checkRootKey(ctx context.Context, cert *x509.Certificate, live bool, now time.Time) error {
	key, err := s.openRootKey(ctx, false)
	if err == nil {
		_, err = ca.NewRoot(s.cfg.TrustDomain, cert, key, now)
		err = errors.Join(err, key.Close())
	}
	if live && errors.Is(err, keys.ErrAway) {
		s.upstream.failed(now, err)
		s.log.Error("the root's key can't be reached; the intermediate in force issues on", "error", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("root %s: %w", s.rootPath(), err)
	}
	return nil
}

func (t *trust) setIntermediate(a *ca.Authority, now time.Time) {
	c := certificate{roleIntermediate, a.Certificate()}
	issued := c.issued()
	if issued.After(now) {
		issued = now // who signed it backdates less than we do
	}
	t.intermediate = a
	t.intermediateDue = rotation.Due(issued, c.cert.NotAfter, rotation.Jitter())
}

// establishRoot finds the root, or pins or makes it.
func (s *Server) establishRoot(ctx context.Context, staged *imported, now time.Time) (*x509.Certificate, error) {
	cert, err := readRoot(s.cfg, now)
	if err != nil {
		return nil, err
	}
	if staged != nil {
		if err := staged.checkAgainst(cert); err != nil {
			return nil, err
		}
	}
	switch {
	case cert != nil:
		return cert, nil
	case staged != nil && staged.root != nil:
		cert = staged.root
	case s.cfg.Upstream != nil:
		if cert, err = s.cfg.Upstream.Root(ctx); err != nil {
			return nil, fmt.Errorf("root of %s: %w", s.cfg.Upstream, err)
		}
	default:
		return s.makeRoot(ctx, now)
	}
	if err := s.pinRoot(ctx, cert, "", now); err != nil {
		return nil, err
	}
	return cert, nil
}

func (s *Server) makeRoot(ctx context.Context, now time.Time) (_ *x509.Certificate, err error) {
	key, err := s.openRootKey(ctx, true)
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	defer func() { err = errors.Join(err, key.Close()) }()
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
	a, err := ca.NewAuthority(s.cfg.TrustDomain, chain, t.rootCert, key, s.profiles(), now)
	if err != nil {
		return nil, fmt.Errorf("intermediate %s: %w", path, err)
	}
	return a, nil
}

// makeIntermediate has a new intermediate signed and recorded, and stores it
// with its key in one file, so that the two never part.
func (s *Server) makeIntermediate(ctx context.Context, rootCert *x509.Certificate, now time.Time, renewed bool) (*ca.Authority, error) {
	key, err := s.cfg.IssuerKeyType.Generate()
	if err != nil {
		return nil, fmt.Errorf("intermediate: %w", err)
	}
	a, err := s.signIntermediate(ctx, rootCert, key, now, renewed)
	if err != nil {
		return nil, err
	}
	if err := s.storeIntermediate(a, key); err != nil {
		return nil, err
	}
	s.upstream.succeeded(now)
	return a, nil
}

func (s *Server) storeIntermediate(a *ca.Authority, key crypto.Signer) error {
	text, err := identity.EncodeKey(key)
	if err != nil {
		return fmt.Errorf("intermediate: %w", err)
	}
	if err := audit.WriteFile(s.intermediatePath(), append(text, identity.EncodeCertificates(a.Chain())...), 0o600); err != nil {
		return fmt.Errorf("intermediate: %w", err)
	}
	s.log.Info("intermediate made", "ski", a.SKI(), "not_after", a.Certificate().NotAfter, "upstream", s.upstreamName())
	return nil
}

// withServerSVID returns t with a new SVID of the server's own. Its chain
// includes the root, so that a joiner who pins the root's hash can verify it.
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
	result := s.issuer.Issue(ctx, now, t.intermediate, []ca.Request{{Entitlement: entitled, CSR: csr}})[0]
	if result.Err != nil {
		return nil, fmt.Errorf("server SVID: %w", result.Err)
	}
	chain, err := identity.ParseChain(result.Chain)
	if err != nil {
		return nil, fmt.Errorf("server SVID: %w", err)
	}
	svid, err := identity.NewSVID(append(chain, t.rootCert), key, result.IssuedAt)
	if err != nil {
		return nil, fmt.Errorf("server SVID: %w", err)
	}
	s.metrics.issued.WithLabelValues(roleServer).Inc()
	var generation uint64 = 1
	if t.creds != nil {
		generation = t.creds.Generation + 1
	}
	next := *t
	next.creds = identity.NewCredentials(svid, generation, t.bundle)
	next.serverDue = rotation.Due(result.IssuedAt, svid.Leaf().NotAfter, rotation.Jitter())
	return &next, nil
}

func (s *Server) profiles() ca.Profiles {
	c := s.cfg
	return ca.Profiles{
		VerifyEvery: c.VerifyLeaves,
		Workload:    ca.Profile{Default: c.DefaultTTL, Min: c.MinTTL, Max: c.MaxTTL},
		Node:        ca.Profile{Default: c.NodeTTL, Min: min(c.NodeTTL, time.Second), Max: c.NodeTTL},
		Server:      ca.Profile{Default: c.ServerTTL, Min: min(c.ServerTTL, time.Second), Max: c.ServerTTL},
	}
}

// keeper renews the server's SVID when it is due.
type keeper struct {
	server   *Server
	attempts int
}

// Renew renews the SVID if it is due at now and returns when to look again.
func (k *keeper) Renew(ctx context.Context, now time.Time) time.Time {
	s := k.server
	if t := s.trust.Load(); now.Before(t.serverDue) {
		return t.serverDue
	}
	next, err := s.renewSVID(ctx, now)
	if err != nil && ctx.Err() == nil {
		wait := rotation.Backoff(k.attempts, time.Second, 5*time.Minute)
		k.attempts++
		s.log.Error("renewal of the server's SVID", "error", err, "retry_in", wait)
		return now.Add(wait)
	}
	k.attempts = 0
	return next
}

func (s *Server) renewSVID(ctx context.Context, now time.Time) (time.Time, error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	next, err := s.withServerSVID(ctx, s.trust.Load(), now)
	if err != nil {
		return time.Time{}, err
	}
	s.trust.Store(next)
	return next.serverDue, nil
}
