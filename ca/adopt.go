// This file holds Adoption: an intermediate that someone else signed and that
// passed every check, and the request that they sign.

package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
)

// RequestIntermediate makes the PKCS#10 request for an intermediate of td with
// the caller's key. It asks for what the certificate must have: a subject of
// its own, the trust domain's URI, CA with room for pathLen authorities below.
func RequestIntermediate(td identity.TrustDomain, key crypto.Signer, pathLen int) ([]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("request an intermediate: %w", err)
	}
	hash := sha256.Sum256(spki)
	basic, err := asn1.Marshal(struct {
		IsCA       bool
		MaxPathLen int
	}{true, pathLen})
	if err != nil {
		return nil, fmt.Errorf("request an intermediate: %w", err)
	}
	// keyCertSign and cRLSign are bits 5 and 6 (RFC 5280 §4.2.1.3).
	usage, err := asn1.Marshal(asn1.BitString{Bytes: []byte{0x06}, BitLength: 7})
	if err != nil {
		return nil, fmt.Errorf("request an intermediate: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "Aval intermediate", SerialNumber: hex.EncodeToString(hash[:20])},
		URIs:    []*url.URL{td.ID().URI()},
		ExtraExtensions: []pkix.Extension{
			{Id: oidBasic, Critical: true, Value: basic},
			{Id: oidKeyUsage, Critical: true, Value: usage},
		},
	}, key)
	if err != nil {
		return nil, fmt.Errorf("request an intermediate: %w", err)
	}
	return der, nil
}

// Adoption is an intermediate signed elsewhere that passed every check. It is
// in force for nobody until an Issuer has recorded it; the zero value is
// useless.
type Adoption struct {
	authority *Authority
	event     audit.Event
}

// CheckRoot checks a root that td may be pinned to: self-signed, a CA with
// room for an intermediate, of no other trust domain, of an accepted kind of
// key, and valid at now.
func CheckRoot(td identity.TrustDomain, cert *x509.Certificate, now time.Time) error {
	if err := checkCA(td, cert, 1, now); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return fmt.Errorf("root: %s is not self-signed: %w", name(cert), err)
	}
	return nil
}

// Adopt checks an intermediate with those above it (its root may be among
// them), the pinned root they must lead to, and the intermediate's key. It
// must be good for at least atLeast from now. Renewed says that it takes
// another one's place.
func Adopt(td identity.TrustDomain, chain []*x509.Certificate, root *x509.Certificate, key crypto.Signer, profiles Profiles, atLeast time.Duration, renewed bool, now time.Time) (*Adoption, error) {
	if err := CheckRoot(td, root, now); err != nil {
		return nil, err
	}
	chain = slices.DeleteFunc(slices.Clone(chain), root.Equal)
	if len(chain) == 0 {
		return nil, fmt.Errorf("intermediate: no certificate below the root was given")
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(chain[0].PublicKey) {
		return nil, fmt.Errorf("intermediate: %s is not of the key that was requested: sign the newest request, and put its certificate first", name(chain[0]))
	}
	for below, c := range chain {
		if err := checkCA(td, c, below, now); err != nil {
			return nil, fmt.Errorf("intermediate: %w", err)
		}
	}
	if err := checkBelow(td, chain, root, atLeast, now); err != nil {
		return nil, fmt.Errorf("intermediate: %w", err)
	}
	a, err := NewAuthority(td, chain, root, key, profiles, now)
	if err != nil {
		return nil, fmt.Errorf("intermediate: it was issued by %q, and the pinned root is %q: %w", chain[len(chain)-1].Issuer, root.Subject, err)
	}
	return &Adoption{authority: a, event: adopted(td, chain[0], renewed, now)}, nil
}

func adopted(td identity.TrustDomain, c *x509.Certificate, renewed bool, now time.Time) audit.Event {
	key, cert := sha256.Sum256(c.RawSubjectPublicKeyInfo), sha256.Sum256(c.Raw)
	kind := audit.KindAuthorityCreated
	if renewed {
		kind = audit.KindAuthorityRenewed
	}
	return audit.Event{
		Time: now, Kind: kind, Verdict: audit.VerdictDone, SPIFFEID: td.ID().String(),
		Serial: hex.EncodeToString(c.SerialNumber.Bytes()), Issuer: hex.EncodeToString(c.AuthorityKeyId),
		NotBefore: c.NotBefore, NotAfter: c.NotAfter,
		KeySHA256: hex.EncodeToString(key[:]), LeafSHA256: hex.EncodeToString(cert[:]),
		Detail: "intermediate with the subject key identifier " + hex.EncodeToString(c.SubjectKeyId) + ", signed elsewhere",
	}
}

// Adopt records an adoption, with an actor where a person brought it, and
// returns the authority that it makes. The caller stores it; nothing is issued
// before this returns.
func (i *Issuer) Adopt(ctx context.Context, a *Adoption, actor string) (*Authority, error) {
	if a == nil || a.authority == nil {
		return nil, ErrSpent
	}
	a.event.Actor = actor
	if _, err := i.recorder.RecordAll(ctx, []audit.Event{a.event}); err != nil {
		return nil, notRecorded(err)
	}
	return a.authority, nil
}

// Chain returns the authority's certificate and those above it, without the
// root.
func (a *Authority) Chain() []*x509.Certificate {
	out := []*x509.Certificate{a.cert}
	for _, der := range a.chain[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			continue // it was parsed when the authority was made
		}
		out = append(out, c)
	}
	return out
}

// checkCA checks one certificate of a chain that has below authorities
// beneath it.
func checkCA(td identity.TrustDomain, c *x509.Certificate, below int, now time.Time) error {
	switch {
	case !c.IsCA || !c.BasicConstraintsValid:
		return fmt.Errorf("%s is a leaf, not a CA: sign it with basicConstraints CA:TRUE", name(c))
	case c.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("%s may not sign certificates: sign it with keyUsage keyCertSign", name(c))
	case emptyName(c):
		return fmt.Errorf("certificate %s has no subject: an authority needs one of its own", identity.CertificateHash(c))
	case len(c.SubjectKeyId) == 0:
		return fmt.Errorf("%s has no subject key identifier", name(c))
	case (c.MaxPathLen > 0 || c.MaxPathLenZero) && c.MaxPathLen < below:
		return fmt.Errorf("%s has the path length %d, and %d authorities must fit below it", name(c), c.MaxPathLen, below)
	case now.Before(c.NotBefore):
		return fmt.Errorf("%s is not valid before %s", name(c), c.NotBefore.UTC().Format(time.RFC3339))
	case !now.Before(c.NotAfter):
		return fmt.Errorf("%s expired at %s", name(c), c.NotAfter.UTC().Format(time.RFC3339))
	}
	if _, err := identity.KeyTypeOf(c.PublicKey); err != nil {
		return fmt.Errorf("%s: %w", name(c), err)
	}
	if err := identity.CheckAuthority(c, td); err != nil {
		return fmt.Errorf("%s: %w", name(c), err)
	}
	return nil
}

// checkBelow checks what only the whole chain shows, and what would make the
// leaves of chain[0] fail.
func checkBelow(td identity.TrustDomain, chain []*x509.Certificate, root *x509.Certificate, atLeast time.Duration, now time.Time) error {
	own := chain[0]
	if (root.MaxPathLen > 0 || root.MaxPathLenZero) && root.MaxPathLen < len(chain) {
		return fmt.Errorf("the root %s has the path length %d, and %d authorities must fit below it", name(root), root.MaxPathLen, len(chain))
	}
	all := append(slices.Clone(chain), root)
	for i, c := range all {
		for _, other := range all[i+1:] {
			if bytes.Equal(c.RawSubject, other.RawSubject) || bytes.Equal(c.SubjectKeyId, other.SubjectKeyId) {
				return fmt.Errorf("%s shares its subject or key identifier with another authority of its chain: verifiers would confuse them", name(c))
			}
		}
	}
	if len(own.URIs) != 1 {
		return fmt.Errorf("%s does not name the trust domain: the request has the URI %s, and its signer dropped it (openssl needs -copy_extensions copyall)", name(own), td.ID())
	}
	if left := own.NotAfter.Sub(now); left < atLeast {
		return fmt.Errorf("%s ends in %s: at least %s are needed", name(own), left.Round(time.Second), atLeast)
	}
	for _, c := range chain {
		if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) &&
			(!slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth)) {
			return fmt.Errorf("%s is limited to extended key usages without serverAuth or clientAuth: its leaves would not verify", name(c))
		}
		host := td.String()
		if len(c.PermittedURIDomains) > 0 && !slices.ContainsFunc(c.PermittedURIDomains, func(d string) bool { return within(host, d) }) ||
			slices.ContainsFunc(c.ExcludedURIDomains, func(d string) bool { return within(host, d) }) {
			return fmt.Errorf("%s has name constraints that exclude the trust domain %s", name(c), td)
		}
	}
	return nil
}

// within says whether a host meets a URI constraint (RFC 5280 §4.2.1.10).
func within(host, constraint string) bool {
	if strings.HasPrefix(constraint, ".") {
		return strings.HasSuffix(host, constraint)
	}
	return host == constraint
}

func emptyName(c *x509.Certificate) bool { return len(c.RawSubject) <= 2 }

// name is how messages call a certificate.
func name(c *x509.Certificate) string { return fmt.Sprintf("certificate %q", c.Subject.String()) }
