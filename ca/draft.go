// This file holds Authority and Draft: one signing certificate with its key,
// and what it has checked and may sign once.

package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
)

// Authority is a signing certificate, its key and its profiles. It is
// immutable; a renewed intermediate is another Authority.
type Authority struct {
	td       identity.TrustDomain
	cert     *x509.Certificate
	key      crypto.Signer
	chain    [][]byte // what follows a leaf: cert and those above it, no root
	ski      string
	profiles Profiles
	root     bool
}

// Draft is a certificate that passed every check and may be signed once, by
// the authority that made it. The zero value is useless; only the checks make
// one.
type Draft struct {
	authority *Authority
	template  x509.Certificate
	pub       crypto.PublicKey
	spki      []byte // of pub, for leaves
	event     audit.Event
	spent     atomic.Bool
}

// NewAuthority makes an authority of chain[0], the certificates above it
// (without the root), the root it must lead to, and its key. It checks that
// they belong together, are of td, and are valid at now.
func NewAuthority(td identity.TrustDomain, chain []*x509.Certificate, root *x509.Certificate, key crypto.Signer, profiles Profiles, now time.Time) (*Authority, error) {
	if len(chain) == 0 {
		return nil, fmt.Errorf("authority of %s: no certificate", td)
	}
	a := &Authority{td: td, cert: chain[0], key: key, ski: hex.EncodeToString(chain[0].SubjectKeyId), profiles: profiles}
	if err := checkOwn(a.cert, td, key, now); err != nil {
		return nil, err
	}
	if len(a.cert.URIs) != 1 {
		return nil, fmt.Errorf("authority certificate names no trust domain")
	}
	roots, inters := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	for i, c := range chain {
		a.chain = append(a.chain, c.Raw)
		if i > 0 {
			inters.AddCert(c)
		}
	}
	opts := x509.VerifyOptions{Roots: roots, Intermediates: inters, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	if _, err := a.cert.Verify(opts); err != nil {
		return nil, fmt.Errorf("authority %s does not lead to the root: %w", a.ski, err)
	}
	return a, nil
}

// NewRoot makes the authority of a self-signed root, which signs
// intermediates and nothing else.
func NewRoot(td identity.TrustDomain, cert *x509.Certificate, key crypto.Signer, now time.Time) (*Authority, error) {
	if err := checkOwn(cert, td, key, now); err != nil {
		return nil, err
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return nil, fmt.Errorf("root is not self-signed: %w", err)
	}
	return &Authority{td: td, cert: cert, key: key, ski: hex.EncodeToString(cert.SubjectKeyId), root: true}, nil
}

func checkOwn(cert *x509.Certificate, td identity.TrustDomain, key crypto.Signer, now time.Time) error {
	if err := identity.CheckAuthority(cert, td); err != nil {
		return err
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !pub.Equal(cert.PublicKey):
		return fmt.Errorf("authority certificate %x is not of this private key", cert.SubjectKeyId)
	case now.Before(cert.NotBefore):
		return fmt.Errorf("authority certificate %x is not valid before %s", cert.SubjectKeyId, cert.NotBefore.UTC().Format(time.RFC3339))
	case !now.Before(cert.NotAfter):
		return fmt.Errorf("authority certificate %x expired at %s", cert.SubjectKeyId, cert.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// Certificate returns the signing certificate.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// SKI returns the hex subject key identifier.
func (a *Authority) SKI() string { return a.ski }

// Draft checks an entitlement and a key and prepares the leaf. The lifetime
// counts from now, is at most the profile's, and never passes the issuer's
// end. An error is a *Refusal.
func (a *Authority) Draft(now time.Time, e Entitlement, key ProvenKey) (*Draft, error) {
	switch {
	case e.id.IsZero() || a.root:
		return nil, denied(ReasonNotEntitled, "draft: nothing entitles to a leaf of this authority")
	case key.IsZero():
		return nil, denied(ReasonBadCSR, "draft for %s: no key is proven", e.id)
	case e.id.TrustDomain() != a.td || e.id.Role() != e.role:
		return nil, denied(ReasonWrongRole, "draft for %s: not a %s of %s", e.id, e.role, a.td)
	}
	profile, err := a.profiles.of(e.role)
	if err != nil {
		return nil, denied(ReasonWrongRole, "draft for %s: %w", e.id, err)
	}
	ttl, err := profile.lifetime(e.ttl)
	if err != nil {
		return nil, denied(ReasonNoLifetime, "draft for %s: %w", e.id, err)
	}
	at := now
	now = now.Truncate(time.Second) // certificates know whole seconds
	notAfter := now.Add(ttl)
	if notAfter.After(a.cert.NotAfter) {
		notAfter = a.cert.NotAfter
	}
	if left := notAfter.Sub(now); left < profile.Min || left <= 0 {
		return nil, unavailable(ReasonIssuerEnding, "draft for %s: the issuer ends in %s, below the profile's %s", e.id, left, profile.Min)
	}
	d := &Draft{authority: a, pub: key.pub, spki: key.spki, template: x509.Certificate{
		SerialNumber: newSerial(),
		NotBefore:    now.Add(-Backdate),
		NotAfter:     notAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		SubjectKeyId: key.hash[:20],
		URIs:         []*url.URL{e.id.URI()},
		DNSNames:     e.dnsNames,

		BasicConstraintsValid: true,
	}}
	d.event = audit.Event{
		Time: at, Kind: audit.KindIssuance, Verdict: audit.VerdictAllowed,
		SPIFFEID: e.id.String(), Node: e.node.String(), Registration: e.registration, Revision: e.revision,
		DNSNames: e.dnsNames, Role: e.role.String(), KeySHA256: key.Hash(),
	}
	d.complete()
	return d, nil
}

// complete fills in the parts of the event that every certificate has.
func (d *Draft) complete() {
	d.event.Serial = hex.EncodeToString(d.template.SerialNumber.Bytes())
	d.event.NotBefore, d.event.NotAfter = d.template.NotBefore, d.template.NotAfter
	d.event.Issuer = d.authority.ski
}

// DraftRoot prepares a self-signed root of td for a key of the caller's.
func DraftRoot(td identity.TrustDomain, key crypto.Signer, now time.Time, ttl time.Duration) (*Draft, error) {
	template, hash, err := authorityTemplate(td, "Aval root", key.Public(), now, now.Add(ttl))
	if err != nil {
		return nil, err
	}
	a := &Authority{td: td, cert: template, key: key, ski: hex.EncodeToString(template.SubjectKeyId), root: true}
	return draftAuthority(a, template, key.Public(), hash, audit.KindAuthorityCreated, "root", now), nil
}

// DraftIntermediate prepares an intermediate under the root a. Renewed says
// that it takes another one's place.
func (a *Authority) DraftIntermediate(now time.Time, key crypto.Signer, ttl time.Duration, renewed bool) (*Draft, error) {
	if !a.root {
		return nil, denied(ReasonNotEntitled, "draft of an intermediate: the authority %s is not a root", a.ski)
	}
	end := now.Add(ttl)
	if end.After(a.cert.NotAfter) {
		end = a.cert.NotAfter
	}
	if !now.Before(end) {
		return nil, unavailable(ReasonIssuerEnding, "draft of an intermediate: the root expired at %s", a.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	template, hash, err := authorityTemplate(a.td, "Aval intermediate", key.Public(), now, end)
	if err != nil {
		return nil, err
	}
	// One more authority fits below, so that a nested server can be signed,
	// where the root leaves room for both.
	template.MaxPathLen = 1
	if a.cert.MaxPathLen == 1 {
		template.MaxPathLen, template.MaxPathLenZero = 0, true
	}
	kind := audit.KindAuthorityCreated
	if renewed {
		kind = audit.KindAuthorityRenewed
	}
	return draftAuthority(a, template, key.Public(), hash, kind, "intermediate", now), nil
}

func draftAuthority(a *Authority, template *x509.Certificate, pub crypto.PublicKey, hash [32]byte, kind audit.Kind, what string, now time.Time) *Draft {
	d := &Draft{authority: a, template: *template, pub: pub, event: audit.Event{
		Time: now, Kind: kind, Verdict: audit.VerdictDone, SPIFFEID: a.td.ID().String(),
		KeySHA256: hex.EncodeToString(hash[:]),
		Detail:    what + " with the subject key identifier " + hex.EncodeToString(template.SubjectKeyId),
	}}
	d.complete()
	return d
}

// authorityTemplate makes a CA certificate whose subject, key identifier and
// serial number are its own, so that no two authorities are confused while a
// chain is built (RFC 5280 §4.2.1.1).
func authorityTemplate(td identity.TrustDomain, name string, pub crypto.PublicKey, now, end time.Time) (*x509.Certificate, [32]byte, error) {
	if _, err := identity.KeyTypeOf(pub); err != nil {
		return nil, [32]byte{}, fmt.Errorf("public key of %s: %w", name, err)
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, [32]byte{}, fmt.Errorf("public key of %s: %w", name, err)
	}
	hash := sha256.Sum256(spki)
	now = now.Truncate(time.Second)
	return &x509.Certificate{
		SerialNumber: newSerial(),
		Subject:      pkix.Name{CommonName: name, SerialNumber: hex.EncodeToString(hash[:20])},
		NotBefore:    now.Add(-Backdate),
		NotAfter:     end.Truncate(time.Second),
		KeyUsage:     x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:         true,
		SubjectKeyId: hash[:20],
		URIs:         []*url.URL{td.ID().URI()},

		BasicConstraintsValid: true,
	}, hash, nil
}

// newSerial returns 128 random bits, never zero (RFC 5280 §4.1.2.2).
func newSerial() *big.Int {
	var b [16]byte
	for {
		rand.Read(b[:]) // never fails
		if n := new(big.Int).SetBytes(b[:]); n.Sign() > 0 {
			return n
		}
	}
}
