// This file holds the tests of intermediates from elsewhere: imports, crashes
// in the midst of them, and root keys that are slow.

package server

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca/keys"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/rotation"
)

// offlineRoot is a root that no server reaches.
type offlineRoot struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newOfflineRoot(name string) offlineRoot {
	r := offlineRoot{key: newKey()}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(1000 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	r.cert = must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, template, r.key.Public(), r.key))))
	return r
}

// sign signs a request as it asks.
func (r offlineRoot) sign(csr []byte) *x509.Certificate {
	req := must(x509.ParseCertificateRequest(csr))
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: req.Subject, URIs: req.URIs,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(100 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, r.cert, req.PublicKey, r.key))))
}

// offlineServer has an import staged and not yet in force.
func offlineServer(t testing.TB, root offlineRoot) (Config, *x509.Certificate) {
	t.Helper()
	cfg := testConfig(shortDir(t))
	cfg.Upstream = Offline{}
	cert := root.sign(must(RequestAtRest(cfg)))
	in := Import{Certificates: []*x509.Certificate{cert, root.cert}}
	if err := ImportAtRest(t.Context(), cfg, in, time.Now()); err != nil {
		t.Fatal(err)
	}
	return cfg, cert
}

func (r *running) intermediate() *x509.Certificate { return r.certificates()[1].cert }

func TestImportComesIntoForceWholeAfterACrashAtAnyStep(t *testing.T) {
	root := newOfflineRoot("Offline root")
	cfg, want := offlineServer(t, root)
	keysPath := filepath.Join(cfg.DataDir, keysDir)
	staged := must(os.ReadFile(filepath.Join(keysPath, importFile)))
	requested := must(os.ReadFile(filepath.Join(keysPath, requestFile)))
	start(t, cfg).stop()
	inForce := must(os.ReadFile(filepath.Join(keysPath, intermediateFile)))
	for name, state := range map[string]map[string][]byte{
		"staged":                          {intermediateFile: nil, importFile: staged, requestFile: requested},
		"intermediate written":            {intermediateFile: inForce, importFile: staged, requestFile: requested},
		"staging forgotten":               {intermediateFile: inForce, importFile: nil, requestFile: requested},
		"done":                            {intermediateFile: inForce, importFile: nil, requestFile: nil},
		"staged again over the same done": {intermediateFile: inForce, importFile: staged, requestFile: nil},
	} {
		for file, text := range state {
			path := filepath.Join(keysPath, file)
			os.Remove(path)
			if text != nil {
				if err := os.WriteFile(path, text, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		r := start(t, cfg)
		if !r.intermediate().Equal(want) || !r.certificates()[0].cert.Equal(root.cert) {
			t.Errorf("%s: another authority is in force", name)
		}
		verifies(t, rawChain(r.Credentials().SVID), must(identity.NewBundle(testDomain, []*x509.Certificate{root.cert})))
		r.stop()
		for _, file := range []string{importFile, requestFile} {
			if _, err := os.Stat(filepath.Join(keysPath, file)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %s is still there", name, file)
			}
		}
	}
}

func TestImportWithoutARecordIsNotInForce(t *testing.T) {
	root := newOfflineRoot("Offline root")
	cfg, _ := offlineServer(t, root)
	s := must(New(cfg))
	s.setRecorder(failing{errors.New("no space")})
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(cfg.DataDir, rootFile), filepath.Join(cfg.DataDir, keysDir, intermediateFile)} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s was written without a record", path)
		}
	}
	r := start(t, cfg)
	first := r.intermediate()
	resp := must(r.admin.RequestIntermediate(t.Context(), &wire.RequestIntermediateRequest{}))
	next := root.sign(resp.GetCsr())
	recorder := r.recorder
	r.setRecorder(failing{errors.New("no space")})
	req := &wire.ImportIntermediateRequest{Certificates: [][]byte{next.Raw}}
	if _, err := r.admin.ImportIntermediate(t.Context(), req); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Fatal(err)
	}
	if !r.intermediate().Equal(first) {
		t.Fatal("an intermediate is in force without a record")
	}
	r.setRecorder(recorder)
	if _, err := r.admin.ImportIntermediate(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if !r.intermediate().Equal(next) {
		t.Fatal("the import is not in force")
	}
	if last := events(t, r.authorityLog, audit.KindAuthorityRenewed); len(last) != 1 || !strings.HasPrefix(last[0].Actor, "uid") {
		t.Errorf("%+v", last)
	}
}

// failing is a Recorder that records nothing.
type failing struct{ err error }

func (f failing) RecordAll(context.Context, []audit.Event) ([]audit.Receipt, error) {
	return nil, f.err
}

func TestAnotherRootIsNotImportedButRolledOver(t *testing.T) {
	root, other := newOfflineRoot("Offline root"), newOfflineRoot("Another root")
	cfg, _ := offlineServer(t, root)
	r := start(t, cfg)
	resp := must(r.admin.RequestIntermediate(t.Context(), &wire.RequestIntermediateRequest{}))
	cert := other.sign(resp.GetCsr())
	for want, certs := range map[string][]*x509.Certificate{
		"another root is a rollover": {cert, other.cert},
		"the pinned root is":         {cert},
		"no intermediate was given":  {root.cert},
		"not of the key":             {root.cert, r.intermediate()},
		"it holds two roots":         {cert, other.cert, root.cert},
	} {
		req := &wire.ImportIntermediateRequest{}
		for _, c := range certs {
			req.Certificates = append(req.Certificates, c.Raw)
		}
		if _, err := r.admin.ImportIntermediate(t.Context(), req); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	for _, certs := range [][][]byte{nil, {[]byte("garbled")}, make([][]byte, 9)} {
		if _, err := r.admin.ImportIntermediate(t.Context(), &wire.ImportIntermediateRequest{Certificates: certs}); err == nil {
			t.Errorf("%d garbled certificates were taken", len(certs))
		}
	}
}

func TestEachKindOfIssuingKeyIssues(t *testing.T) {
	for _, kind := range []identity.KeyType{identity.P256, identity.P384, identity.Ed25519, identity.RSA2048} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			cfg := testConfig(shortDir(t))
			cfg.RootKeyType, cfg.IssuerKeyType = kind, kind
			r := start(t, cfg)
			n := r.join(t, "one", nil)
			r.apply(t, registration("shop", "web", "/web", ""))
			res := n.sync(t).issue(t, request(1, "shop/web", "/web"))[0]
			if len(res.GetChain()) == 0 {
				t.Fatal(res)
			}
			verifies(t, res.GetChain(), n.bundle)
			for _, c := range r.certificates()[:2] {
				if got := must(identity.KeyTypeOf(c.cert.PublicKey)); got != kind {
					t.Errorf("%s has a key of type %s", c.role, got)
				}
			}
		})
	}
}

// slowSigner signs when its gate is open.
type slowSigner struct {
	crypto.Signer
	gate *atomic.Pointer[chan struct{}]
}

func (s slowSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if gate := s.gate.Load(); gate != nil {
		<-*gate
	}
	return s.Signer.Sign(random, digest, opts)
}

// slowHome is where a slow signer lives; it says when it is opened.
type slowHome struct {
	slowSigner
	opened chan struct{}
}

func (h slowHome) Open(context.Context) (*keys.Key, error) {
	h.opened <- struct{}{}
	return keys.NewKey(h.slowSigner, nil), nil
}

func (slowHome) String() string { return "slow home" }

func TestSlowRootKeyIsOnNoLeafsPath(t *testing.T) {
	t.Parallel()
	cfg := testConfig(shortDir(t))
	cfg.IntermediateTTL, cfg.ServerTTL, cfg.DefaultTTL = 6*time.Second, 2*time.Second, 2*time.Second
	key := newKey()
	var gate atomic.Pointer[chan struct{}]
	waiting := make(chan struct{}, 16)
	cfg.RootKeyHome = slowHome{slowSigner{key, &gate}, waiting}
	r := start(t, cfg)
	n := r.join(t, "one", nil)
	r.apply(t, registration("shop", "web", "/web", ""))
	s := n.sync(t)
	first := r.intermediate()
	for len(waiting) > 0 {
		<-waiting
	}
	closed := make(chan struct{})
	gate.Store(&closed)
	<-waiting // the renewal has begun, and its signature waits
	for i := range 50 {
		res := s.issue(t, request(uint64(i), "shop/web", "/web"))[0]
		if len(res.GetChain()) == 0 || string(res.GetChain()[1]) != string(first.Raw) {
			t.Fatalf("while the root's key is busy: %v", res)
		}
	}
	close(closed)
	until(t, func() bool { return !r.intermediate().Equal(first) })
}

// until waits for a condition, generously.
func until(t testing.TB, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !holds() {
		if !rotation.Pause(ctx, 10*time.Millisecond) {
			t.Fatal("it did not come")
		}
	}
}

func FuzzImport(f *testing.F) {
	root := newOfflineRoot("Offline root")
	f.Add(identity.EncodeCertificates([]*x509.Certificate{root.cert}))
	f.Add(append(must(identity.EncodeKey(root.key)), identity.EncodeCertificates([]*x509.Certificate{root.cert, root.cert})...))
	f.Fuzz(func(t *testing.T, text []byte) {
		i, err := parseImport(text)
		if err == nil && i.root == nil && len(i.chain) == 0 {
			t.Fatal("nothing was imported")
		}
	})
}
