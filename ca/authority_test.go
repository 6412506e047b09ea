// This file holds the tests of drafting, signing and releasing.

package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a Recorder in memory that fails when told to.
type memory struct {
	mu     sync.Mutex
	fail   error
	events []audit.Event
}

func (m *memory) RecordAll(_ context.Context, events []audit.Event) ([]audit.Receipt, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return nil, m.fail
	}
	out := make([]audit.Receipt, len(events))
	for n := range events {
		out[n].Index = int64(len(m.events) + n)
	}
	m.events = append(m.events, events...)
	return out, nil
}

var (
	domain, _  = identity.ParseTrustDomain("example.org")
	other, _   = identity.ParseTrustDomain("other.org")
	errNoSpace = errors.New("no space")
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func csrOf(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "ignored"},
		DNSNames: []string{"ignored.example"},
		URIs:     []*url.URL{{Scheme: "spiffe", Host: "evil.org", Path: "/admin"}},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func proven(t testing.TB, key crypto.Signer) ProvenKey {
	t.Helper()
	k, err := ProveCSR(csrOf(t, key))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// house is a root and an intermediate with their recorder.
type house struct {
	*Authority
	root     *Authority
	rootCert *x509.Certificate
	memory   *memory
	issuer   *Issuer
}

var profiles = Profiles{
	Workload: Profile{Default: 4 * time.Hour, Min: 5 * time.Minute, Max: 24 * time.Hour},
	Node:     Profile{Default: 24 * time.Hour, Min: time.Second, Max: 24 * time.Hour},
	Server:   Profile{Default: 24 * time.Hour, Min: time.Second, Max: 24 * time.Hour},
}

func newHouse(t testing.TB, now time.Time, ttl time.Duration) *house {
	t.Helper()
	h := &house{memory: &memory{}}
	h.issuer = NewIssuer(h.memory)
	rootKey, key := newKey(t), newKey(t)
	draft, err := DraftRoot(domain, rootKey, now, 1000*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if h.rootCert, err = h.issuer.ReleaseRoot(t.Context(), draft); err != nil {
		t.Fatal(err)
	}
	if h.root, err = NewRoot(domain, h.rootCert, rootKey, now); err != nil {
		t.Fatal(err)
	}
	if draft, err = h.root.DraftIntermediate(now, key, ttl, false); err != nil {
		t.Fatal(err)
	}
	certs, err := h.issuer.Release(t.Context(), h.root, []*Draft{draft})
	if err != nil {
		t.Fatal(err)
	}
	if h.Authority, err = NewAuthority(domain, []*x509.Certificate{certs[0].Leaf}, h.rootCert, key, profiles, now); err != nil {
		t.Fatal(err)
	}
	return h
}

// workload is a node's entitlement to one registration.
func workload(t testing.TB, ttl time.Duration, names ...string) Entitlement {
	t.Helper()
	key := proven(t, newKey(t))
	id, _ := identity.NodeID(domain, "one")
	attested, err := Node{ID: id, Name: "one", Keys: []string{key.Hash()}}.Attest(key)
	if err != nil {
		t.Fatal(err)
	}
	web, _ := domain.NewID("/web")
	e, err := attested.Workload(identity.Registration{Namespace: "shop", Name: "web", ID: web, TTL: ttl, DNSNames: names}, web)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (h *house) issue(t testing.TB, now time.Time, e Entitlement, key crypto.Signer) (Certificate, error) {
	t.Helper()
	r := h.issuer.Issue(t.Context(), now, h.Authority, []Request{{Entitlement: e, CSR: csrOf(t, key)}})[0]
	return r.Certificate, r.Err
}

func TestNoRecordNoCertificate(t *testing.T) {
	now := time.Now()
	h := newHouse(t, now, 100*time.Hour)
	h.memory.fail = errNoSpace
	check := func(what string, got any, err error) {
		t.Helper()
		r, ok := errors.AsType[*Refusal](err)
		if !ok || r.Reason != ReasonNotRecorded || !errors.Is(err, errNoSpace) {
			t.Errorf("%s: error %v", what, err)
		}
		if s := fmt.Sprintf("%+v", got); s != "[]" && s != "<nil>" {
			t.Errorf("%s: %s came out", what, s)
		}
	}
	results := h.issuer.Issue(t.Context(), now, h.Authority, []Request{{Entitlement: workload(t, 0), CSR: csrOf(t, newKey(t))}, {Entitlement: workload(t, 0), CSR: csrOf(t, newKey(t))}})
	for _, r := range results {
		check("workload leaf", r.Chain, r.Err)
		if r.Leaf != nil {
			t.Error("a leaf came out")
		}
	}
	server, err := ServerSelf(domain, "a")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := h.issue(t, now, server, newKey(t))
	check("server leaf", cert.Chain, err)
	d, err := h.Draft(now, workload(t, 0), proven(t, newKey(t)))
	if err != nil {
		t.Fatal(err)
	}
	certs, err := h.issuer.Release(t.Context(), h.Authority, []*Draft{d})
	check("released leaf", certs, err)
	inter, err := h.root.DraftIntermediate(now, newKey(t), time.Hour, true)
	if err != nil {
		t.Fatal(err)
	}
	certs, err = h.issuer.Release(t.Context(), h.root, []*Draft{inter})
	check("intermediate", certs, err)
	rootDraft, err := DraftRoot(domain, newKey(t), now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	root, err := h.issuer.ReleaseRoot(t.Context(), rootDraft)
	if err == nil || root != nil {
		t.Errorf("root %v came out", root)
	}
}

func TestDraftIsSpentOnceByItsMaker(t *testing.T) {
	now := time.Now()
	h, stranger := newHouse(t, now, 100*time.Hour), newHouse(t, now, 100*time.Hour)
	d, err := h.Draft(now, workload(t, 0), proven(t, newKey(t)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.issuer.Release(t.Context(), stranger.Authority, []*Draft{d}); !errors.Is(err, ErrSpent) {
		t.Fatalf("another authority: %v", err)
	}
	if _, err := h.issuer.Release(t.Context(), h.Authority, []*Draft{d}); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []*Draft{d, nil, {}} {
		if _, err := h.issuer.Release(t.Context(), h.Authority, []*Draft{bad}); !errors.Is(err, ErrSpent) {
			t.Fatalf("spent, missing or empty draft: %v", err)
		}
	}
}

func TestLeafObeysTheSPIFFEClauses(t *testing.T) {
	now := time.Now()
	h := newHouse(t, now, 100*time.Hour)
	_, edKey, _ := ed25519.GenerateKey(rand.Reader)
	rsaKey, _ := rsa.GenerateKey(rand.Reader, 2048)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	for name, key := range map[string]crypto.Signer{"P-256": newKey(t), "P-384": p384, "Ed25519": edKey, "RSA": rsaKey} {
		cert, err := h.issue(t, now, workload(t, 0, "web.shop"), key)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		leaf := cert.Leaf
		id, err := identity.LeafID(leaf)
		if err != nil || id.String() != "spiffe://example.org/web" {
			t.Errorf("%s: %s %v", name, id, err)
		}
		if leaf.Subject.String() != "" || len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != "web.shop" {
			t.Errorf("%s: the CSR's subject or names count: %v %v", name, leaf.Subject, leaf.DNSNames)
		}
		if bits := leaf.SerialNumber.BitLen(); leaf.SerialNumber.Sign() <= 0 || bits > 128 || bits < 96 {
			t.Errorf("%s: serial of %d bits", name, bits)
		}
		if got := leaf.NotBefore; !got.Equal(now.Truncate(time.Second).Add(-Backdate)) || !leaf.NotAfter.Equal(now.Truncate(time.Second).Add(4*time.Hour)) {
			t.Errorf("%s: from %s to %s", name, got, leaf.NotAfter)
		}
		if err := identity.CheckAuthority(h.Certificate(), domain); err != nil {
			t.Error(err)
		}
	}
	seen := map[string]bool{}
	for _, e := range h.memory.events {
		if e.Serial == "" || seen[e.Serial] || e.LeafSHA256 == "" || e.KeySHA256 == "" {
			t.Errorf("event %+v", e)
		}
		seen[e.Serial] = true
	}
}

func TestLifetimeStaysWithinProfileAndIssuer(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	h := newHouse(t, now, 6*time.Hour)
	for _, c := range []struct {
		ttl, after, want time.Duration
		reason           string
	}{
		{0, 0, 4 * time.Hour, ""},
		{time.Hour, 0, time.Hour, ""},
		{48 * time.Hour, 0, 6 * time.Hour, ""}, // cut to the profile, then to the issuer's end
		{0, 3 * time.Hour, 3 * time.Hour, ""},
		{time.Minute, 0, 0, ReasonNoLifetime},
		{0, 6*time.Hour - 4*time.Minute, 0, ReasonIssuerEnding},
		{0, 7 * time.Hour, 0, ReasonIssuerEnding},
	} {
		cert, err := h.issue(t, now.Add(c.after), workload(t, c.ttl), newKey(t))
		if c.reason != "" {
			if r, ok := errors.AsType[*Refusal](err); !ok || r.Reason != c.reason {
				t.Errorf("%s after %s: %v", c.ttl, c.after, err)
			}
			continue
		}
		if err != nil || cert.Leaf.NotAfter.Sub(now.Add(c.after)) != c.want {
			t.Errorf("%s after %s: %v %v", c.ttl, c.after, cert.Leaf, err)
		}
	}
}

func TestCSRKeysAndProofAreChecked(t *testing.T) {
	weak, _ := rsa.GenerateKey(rand.Reader, 1024)
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	good := csrOf(t, newKey(t))
	forged := append([]byte{}, good...)
	forged[len(forged)-1] ^= 1
	bad := map[string][]byte{"empty": nil, "garbled": []byte("garbled"), "forged": forged, "P-521": csrOf(t, p521),
		"huge": make([]byte, MaxCSRBytes+1), "trailing": append(append([]byte{}, good...), 0)}
	if weak != nil {
		if der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, weak); err == nil {
			bad["RSA-1024"] = der
		}
	}
	for name, der := range bad {
		_, err := ProveCSR(der)
		if r, ok := errors.AsType[*Refusal](err); !ok || r.Cause != CauseInvalid || r.Reason != ReasonBadCSR {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAuthorityAndKeyBelongTogether(t *testing.T) {
	now := time.Now()
	h := newHouse(t, now, 100*time.Hour)
	chain := []*x509.Certificate{h.Certificate()}
	stranger := newHouse(t, now, 100*time.Hour)
	for name, err := range map[string]error{
		"other key":    second(NewAuthority(domain, chain, h.rootCert, newKey(t), profiles, now)),
		"other root":   second(NewAuthority(domain, chain, stranger.rootCert, h.key, profiles, now)),
		"other domain": second(NewAuthority(other, chain, h.rootCert, h.key, profiles, now)),
		"expired":      second(NewAuthority(domain, chain, h.rootCert, h.key, profiles, now.Add(200*time.Hour))),
		"early":        second(NewAuthority(domain, chain, h.rootCert, h.key, profiles, now.Add(-time.Hour))),
		"none":         second(NewAuthority(domain, nil, h.rootCert, h.key, profiles, now)),
		"root's key":   second(NewRoot(domain, h.rootCert, newKey(t), now)),
		"not a root":   second(NewRoot(domain, h.Certificate(), h.key, now)),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if h.SKI() == stranger.SKI() || h.Certificate().Subject.String() == stranger.Certificate().Subject.String() {
		t.Error("two authorities share a subject or key identifier")
	}
}

func second[T any](_ T, err error) error { return err }

func FuzzCSR(f *testing.F) {
	k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	f.Add(csrOf(f, k))
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	f.Add(csrOf(f, ed))
	f.Add([]byte{0x30, 0x00})
	f.Fuzz(func(t *testing.T, der []byte) {
		key, err := ProveCSR(der)
		if (err == nil) == key.IsZero() {
			t.Fatalf("key %v with error %v", key, err)
		}
	})
}
