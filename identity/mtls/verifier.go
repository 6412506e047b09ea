// This file holds Verifier: the check of a presented chain, its cache, and
// the typed Rejection with its reason.

package mtls

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/aval-id/aval/identity"
)

// Reasons of a Rejection. They are values of the closed list that records
// use.
const (
	ReasonNoCertificate    = "no_client_certificate"
	ReasonUnknownAuthority = "unknown_authority"
	ReasonExpired          = "expired"
	ReasonNotYetValid      = "not_yet_valid"
	ReasonWrongTrustDomain = "wrong_trust_domain"
	ReasonIDMismatch       = "id_mismatch"
	ReasonNotAnSVID        = "not_an_svid"
	ReasonPolicyDenied     = "policy_denied"
	ReasonRevoked          = "revoked"
)

// Rejection says why a peer was refused. ID and Serial are what its leaf
// claims, where they could be read; its possession of the key is not proven.
type Rejection struct {
	Reason string
	ID     identity.ID
	Serial string
	Err    error
}

// Error describes the refusal from act to cause.
func (r *Rejection) Error() string { return fmt.Sprintf("peer refused (%s): %v", r.Reason, r.Err) }

// Unwrap returns the cause.
func (r *Rejection) Unwrap() error { return r.Err }

// Purpose is what a peer's certificate is used for.
type Purpose uint8

// The two purposes.
const (
	PurposeClient Purpose = iota + 1 // the peer is a client
	PurposeServer                    // the peer is a server
)

// maxChain bounds the certificates a peer may present.
const maxChain = 8

// DefaultCacheSize is how many verified chains a Verifier keeps unless told.
const DefaultCacheSize = 4096

// Verifier verifies chains and remembers the good ones by the whole chain,
// the bundle's content and the purpose, until the earliest end of the chain.
// For a peer that is new it remembers the authorities above its leaf in the
// same way. Its zero value caches nothing. It is safe for concurrent use.
type Verifier struct {
	size int

	mu      sync.Mutex
	cache   map[[32]byte]cached // guarded by mu
	issuers map[[32]byte]issuer // guarded by mu
}

type cached struct {
	peer  Peer
	start time.Time // latest NotBefore of the verified chain
}

// NewVerifier returns a Verifier that remembers up to size chains; zero means
// DefaultCacheSize.
func NewVerifier(size int) *Verifier {
	if size == 0 {
		size = DefaultCacheSize
	}
	return &Verifier{size: size, cache: make(map[[32]byte]cached), issuers: make(map[[32]byte]issuer)}
}

// Verify checks that chain (leaf first) is an X.509-SVID that a root of its
// own trust domain's bundle vouches for at the time now (X509-SVID §5). The
// error is a *Rejection.
func (v *Verifier) Verify(chain []*x509.Certificate, creds *identity.Credentials, purpose Purpose, now time.Time) (Peer, error) {
	if len(chain) == 0 {
		return Peer{}, &Rejection{Reason: ReasonNoCertificate, Err: errors.New("no certificate was presented")}
	}
	leaf := chain[0]
	if len(chain) > maxChain {
		return Peer{}, &Rejection{Reason: ReasonNotAnSVID, Serial: identity.Serial(leaf),
			Err: fmt.Errorf("chain of %d certificates is longer than %d", len(chain), maxChain)}
	}
	// The ID is read before the cache so that a refusal can name it.
	id, err := identity.LeafID(leaf)
	if err != nil {
		return Peer{}, &Rejection{Reason: ReasonNotAnSVID, Serial: identity.Serial(leaf), Err: err}
	}
	reject := func(reason string, err error) (Peer, error) {
		return Peer{}, &Rejection{Reason: reason, ID: id, Serial: identity.Serial(leaf), Err: err}
	}
	bundle, ok := creds.Bundle(id.TrustDomain())
	if !ok {
		return reject(ReasonWrongTrustDomain, fmt.Errorf("no bundle for the trust domain of %s", id))
	}
	key := cacheKey(chain, bundle, purpose)
	if hit, ok := v.lookup(key); ok && !now.Before(hit.start) && now.Before(hit.peer.NotAfter) {
		return v.spared(hit.peer, creds)
	}
	verified, err := v.verify(chain, bundle, purpose, now)
	if err != nil {
		return reject(reasonOf(leaf, err, now), fmt.Errorf("chain of %s: %w", id, err))
	}
	entry := cached{start: verified.start, peer: Peer{ID: id, Serial: identity.Serial(leaf), NotBefore: leaf.NotBefore,
		NotAfter: verified.end, Issuers: identity.Signers(chain)}}
	v.remember(key, entry)
	return v.spared(entry.peer, creds)
}

// spared refuses a verified peer whose certificate is revoked. It is asked
// each time, since what is revoked changes while the caches stand.
func (v *Verifier) spared(peer Peer, creds *identity.Credentials) (Peer, error) {
	if why := peer.Denied(creds.Denials()); why != "" {
		return Peer{}, &Rejection{Reason: ReasonRevoked, ID: peer.ID, Serial: peer.Serial, Err: errors.New(why)}
	}
	return peer, nil
}

// span is the time in which every certificate of a verified chain is valid.
type span struct{ start, end time.Time }

func spanOf(chain []*x509.Certificate) span {
	s := span{chain[0].NotBefore, chain[0].NotAfter}
	for _, c := range chain[1:] {
		s = s.within(span{c.NotBefore, c.NotAfter})
	}
	return s
}

// within returns the time that both have.
func (s span) within(o span) span {
	if o.start.After(s.start) {
		s.start = o.start
	}
	if o.end.Before(s.end) {
		s.end = o.end
	}
	return s
}

func (s span) holds(now time.Time) bool { return !now.Before(s.start) && now.Before(s.end) }

// verify checks a chain, by its remembered issuer where there is one.
// Whatever that doesn't accept is verified from the roots.
func (v *Verifier) verify(chain []*x509.Certificate, bundle identity.Bundle, purpose Purpose, now time.Time) (span, error) {
	above := v.issuerKey(chain, bundle, purpose)
	if i, ok := v.issuer(above); ok && i.span.holds(now) && !limits(chain[0]) {
		if _, err := chain[0].Verify(i.options(purpose, now)); err == nil {
			return spanOf(chain[:1]).within(i.span), nil
		}
	}
	verified, err := verifyChain(chain, bundle, purpose, now)
	if err != nil {
		return span{}, err
	}
	v.rememberIssuer(above, verified)
	return spanOf(verified), nil
}

func verifyChain(chain []*x509.Certificate, bundle identity.Bundle, purpose Purpose, now time.Time) ([]*x509.Certificate, error) {
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	chains, err := chain[0].Verify(options(bundle.Pool(), intermediates, purpose, now))
	if err != nil {
		return nil, err
	}
	// Every authority of the chain must be of the leaf's trust domain, which
	// its URI name says where it has one (X509-SVID §4.2).
	for _, c := range chains[0][1:] {
		if err := identity.CheckAuthority(c, bundle.TrustDomain()); err != nil {
			return nil, err
		}
	}
	return chains[0], nil
}

func options(roots, intermediates *x509.CertPool, purpose Purpose, now time.Time) x509.VerifyOptions {
	usage := x509.ExtKeyUsageClientAuth
	if purpose == PurposeServer {
		usage = x509.ExtKeyUsageServerAuth
	}
	return x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}}
}

// reasonOf maps a verification error to a reason. Go reports an expired
// intermediate as an unknown authority in some chains, so the leaf's own
// times are looked at first.
func reasonOf(leaf *x509.Certificate, err error, now time.Time) string {
	switch {
	case now.After(leaf.NotAfter):
		return ReasonExpired
	case now.Before(leaf.NotBefore):
		return ReasonNotYetValid
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		if invalid.Reason == x509.Expired {
			if invalid.Cert != nil && now.Before(invalid.Cert.NotBefore) {
				return ReasonNotYetValid
			}
			return ReasonExpired
		}
		return ReasonNotAnSVID
	}
	return ReasonUnknownAuthority
}

func (v *Verifier) lookup(key [32]byte) (cached, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	c, ok := v.cache[key]
	return c, ok
}

func (v *Verifier) remember(key [32]byte, c cached) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.size <= 0 {
		return
	}
	makeRoom(v.cache, v.size)
	v.cache[key] = c
}

// makeRoom takes out of a full cache. Any entry may go: a lost one only costs
// a verification.
func makeRoom[V any](cache map[[32]byte]V, size int) {
	if len(cache) < size {
		return
	}
	for k := range cache {
		delete(cache, k)
		if len(cache) < size*3/4 {
			break
		}
	}
}

// cacheKey binds the whole presented chain, the bundle's content and the
// purpose. Lengths are hashed so that no two chains share a key.
func cacheKey(chain []*x509.Certificate, bundle identity.Bundle, purpose Purpose) [32]byte {
	h := sha256.New()
	bh := bundle.Hash()
	h.Write(bh[:])
	h.Write([]byte{byte(purpose)})
	h.Write([]byte(bundle.TrustDomain().String()))
	var n [4]byte
	for _, c := range chain {
		binary.BigEndian.PutUint32(n[:], uint32(len(c.Raw)))
		h.Write(n[:])
		h.Write(c.Raw)
	}
	var key [32]byte
	h.Sum(key[:0])
	return key
}
