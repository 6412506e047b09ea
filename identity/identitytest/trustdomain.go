// Package identitytest makes trust domains for tests: a real root, a real
// intermediate and real SVIDs, in memory. It signs whatever a test asks for,
// bad certificates included, and must not be imported outside tests.
package identitytest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/aval-id/aval/identity"
)

// TrustDomain is a trust domain with one root and one intermediate.
type TrustDomain struct {
	Name         identity.TrustDomain
	Root         *x509.Certificate
	RootKey      crypto.Signer
	Intermediate *x509.Certificate
	Key          crypto.Signer // the intermediate's
	Bundle       identity.Bundle
}

// New makes a trust domain that is valid from an hour ago for ten years.
func New(t testing.TB, name string) *TrustDomain {
	t.Helper()
	td, err := identity.ParseTrustDomain(name)
	check(t, err)
	d := &TrustDomain{Name: td, RootKey: Key(t), Key: Key(t)}
	start := time.Now().Add(-time.Hour)
	root := authority(td, "root", start, start.Add(87600*time.Hour), d.RootKey)
	d.Root = Sign(t, root, root, d.RootKey.Public(), d.RootKey)
	inter := authority(td, "intermediate", start, start.Add(87000*time.Hour), d.Key)
	inter.MaxPathLenZero = true
	d.Intermediate = Sign(t, inter, d.Root, d.Key.Public(), d.RootKey)
	d.Bundle, err = identity.NewBundle(td, []*x509.Certificate{d.Root})
	check(t, err)
	return d
}

// Option changes a leaf's template before it is signed.
type Option func(*x509.Certificate)

// Lifetime sets the leaf's validity.
func Lifetime(notBefore, notAfter time.Time) Option {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = notBefore, notAfter }
}

// DNSNames sets the leaf's DNS names.
func DNSNames(names ...string) Option {
	return func(c *x509.Certificate) { c.DNSNames = names }
}

// ID returns the trust domain's ID with this path.
func (d *TrustDomain) ID(t testing.TB, path string) identity.ID {
	t.Helper()
	id, err := d.Name.NewID(path)
	check(t, err)
	return id
}

// Leaf signs a leaf for key with this path, valid from a minute ago for an
// hour unless an option says otherwise.
func (d *TrustDomain) Leaf(t testing.TB, path string, key crypto.PublicKey, opts ...Option) *x509.Certificate {
	t.Helper()
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: Serial(t),
		NotBefore:    now.Add(-time.Minute),
		NotAfter:     now.Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:         []*url.URL{{Scheme: "spiffe", Host: d.Name.String(), Path: path}},

		BasicConstraintsValid: true,
	}
	for _, o := range opts {
		o(template)
	}
	return Sign(t, template, d.Intermediate, key, d.Key)
}

// SVID issues an SVID with a new key under the intermediate.
func (d *TrustDomain) SVID(t testing.TB, path string, opts ...Option) identity.SVID {
	t.Helper()
	key := Key(t)
	leaf := d.Leaf(t, path, key.Public(), opts...)
	s, err := identity.NewSVID([]*x509.Certificate{leaf, d.Intermediate}, key, leaf.NotBefore.Add(time.Minute))
	check(t, err)
	return s
}

// Credentials issues an SVID and joins it with the trust domain's bundle and
// any others.
func (d *TrustDomain) Credentials(t testing.TB, path string, others ...identity.Bundle) *identity.Credentials {
	t.Helper()
	return identity.NewCredentials(d.SVID(t, path), 1, append(others, d.Bundle)...)
}

// SignCSR checks a PKCS#10 request and signs its key for path, as a server
// would.
func (d *TrustDomain) SignCSR(t testing.TB, path string, der []byte, opts ...Option) []*x509.Certificate {
	t.Helper()
	csr, err := x509.ParseCertificateRequest(der)
	check(t, err)
	check(t, csr.CheckSignature())
	return []*x509.Certificate{d.Leaf(t, path, csr.PublicKey, opts...), d.Intermediate}
}

// Key makes a P-256 key.
func Key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	return k
}

// Serial makes a serial number of 128 random bits.
func Serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	check(t, err)
	return n
}

// Sign signs any template, good or bad, and parses the result.
func Sign(t testing.TB, template, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	if template.SerialNumber == nil {
		template.SerialNumber = Serial(t)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	check(t, err)
	c, err := x509.ParseCertificate(der)
	check(t, err)
	return c
}

func authority(td identity.TrustDomain, name string, from, to time.Time, key crypto.Signer) *x509.Certificate {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		panic(err)
	}
	ski := sha256.Sum256(der)
	return &x509.Certificate{
		Subject:      pkix.Name{Organization: []string{td.String()}, CommonName: fmt.Sprintf("%s %x", name, ski[:4])},
		SubjectKeyId: ski[:20],
		NotBefore:    from,
		NotAfter:     to,
		IsCA:         true,
		KeyUsage:     x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs:         []*url.URL{td.ID().URI()},

		BasicConstraintsValid: true,
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
