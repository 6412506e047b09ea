// This file holds the tests of intermediates that were signed elsewhere.

package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/audit"
)

// elsewhere is an authority outside of the house that signs requests.
type elsewhere struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newElsewhere(t testing.TB, now time.Time, change func(*x509.Certificate)) elsewhere {
	t.Helper()
	e := elsewhere{key: newKey(t)}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Root elsewhere"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(1000 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, MaxPathLen: -1}
	if change != nil {
		change(template)
	}
	e.cert = e.certify(t, template, template, e.key.Public())
	return e
}

func (e elsewhere) certify(t testing.TB, template, parent *x509.Certificate, pub crypto.PublicKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, e.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// sign signs a request as it asks, but for what change does to it.
func (e elsewhere) sign(t testing.TB, now time.Time, csr []byte, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: req.Subject, URIs: req.URIs,
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(100 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign}
	if change != nil {
		change(template)
	}
	return e.certify(t, template, e.cert, req.PublicKey)
}

func request(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := RequestIntermediate(domain, key, 0)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestRequestAsksForWhatAnIntermediateNeeds(t *testing.T) {
	req, err := x509.ParseCertificateRequest(request(t, newKey(t)))
	if err != nil || req.CheckSignature() != nil {
		t.Fatal(err)
	}
	if len(req.URIs) != 1 || req.URIs[0].String() != "spiffe://example.org" || req.Subject.SerialNumber == "" || len(req.Extensions) != 3 {
		t.Fatalf("%+v", req)
	}
}

func TestIntermediateFromElsewhereIssuesOnceItIsRecorded(t *testing.T) {
	now := time.Now()
	e, key, memory := newElsewhere(t, now, nil), newKey(t), &memory{}
	cert := e.sign(t, now, request(t, key), nil)
	adopt := func() *Adoption {
		a, err := Adopt(domain, []*x509.Certificate{cert, e.cert}, e.cert, key, profiles, time.Hour, true, now)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	issuer := NewIssuer(memory)
	memory.fail = errNoSpace
	if a, err := issuer.Adopt(t.Context(), adopt(), "uid 0"); a != nil || !errors.Is(err, errNoSpace) {
		t.Fatalf("without a record: %v %v", a, err)
	}
	memory.fail = nil
	if a, err := issuer.Adopt(t.Context(), &Adoption{}, ""); a != nil || err == nil {
		t.Fatal("an adoption that nothing checked was recorded")
	}
	a, err := issuer.Adopt(t.Context(), adopt(), "uid 0")
	if err != nil {
		t.Fatal(err)
	}
	if got := memory.events[0]; got.Kind != audit.KindAuthorityRenewed || got.Actor != "uid 0" || got.LeafSHA256 == "" || got.KeySHA256 == "" {
		t.Errorf("event %+v", got)
	}
	r := issuer.Issue(t.Context(), now, a, []Request{{Entitlement: workload(t, 0), CSR: csrOf(t, newKey(t))}})[0]
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	roots, inters := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(e.cert)
	inters.AddCert(cert)
	if _, err := r.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inters, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		t.Fatal(err)
	}
}

func TestUnfitIntermediatesAreRefusedAndSayWhy(t *testing.T) {
	now := time.Now()
	e, key := newElsewhere(t, now, nil), newKey(t)
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*x509.Certificate){
		"is a leaf, not a CA":         func(c *x509.Certificate) { c.IsCA, c.MaxPathLenZero = false, false },
		"keyUsage keyCertSign":        func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature },
		"expired at":                  func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) },
		"not valid before":            func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) },
		"ends in 1m0s":                func(c *x509.Certificate) { c.NotAfter = now.Add(time.Minute + time.Second/2) },
		"-copy_extensions copyall":    func(c *x509.Certificate) { c.URIs = nil },
		"not of spiffe://example.org": func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "other.org"}} },
		"has no subject":              func(c *x509.Certificate) { c.Subject = pkix.Name{} },
		"shares its subject":          func(c *x509.Certificate) { c.Subject = e.cert.Subject },
		"extended key usages":         func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} },
		"exclude the trust domain":    func(c *x509.Certificate) { c.PermittedURIDomains = []string{"other.org"} },
	} {
		cert := e.sign(t, now, request(t, key), change)
		_, err := Adopt(domain, []*x509.Certificate{cert}, e.cert, key, profiles, time.Hour, false, now)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	good := e.sign(t, now, request(t, key), nil)
	for want, c := range map[string]struct {
		chain []*x509.Certificate
		root  *x509.Certificate
		key   crypto.Signer
	}{
		"not of the key that was requested": {[]*x509.Certificate{good}, e.cert, weak},
		"no certificate below the root":     {[]*x509.Certificate{e.cert}, e.cert, key},
		"and the pinned root is":            {[]*x509.Certificate{good}, newElsewhere(t, now, func(c *x509.Certificate) { c.Subject.CommonName = "Another" }).cert, key},
		"is not self-signed":                {[]*x509.Certificate{good}, good, key},
		"only P-256 and P-384":              {[]*x509.Certificate{e.sign(t, now, request(t, p521), nil)}, e.cert, p521},
	} {
		_, err := Adopt(domain, c.chain, c.root, c.key, profiles, time.Hour, false, now)
		if want == "is not self-signed" && err != nil && strings.Contains(err.Error(), "must fit below") {
			continue // its path length speaks first
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestPathLengthsAreCheckedForTheirUse(t *testing.T) {
	now := time.Now()
	key := newKey(t)
	tight := newElsewhere(t, now, func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true })
	cert := tight.sign(t, now, request(t, key), nil)
	if _, err := Adopt(domain, []*x509.Certificate{cert}, tight.cert, key, profiles, time.Hour, false, now); err == nil || !strings.Contains(err.Error(), "path length 0") {
		t.Errorf("a root with no room: %v", err)
	}
	if err := CheckRoot(domain, tight.cert, now); err == nil || !strings.Contains(err.Error(), "1 authorities must fit below it") {
		t.Errorf("a root with no room: %v", err)
	}
	// Two below a root with room for one, and two below one with room enough.
	for length, ok := range map[int]bool{1: false, 2: true} {
		root := newElsewhere(t, now, func(c *x509.Certificate) { c.MaxPathLen = length })
		middleKey := newKey(t)
		middle := elsewhere{key: middleKey, cert: root.sign(t, now, request(t, middleKey), func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 1, false })}
		below := middle.sign(t, now, request(t, key), nil)
		_, err := Adopt(domain, []*x509.Certificate{below, middle.cert}, root.cert, key, profiles, time.Hour, false, now)
		if (err == nil) != ok {
			t.Errorf("path length %d: %v", length, err)
		}
	}
	// Our own root leaves room below, and never more than it has itself.
	own := newElsewhere(t, now, func(c *x509.Certificate) { c.MaxPathLen = 1 })
	root, err := NewRoot(domain, own.cert, own.key, now)
	if err != nil {
		t.Fatal(err)
	}
	d, err := root.DraftIntermediate(now, key, time.Hour, false)
	if err != nil || d.template.MaxPathLen != 0 || !d.template.MaxPathLenZero {
		t.Errorf("%v %v", d, err)
	}
}

func TestSignatureThatDoesNotVerifyLeavesNobody(t *testing.T) {
	now := time.Now()
	h := newHouse(t, now, 100*time.Hour)
	h.key = newKey(t) // a key that went wrong in memory
	for every, refused := range map[int]bool{0: false, 1: true} {
		h.profiles.VerifyEvery = every
		before := len(h.memory.events)
		_, err := h.issue(t, now, workload(t, 0), newKey(t))
		if (err != nil) != refused || refused && (!strings.Contains(err.Error(), "does not verify") || len(h.memory.events) != before) {
			t.Errorf("verified every %d: %v", every, err)
		}
	}
	// Those of authorities are verified whatever is set.
	h.root.key = newKey(t)
	d, err := h.root.DraftIntermediate(now, newKey(t), time.Hour, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.issuer.Release(t.Context(), h.root, []*Draft{d}); err == nil {
		t.Error("an intermediate with a signature of another key was released")
	}
}

func TestWeakKeysMakeNoAuthority(t *testing.T) {
	now := time.Now()
	h := newHouse(t, now, 100*time.Hour)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []crypto.Signer{weak, p521} {
		if _, err := DraftRoot(domain, key, now, time.Hour); err == nil {
			t.Errorf("a root of a %T was drafted", key)
		}
		if _, err := h.root.DraftIntermediate(now, key, time.Hour, false); err == nil {
			t.Errorf("an intermediate of a %T was drafted", key)
		}
	}
}
