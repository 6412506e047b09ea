// This file holds the tests of cross-certificates.

package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/identity"
)

// aRoot makes a self-signed root with a key of its own.
func aRoot(t testing.TB, key crypto.Signer, now time.Time, change func(*x509.Certificate)) *Authority {
	t.Helper()
	td, err := identity.ParseTrustDomain("example.org")
	if err != nil {
		t.Fatal(err)
	}
	template, _, err := authorityTemplate(td, "root", key.Public(), now, now.Add(1000*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	root, err := NewRoot(td, cert, key, now)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func ecKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestACrossCertificateStandsForItsSuccessor(t *testing.T) {
	now := time.Now()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, keys := range map[string][2]crypto.Signer{
		"EC to EC": {ecKey(t), ecKey(t)}, "EC to RSA": {ecKey(t), rsaKey}, "RSA to EC": {rsaKey, ecKey(t)},
	} {
		old, next := aRoot(t, keys[0], now, nil), aRoot(t, keys[1], now.Add(time.Minute), nil)
		d, err := old.DraftCross(now.Add(time.Minute), next.cert)
		if err != nil {
			t.Fatal(name, err)
		}
		s, err := old.sign(d)
		if err != nil {
			t.Fatal(name, err)
		}
		cross := s.cert.Leaf
		switch {
		case cross.CheckSignatureFrom(old.cert) != nil:
			t.Errorf("%s: it is not the old root's", name)
		case !bytes.Equal(cross.RawSubject, next.cert.RawSubject) || !bytes.Equal(cross.SubjectKeyId, next.cert.SubjectKeyId):
			t.Errorf("%s: chains don't lead through it: %s", name, cross.Subject)
		case !bytes.Equal(cross.RawSubjectPublicKeyInfo, next.cert.RawSubjectPublicKeyInfo):
			t.Errorf("%s: it is of another key", name)
		case cross.NotAfter.After(old.cert.NotAfter):
			t.Errorf("%s: it outlives its signer", name)
		}
		if _, err := old.sign(d); !errors.Is(err, ErrSpent) {
			t.Errorf("%s: signed twice: %v", name, err)
		}
	}
}

func TestACrossCertificateIsNotDraftedWhereItCannotServe(t *testing.T) {
	now := time.Now()
	old, next := aRoot(t, ecKey(t), now, nil), aRoot(t, ecKey(t), now.Add(time.Minute), nil)
	short := aRoot(t, ecKey(t), now, func(c *x509.Certificate) { c.MaxPathLen = 2 })
	room := aRoot(t, ecKey(t), now, func(c *x509.Certificate) { c.MaxPathLen = 3 })
	if err := CheckCrossRoom(room.cert); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]struct {
		by   *Authority
		of   *x509.Certificate
		at   time.Time
		text string
	}{
		"no room for its path":   {short, next.cert, now, "allows a path of 2 authorities"},
		"itself":                 {old, old.cert, now, "can't follow itself"},
		"the other direction":    {next, old.cert, now.Add(time.Minute), "is older than its signer"},
		"after the signer's end": {old, next.cert, now.Add(1001 * time.Hour), "ended at"},
		"by what is not a root":  {&Authority{td: old.td, cert: old.cert, ski: old.ski}, next.cert, now, "is not a root"},
	} {
		if _, err := c.by.DraftCross(c.at, c.of); err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
