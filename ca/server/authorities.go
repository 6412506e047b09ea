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
	rootCert     *x509.Certificate
	rootKey      string // KMS URI; empty where the key has another home, or is not this server's
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
	case len(root.URIs) > 1 || len(root.URIs) == 1 && root.URIs[0].String() != cfg.TrustDomain.ID().String():
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
	staged, err := s.loadImport()
	if err != nil {
		return err
	}
	t, err := s.establishRoots(ctx, staged, now)
	if err != nil {
		return err
	}
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

// establishRoots finds the roots of the moment: those of the rollover's record
// where there ever was a rollover, and else the one of the data directory,
// which the first start pins or makes.
func (s *Server) establishRoots(ctx context.Context, staged *imported, now time.Time) (*trust, error) {
	if r := s.rollover.current(); r.known() {
		t, err := s.rootsOfRecord(r, now)
		if err == nil && staged != nil {
			err = staged.checkAgainst(t.rootCert)
		}
		return t, err
	}
	cert, err := s.establishRoot(ctx, staged, now)
	if err != nil {
		return nil, err
	}
	bundle, err := identity.NewBundle(s.cfg.TrustDomain, []*x509.Certificate{cert})
	if err != nil {
		return nil, err
	}
	return &trust{rootCert: cert, rootKey: s.rootKeyURI(ctx, cert), bundle: bundle, tail: []*x509.Certificate{cert}}, nil
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
		if err := s.checkRootKey(ctx, t, live, now); err != nil {
			return nil, err
		}
	}
	if live {
		return found, nil
	}
	return s.makeIntermediate(ctx, t, now, found != nil)
}

// checkRootKey sees that the own root's key is there and the right one. A
// device that does not answer is reported, and stops nothing while there is a
// live intermediate.
func (s *Server) checkRootKey(ctx context.Context, t *trust, live bool, now time.Time) error {
	_, key, err := s.openRoot(ctx, t, now)
	if err == nil {
		err = key.Close()
	}
	if live && errors.Is(err, keys.ErrAway) {
		s.upstream.failed(now, err)
		s.log.Error("the root's key can't be reached; the intermediate in force issues on", "error", err)
		return nil
	}
	return err
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
	key, err := s.makeRootKey(ctx)
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

// makeIntermediate has a new intermediate signed and recorded, and stores it
// with its key in one file, so that the two never part.
func (s *Server) makeIntermediate(ctx context.Context, t *trust, now time.Time, renewed bool) (*ca.Authority, error) {
	key, err := s.cfg.IssuerKeyType.Generate()
	if err != nil {
		return nil, fmt.Errorf("intermediate: %w", err)
	}
	a, err := s.signIntermediate(ctx, t, key, now, renewed)
	if err != nil {
		return nil, err
	}
	if err := s.storeIntermediate(t, a, key); err != nil {
		return nil, err
	}
	s.upstream.succeeded(now)
	return a, nil
}

// storeIntermediate stores an intermediate and its key, without what chains
// carry above it for a rollover.
func (s *Server) storeIntermediate(t *trust, a *ca.Authority, key crypto.Signer) error {
	text, err := identity.EncodeKey(key)
	if err != nil {
		return fmt.Errorf("intermediate: %w", err)
	}
	chain := a.Chain()
	chain = chain[:len(chain)-len(t.above)]
	if err := audit.WriteFile(s.intermediatePath(), append(text, identity.EncodeCertificates(chain)...), 0o600); err != nil {
		return fmt.Errorf("intermediate: %w", err)
	}
	s.log.Info("intermediate made", "ski", a.SKI(), "not_after", a.Certificate().NotAfter, "upstream", s.upstreamName())
	return nil
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
		VerifyEvery: c.VerifyLeaves,
		Workload:    ca.Profile{Default: c.DefaultTTL, Min: c.MinTTL, Max: c.MaxTTL},
		Node:        ca.Profile{Default: c.NodeTTL, Min: min(c.NodeTTL, time.Second), Max: c.NodeTTL},
		Server:      ca.Profile{Default: c.ServerTTL, Min: min(c.ServerTTL, time.Second), Max: c.ServerTTL},
	}
}

// setBack reports whether this server's clock was set back since it issued a
// certificate: it is not valid yet, nor anything that it signs.
func setBack(c *x509.Certificate, now time.Time) bool { return now.Before(c.NotBefore) }

// keeper renews the server's SVID when it is due.
type keeper struct {
	server   *Server
	attempts int
}

// Renew renews the SVID if it is due at now and returns when to look again.
func (k *keeper) Renew(ctx context.Context, now time.Time) time.Time {
	s := k.server
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
	s.trusting.Lock()
	defer s.trusting.Unlock()
	t := s.trust.Load()
	if now.Before(t.serverDue) && !setBack(t.creds.SVID.Leaf(), now) {
		return t.serverDue, nil
	}
	next, err := s.withServerSVID(ctx, t, now)
	if err != nil {
		return time.Time{}, err
	}
	s.trust.Store(next)
	return next.serverDue, nil
}
