// This file holds who signs this server's intermediates: the own root's key,
// opened for the one signature, or an Upstream. It is the only place where the
// root's key is used, and none of it stands on the path of a leaf.

package server

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/ca/keys"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/rotation"
)

// Upstream signs this server's intermediates where the root's key is not this
// server's. Nothing that it returns is believed before it was checked against
// the pinned root. It is called by one goroutine at a time, and keeps to its
// context.
type Upstream interface {
	// Sign has a PKCS#10 request for an intermediate signed for about ttl. It
	// returns the chain, the intermediate first; the root may end it. The
	// error wraps ErrByHand where a person must do it.
	Sign(ctx context.Context, csr []byte, ttl time.Duration) ([]*x509.Certificate, error)
	// Root returns the root that the operator pinned, by a file or by its
	// hash. It is asked at the first start alone; from then on the data
	// directory holds the root.
	Root(ctx context.Context) (*x509.Certificate, error)
	// String names it for operators, without secrets.
	String() string
}

// RootKeyHome is where the own root's key lives, other than behind a KMS URI.
type RootKeyHome interface {
	// Open opens the key for one signature within ctx. An error that wraps
	// keys.ErrAway stops nothing while an intermediate is live.
	Open(ctx context.Context) (*keys.Key, error)
	// String names it for operators, without secrets.
	String() string
}

// ErrByHand means that nobody but a person can have an intermediate signed.
var ErrByHand = errors.New("the root is offline: `aval ca csr` writes the request, `aval ca import` takes what was signed")

// Offline is the Upstream whose root key is nowhere near: a person carries
// requests to it and certificates back.
type Offline struct{}

// Sign always asks for a person.
func (Offline) Sign(context.Context, []byte, time.Duration) ([]*x509.Certificate, error) {
	return nil, ErrByHand
}

// Root always asks for a person: the root comes with the first import.
func (Offline) Root(context.Context) (*x509.Certificate, error) {
	return nil, fmt.Errorf("no root is pinned yet: %w", ErrByHand)
}

// String names it.
func (Offline) String() string { return "offline root" }

// upstreamState is how the last signing of an intermediate went.
type upstreamState struct {
	mu       sync.Mutex
	failures int    // in a row
	err      string // of the last failure, "" once one succeeded
	byHand   bool
	signed   time.Time
	next     time.Time // of the next attempt after a failure
}

func (u *upstreamState) succeeded(now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.failures, u.err, u.byHand, u.next = 0, "", false, time.Time{}
	u.signed = now
}

// failed notes a failure and returns when to try again.
func (u *upstreamState) failed(now time.Time, err error) time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	wait := rotation.Backoff(u.failures, time.Second, 5*time.Minute)
	if u.byHand = errors.Is(err, ErrByHand); u.byHand {
		wait = time.Hour
	}
	u.failures++
	u.err, u.next = err.Error(), now.Add(wait)
	return u.next
}

// upstreamName names who signs, for operators.
func (s *Server) upstreamName() string {
	switch {
	case s.cfg.Upstream != nil:
		return s.cfg.Upstream.String()
	case s.cfg.RootKeyHome != nil:
		return "own root, " + s.cfg.RootKeyHome.String()
	}
	uri := s.cfg.RootKey
	if t := s.trust.Load(); t != nil && t.rootKey != "" {
		uri = t.rootKey
	}
	if scheme, _, ok := strings.Cut(uri, ":"); ok {
		return "own root, " + scheme
	}
	return "own root, softkms"
}

// rootKeyURI is where the key of the own root is that no record tells of:
// where the settings say, or in the data directory, where a rollover may have
// left it under a name of its own. It is empty where no URI leads to the key.
func (s *Server) rootKeyURI(ctx context.Context, cert *x509.Certificate) string {
	switch {
	case s.cfg.Upstream != nil || s.cfg.RootKeyHome != nil:
		return ""
	case s.cfg.RootKey != "":
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
			pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
			if key.Close() == nil && ok && pub.Equal(cert.PublicKey) {
				return uri
			}
		}
	}
	return first
}

// makeRootKey makes the key of the first root, or opens the one that is there.
// The caller closes it.
func (s *Server) makeRootKey(ctx context.Context) (*keys.Key, error) {
	if s.cfg.RootKeyHome != nil {
		return s.cfg.RootKeyHome.Open(ctx)
	}
	key, _, err := keys.OpenOrCreate(ctx, s.rootKeyURI(ctx, nil), s.cfg.RootKeyType)
	return key, err
}

// openRoot opens the own root's key and makes the authority of it. It is the
// one place where the key of a root is opened to sign. The caller closes the
// key.
func (s *Server) openRoot(ctx context.Context, t *trust, now time.Time) (*ca.Authority, *keys.Key, error) {
	var key *keys.Key
	var err error
	if t.rootKey == "" && s.cfg.RootKeyHome != nil {
		key, err = s.cfg.RootKeyHome.Open(ctx)
	} else {
		key, err = keys.Open(ctx, t.rootKey)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("root %s: %w", s.rootPath(), err)
	}
	root, err := ca.NewRoot(s.cfg.TrustDomain, t.rootCert, key, now)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("root %s: %w", s.rootPath(), err), key.Close())
	}
	return root, key, nil
}

// signIntermediate has an intermediate signed for key under the root that
// issues, and recorded. Until it returns, whatever was in force stays so.
func (s *Server) signIntermediate(ctx context.Context, t *trust, key crypto.Signer, now time.Time, renewed bool) (a *ca.Authority, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.SigningTimeout)
	defer cancel()
	began := time.Now()
	defer func() {
		s.metrics.signTime.Observe(time.Since(began).Seconds())
		if err != nil {
			s.metrics.signFailures.Inc()
		}
	}()
	if s.cfg.Upstream != nil {
		return s.askUpstream(ctx, t.rootCert, key, now, renewed)
	}
	return s.signByRoot(ctx, t, key, now, renewed)
}

func (s *Server) signByRoot(ctx context.Context, t *trust, key crypto.Signer, now time.Time, renewed bool) (_ *ca.Authority, err error) {
	root, rootKey, err := s.openRoot(ctx, t, now)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rootKey.Close()) }()
	draft, err := root.DraftIntermediate(now, key, s.cfg.IntermediateTTL, renewed)
	if err != nil {
		return nil, err
	}
	certs, err := s.issuer.Release(ctx, root, []*ca.Draft{draft})
	if err != nil {
		return nil, fmt.Errorf("intermediate: %w", err)
	}
	chain := append([]*x509.Certificate{certs[0].Leaf}, t.above...)
	return ca.NewAuthority(s.cfg.TrustDomain, chain, t.rootCert, key, s.profiles(), now)
}

func (s *Server) askUpstream(ctx context.Context, rootCert *x509.Certificate, key crypto.Signer, now time.Time, renewed bool) (*ca.Authority, error) {
	csr, err := ca.RequestIntermediate(s.cfg.TrustDomain, key, 0)
	if err != nil {
		return nil, err
	}
	chain, err := s.cfg.Upstream.Sign(ctx, csr, s.cfg.IntermediateTTL)
	if err != nil {
		return nil, fmt.Errorf("intermediate: %w", err)
	}
	adoption, err := ca.Adopt(s.cfg.TrustDomain, chain, rootCert, key, s.profiles(), s.leastIntermediate(), renewed, now)
	if err != nil {
		return nil, fmt.Errorf("what %s signed is refused: %w", s.cfg.Upstream, err)
	}
	a, err := s.issuer.Adopt(ctx, adoption, "")
	if err != nil {
		return nil, fmt.Errorf("intermediate: %w", err)
	}
	return a, nil
}

// leastIntermediate is how long an intermediate from elsewhere must be good
// for, so that leaves fit under it until it is renewed.
func (s *Server) leastIntermediate() time.Duration { return 2 * s.cfg.MinTTL }

// pinRoot records the root that this server is pinned to from now on, and
// stores it.
func (s *Server) pinRoot(ctx context.Context, cert *x509.Certificate, actor string, now time.Time) error {
	if err := ca.CheckRoot(s.cfg.TrustDomain, cert, now); err != nil {
		return err
	}
	_, err := s.recorder.RecordAll(ctx, []audit.Event{{
		Time: now, Kind: audit.KindAuthorityCreated, Verdict: audit.VerdictDone, SPIFFEID: s.cfg.TrustDomain.ID().String(), Actor: actor,
		NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, Detail: "root pinned: " + identity.CertificateHash(cert),
	}})
	if err != nil {
		return notRecorded("root", err)
	}
	if err := audit.WriteFile(s.rootPath(), identity.EncodeCertificates([]*x509.Certificate{cert}), 0o644); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	s.log.Info("root pinned", "trust_domain", s.cfg.TrustDomain.String(), "hash", identity.CertificateHash(cert), "not_after", cert.NotAfter)
	return nil
}

// issuerKeeper renews the intermediate when it is due. It has a loop of its
// own: a device or a server that is slow to sign delays nothing else.
type issuerKeeper struct{ server *Server }

// Renew has an intermediate signed where it is due at now, and returns when
// to look again.
func (k *issuerKeeper) Renew(ctx context.Context, now time.Time) time.Time {
	s := k.server
	t := s.trust.Load()
	if now.Before(t.intermediateDue) && !setBack(t.intermediate.Certificate(), now) {
		return t.intermediateDue
	}
	due, err := s.renewIntermediate(ctx, t, now)
	if err != nil {
		if ctx.Err() != nil {
			return now
		}
		next := s.upstream.failed(now, err)
		s.log.Error("the intermediate was not renewed; the one in force issues on", "upstream", s.upstreamName(), "error", err,
			"not_after", t.intermediate.Certificate().NotAfter, "retry_at", next)
		return next
	}
	return due
}

// renewIntermediate has an intermediate signed while everything else goes on,
// and puts it in force, unless the root has changed meanwhile: then the
// rollover has made another. It returns when the one in force is due.
func (s *Server) renewIntermediate(ctx context.Context, t *trust, now time.Time) (time.Time, error) {
	key, err := s.cfg.IssuerKeyType.Generate()
	if err != nil {
		return time.Time{}, fmt.Errorf("intermediate: %w", err)
	}
	a, err := s.signIntermediate(ctx, t, key, now, true)
	if err != nil {
		return time.Time{}, err
	}
	s.trusting.Lock()
	defer s.trusting.Unlock()
	next := *s.trust.Load()
	if next.sequence != t.sequence {
		return next.intermediateDue, nil
	}
	if err := s.storeIntermediate(t, a, key); err != nil {
		return time.Time{}, err
	}
	s.upstream.succeeded(now)
	next.setIntermediate(a, now)
	s.trust.Store(&next)
	return next.intermediateDue, nil
}

// activate puts an intermediate that was brought in force.
func (s *Server) activate(a *ca.Authority, now time.Time) {
	s.trusting.Lock()
	defer s.trusting.Unlock()
	next := *s.trust.Load()
	next.setIntermediate(a, now)
	s.trust.Store(&next)
}
