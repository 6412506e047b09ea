// This file holds SVID, Bundle and Credentials: what a workload presents,
// what it trusts, and the two of one moment.

package identity

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"time"
)

// SVID is an X.509-SVID with its private key (X509-SVID §2). The zero value
// is invalid. It is immutable: callers must not change what it refers to.
type SVID struct {
	ID       ID
	Chain    []*x509.Certificate // leaf first, then intermediates, no root
	Key      crypto.Signer
	IssuedAt time.Time // when it was signed; NotBefore lies earlier
	Hint     string    // Workload API hint, may be empty

	tls *tls.Certificate
}

// NewSVID checks that the leaf is an X.509-SVID (X509-SVID §4 and §5) and that
// key is its private key, and returns the two as one value.
func NewSVID(chain []*x509.Certificate, key crypto.Signer, issuedAt time.Time) (SVID, error) {
	if len(chain) == 0 {
		return SVID{}, fmt.Errorf("SVID has no certificate")
	}
	id, err := LeafID(chain[0])
	if err != nil {
		return SVID{}, err
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(chain[0].PublicKey) {
		return SVID{}, fmt.Errorf("SVID for %s: private key does not belong to the certificate", id)
	}
	cert := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return SVID{ID: id, Chain: slices.Clone(chain), Key: key, IssuedAt: issuedAt, tls: cert}, nil
}

// IsZero reports whether s is the invalid zero value.
func (s SVID) IsZero() bool { return s.ID.IsZero() }

// Leaf returns the leaf certificate.
func (s SVID) Leaf() *x509.Certificate { return s.Chain[0] }

// Serial returns the leaf's serial number as records show it.
func (s SVID) Serial() string { return Serial(s.Chain[0]) }

// NotAfter returns when the first certificate of the chain expires.
func (s SVID) NotAfter() time.Time {
	end := s.Chain[0].NotAfter
	for _, c := range s.Chain[1:] {
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return end
}

// TLSCertificate returns the chain and key for a TLS handshake.
func (s SVID) TLSCertificate() *tls.Certificate { return s.tls }

// WithHint returns the same SVID with another hint.
func (s SVID) WithHint(hint string) SVID {
	s.Hint = hint
	return s
}

// ChainDER returns the chain's certificates as concatenated ASN.1 DER, leaf
// first (SPIFFE_Workload_API.md §5.2.1).
func (s SVID) ChainDER() []byte { return concatDER(s.Chain) }

// Serial prints a certificate's serial number: lower-case hex, no separators.
func Serial(c *x509.Certificate) string {
	if c == nil || c.SerialNumber == nil {
		return ""
	}
	return hex.EncodeToString(c.SerialNumber.Bytes())
}

// CertificateHash returns the SHA-256 of a certificate's DER in the form
// sha256:HEX, which pins it in join commands and records.
func CertificateHash(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// KeyHash returns the SHA-256 of a public key's DER SubjectPublicKeyInfo in
// the form sha256:HEX.
func KeyHash(pub crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", fmt.Errorf("hash of public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}

// Bundle is the set of roots of one trust domain. The zero value is invalid.
// It is immutable.
type Bundle struct {
	td    TrustDomain
	roots []*x509.Certificate
	pool  *x509.CertPool
	hash  [32]byte
}

// NewBundle makes a bundle of these roots, in a fixed order and without
// repeats. A bundle without roots is valid and trusts nobody (B-4).
func NewBundle(td TrustDomain, roots []*x509.Certificate) (Bundle, error) {
	if td.IsZero() {
		return Bundle{}, fmt.Errorf("bundle: trust domain is empty")
	}
	sorted := slices.Clone(roots)
	slices.SortFunc(sorted, func(a, b *x509.Certificate) int { return bytes.Compare(a.Raw, b.Raw) })
	sorted = slices.CompactFunc(sorted, func(a, b *x509.Certificate) bool { return bytes.Equal(a.Raw, b.Raw) })
	pool := x509.NewCertPool()
	h := sha256.New()
	for _, c := range sorted {
		if err := CheckAuthority(c, td); err != nil {
			return Bundle{}, fmt.Errorf("bundle of %s: %w", td, err)
		}
		pool.AddCert(c)
		h.Write(c.Raw)
	}
	b := Bundle{td: td, roots: sorted, pool: pool}
	h.Sum(b.hash[:0])
	return b, nil
}

// ParseBundle parses roots given as DER, one certificate each.
func ParseBundle(td TrustDomain, ders [][]byte) (Bundle, error) {
	roots := make([]*x509.Certificate, 0, len(ders))
	for i, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return Bundle{}, fmt.Errorf("bundle of %s: root %d: %w", td, i, err)
		}
		roots = append(roots, c)
	}
	return NewBundle(td, roots)
}

// TrustDomain returns whose bundle it is.
func (b Bundle) TrustDomain() TrustDomain { return b.td }

// IsZero reports whether b is the invalid zero value.
func (b Bundle) IsZero() bool { return b.td.IsZero() }

// Roots returns the roots in their fixed order. The caller must not change
// the slice.
func (b Bundle) Roots() []*x509.Certificate { return b.roots }

// Pool returns the roots as a pool. The caller must not add to it.
func (b Bundle) Pool() *x509.CertPool { return b.pool }

// Hash identifies the bundle's content.
func (b Bundle) Hash() [32]byte { return b.hash }

// DER returns the roots as concatenated ASN.1 DER.
func (b Bundle) DER() []byte { return concatDER(b.roots) }

// DERs returns each root's DER.
func (b Bundle) DERs() [][]byte {
	out := make([][]byte, len(b.roots))
	for i, c := range b.roots {
		out[i] = c.Raw
	}
	return out
}

// Equal reports whether both hold the same roots for the same trust domain.
func (b Bundle) Equal(o Bundle) bool { return b.td == o.td && b.hash == o.hash }

// Credentials are an SVID and the bundles of one moment. They are swapped
// whole, never in parts, and are immutable. A server's or proxy's credentials
// may lack an SVID for a while; see HasSVID.
type Credentials struct {
	SVID       SVID
	Generation uint64 // grows with each swap at its owner

	bundles map[TrustDomain]Bundle
	denials *Denials
}

// NewCredentials joins an SVID (or the zero SVID) and bundles.
func NewCredentials(svid SVID, generation uint64, bundles ...Bundle) *Credentials {
	m := make(map[TrustDomain]Bundle, len(bundles))
	for _, b := range bundles {
		m[b.td] = b
	}
	return &Credentials{SVID: svid, Generation: generation, bundles: m}
}

// WithDenials returns the credentials with what is revoked at the same moment.
func (c *Credentials) WithDenials(d *Denials) *Credentials {
	if c == nil || c.denials.Hash() == d.Hash() {
		return c
	}
	next := *c
	next.denials = d
	return &next
}

// Denials returns what is revoked; nil denies nothing.
func (c *Credentials) Denials() *Denials {
	if c == nil {
		return nil
	}
	return c.denials
}

// HasSVID reports whether there is an SVID to present.
func (c *Credentials) HasSVID() bool { return c != nil && !c.SVID.IsZero() }

// Bundle returns the bundle of a trust domain. Bundles of different domains
// are never merged (F-5).
func (c *Credentials) Bundle(td TrustDomain) (Bundle, bool) {
	if c == nil {
		return Bundle{}, false
	}
	b, ok := c.bundles[td]
	return b, ok
}

// Bundles returns a copy of the bundles by trust domain.
func (c *Credentials) Bundles() map[TrustDomain]Bundle { return maps.Clone(c.bundles) }

func concatDER(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, c.Raw...)
	}
	return out
}

// ParseChain parses certificates given as one DER each, leaf first.
func ParseChain(ders [][]byte) ([]*x509.Certificate, error) {
	out := make([]*x509.Certificate, 0, len(ders))
	for i, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of chain: %w", i, err)
		}
		out = append(out, c)
	}
	return out, nil
}
