// This file holds the tests of the X509-SVID clauses for one certificate, and
// of SVID, Bundle and PEM forms.

package identity_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/identitytest"
)

func uri(t *testing.T, s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestLeafClauses(t *testing.T) {
	d := identitytest.New(t, "example.org")
	cases := []struct {
		name string
		edit identitytest.Option
		want string // part of the error, empty for none
	}{
		{"plain", func(*x509.Certificate) {}, ""},
		{"no EKU at all", func(c *x509.Certificate) { c.ExtKeyUsage = nil }, ""},
		{"X-1 two URIs", func(c *x509.Certificate) { c.URIs = append(c.URIs, uri(t, "spiffe://example.org/b")) }, "2 URI names"},
		{"X-1 no URI", func(c *x509.Certificate) { c.URIs = nil }, "0 URI names"},
		{"X-2 root path", func(c *x509.Certificate) { c.URIs[0] = uri(t, "spiffe://example.org") }, "no path"},
		{"X-7 wrong scheme", func(c *x509.Certificate) { c.URIs[0] = uri(t, "https://example.org/a") }, "spiffe://"},
		{"X-4 is a CA", func(c *x509.Certificate) { c.IsCA = true; c.KeyUsage |= x509.KeyUsageCertSign }, "CA"},
		{"X-4 no digitalSignature", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }, "digitalSignature"},
		{"X-4 cRLSign", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }, "cRLSign"},
		{"X-4 no key usage", func(c *x509.Certificate) { c.KeyUsage = 0 }, "digitalSignature"},
		{"X-5 only clientAuth", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, "serverAuth"},
		{"X-2 empty subject, SAN not critical", func(c *x509.Certificate) {
			// An extra extension takes the place of the critical one.
			c.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 17}, Critical: false,
				Value: append([]byte{0x30, 0x16, 0x86, 0x14}, "spiffe://example.org"...)}}
		}, "no path"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			leaf := d.Leaf(t, "/a", identitytest.Key(t).Public(), c.edit)
			_, err := identity.LeafID(leaf)
			switch {
			case c.want == "" && err != nil:
				t.Fatal(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Fatalf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func TestAuthorityClauses(t *testing.T) {
	d := identitytest.New(t, "example.org")
	other, _ := identity.ParseTrustDomain("other.org")
	if err := identity.CheckAuthority(d.Root, d.Name); err != nil {
		t.Fatal(err)
	}
	if err := identity.CheckAuthority(d.Root, other); err == nil {
		t.Error("an authority of another trust domain was accepted")
	}
	if err := identity.CheckAuthority(d.SVID(t, "/a").Leaf(), d.Name); err == nil {
		t.Error("a leaf was accepted as an authority")
	}
	if _, err := identity.NewBundle(other, []*x509.Certificate{d.Root}); err == nil {
		t.Error("a bundle took a root of another trust domain")
	}
}

func TestSVIDNeedsItsOwnKey(t *testing.T) {
	d := identitytest.New(t, "example.org")
	s := d.SVID(t, "/a")
	if _, err := identity.NewSVID(s.Chain, identitytest.Key(t), time.Now()); err == nil {
		t.Fatal("an SVID was made with a key of another")
	}
	if s.ID.String() != "spiffe://example.org/a" || s.Serial() == "" || !s.NotAfter().Equal(s.Leaf().NotAfter) {
		t.Fatalf("unexpected SVID %v %v %v", s.ID, s.Serial(), s.NotAfter())
	}
}

func TestPEMRoundTrip(t *testing.T) {
	d := identitytest.New(t, "example.org")
	s := d.SVID(t, "/a")
	chain, err := identity.DecodeCertificates(identity.EncodeCertificates(s.Chain))
	if err != nil || len(chain) != 2 || !chain[0].Equal(s.Leaf()) {
		t.Fatalf("chain came back as %d certificates, %v", len(chain), err)
	}
	text, err := identity.EncodeKey(s.Key)
	if err != nil {
		t.Fatal(err)
	}
	key, err := identity.DecodeKey(text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := identity.NewSVID(chain, key, time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.DecodeCertificates(text); err == nil {
		t.Error("a private key was read as a certificate")
	}
}

func TestBundleIsASet(t *testing.T) {
	a, b := identitytest.New(t, "example.org"), identitytest.New(t, "example.org")
	x, err := identity.NewBundle(a.Name, []*x509.Certificate{a.Root, b.Root, a.Root})
	if err != nil {
		t.Fatal(err)
	}
	y, err := identity.ParseBundle(a.Name, [][]byte{b.Root.Raw, a.Root.Raw})
	if err != nil {
		t.Fatal(err)
	}
	if !x.Equal(y) || len(x.Roots()) != 2 || x.Equal(a.Bundle) {
		t.Fatal("order or repeats made a difference")
	}
}

func FuzzDecodeCertificates(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		certs, err := identity.DecodeCertificates(text)
		if err == nil && len(certs) == 0 {
			t.Fatal("no certificate and no error")
		}
		for _, c := range certs {
			identity.LeafID(c)
			identity.Serial(c)
		}
		identity.DecodeKey(text)
	})
}

func FuzzLeafID(f *testing.F) {
	d := identitytest.New(f, "example.org")
	f.Add(d.SVID(f, "/a").Leaf().Raw)
	f.Add(d.Root.Raw)
	f.Fuzz(func(t *testing.T, der []byte) {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		if id, err := identity.LeafID(c); err == nil && id.Path() == "" {
			t.Fatal("a leaf without a path was accepted")
		}
		identity.CheckAuthority(c, d.Name)
	})
}
