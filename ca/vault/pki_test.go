// This file holds the tests of intermediates signed by a pki engine.

package vault

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/ca/keys"
	"github.com/aval-id/aval/ca/vault/vaulttest"
	"github.com/aval-id/aval/identity"
)

// adoptFrom has an intermediate signed and checks it as the server does.
func adoptFrom(t testing.TB, p *PKI, root *x509.Certificate) ([]*x509.Certificate, error) {
	t.Helper()
	key := newKey()
	chain, err := p.Sign(t.Context(), must(ca.RequestIntermediate(domain, key, 0)), time.Hour)
	if err != nil {
		return nil, err
	}
	_, err = ca.Adopt(domain, chain, root, key, ca.Profiles{}, time.Minute, false, time.Now())
	return chain, err
}

func TestEngineSignsWhatTheRequestAsks(t *testing.T) {
	v := vaulttest.Start(t)
	withPolicies(t, v)
	root := withRoot(t, v, "pki", "rsa", 2048)
	client := connect(t, v, appRole(t, v, nil))
	hash := identity.CertificateHash(root)
	for name, cfg := range map[string]PKIConfig{"root by file": {RootFile: rootFile(t, root)}, "root by hash": {RootHash: hash}} {
		p := must(NewPKI(client, cfg))
		pinned, err := p.Root(t.Context())
		if err != nil || !pinned.Equal(root) {
			t.Fatalf("%s: %v", name, err)
		}
		chain, err := adoptFrom(t, p, pinned)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		own := chain[0]
		left := time.Until(own.NotAfter)
		if own.MaxPathLen != 0 || !own.MaxPathLenZero || own.URIs[0].String() != "spiffe://example.org" || own.Subject.SerialNumber == "" ||
			left < 59*time.Minute || left > time.Hour {
			t.Errorf("%s: %+v", name, own)
		}
	}
	// What the policy does not name is refused.
	for _, path := range []string{"pki/root/generate/internal", "pki/issue/x", "sys/policies/acl/x"} {
		token := must(client.token(t.Context()))
		if _, err := v.Client(t, token).Logical().Write(path, map[string]any{"common_name": "x"}); err == nil {
			t.Errorf("%s is allowed", path)
		}
	}
	p := must(NewPKI(client, PKIConfig{RootHash: "sha256:" + hash[len(hash)-64:len(hash)-1] + string("0123456789abcdef"[(hash[len(hash)-1]+1)%16])}))
	if _, err := p.Root(t.Context()); !contains(err, "is not in its chain", hash) {
		t.Errorf("another root: %v", err)
	}
}

func TestIssuerIsChosenByName(t *testing.T) {
	v := vaulttest.Start(t)
	withPolicies(t, v)
	v.Policy(t, "aval-pki", `path "pki/issuer/second/sign-intermediate" { capabilities = ["update"] }`)
	withRoot(t, v, "pki", "ec", 256)
	made := v.Write(t, "pki/root/generate/internal", map[string]any{"common_name": "Second", "key_type": "ec", "key_bits": 384, "issuer_name": "second", "ttl": "8760h"})
	second := must(identity.DecodeCertificates([]byte(made.Data["certificate"].(string))))[0]
	p := must(NewPKI(connect(t, v, appRole(t, v, nil)), PKIConfig{Issuer: "second", RootFile: rootFile(t, second)}))
	if _, err := adoptFrom(t, p, second); err != nil {
		t.Fatal(err)
	}
}

func TestChainThroughAnIntermediateLeadsToThePinnedRoot(t *testing.T) {
	v := vaulttest.Start(t)
	withPolicies(t, v)
	root := withRoot(t, v, "above", "ec", 256)
	v.Mount(t, "pki", "pki")
	csr := v.Write(t, "pki/intermediate/generate/internal", map[string]any{"common_name": "Between", "key_type": "ec", "key_bits": 256})
	signed := v.Write(t, "above/root/sign-intermediate", map[string]any{"csr": csr.Data["csr"], "common_name": "Between", "ttl": "8760h", "max_path_length": 1})
	v.Write(t, "pki/intermediate/set-signed", map[string]any{"certificate": signed.Data["certificate"].(string) + "\n" + signed.Data["issuing_ca"].(string)})
	p := must(NewPKI(connect(t, v, appRole(t, v, nil)), PKIConfig{RootHash: identity.CertificateHash(root)}))
	pinned, err := p.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if chain, err := adoptFrom(t, p, pinned); err != nil || len(chain) != 3 {
		t.Fatalf("%d certificates: %v", len(chain), err)
	}
}

func TestWrongAnswersAreRefused(t *testing.T) {
	v := vaulttest.Start(t)
	withPolicies(t, v)
	root, other := withRoot(t, v, "pki", "ec", 256), withRoot(t, v, "other", "ec", 256)
	client := connect(t, v, appRole(t, v, nil))
	p := must(NewPKI(client, PKIConfig{RootFile: rootFile(t, root)}))
	if _, err := adoptFrom(t, p, other); !contains(err, "Root of pki", "Root of other") {
		t.Errorf("another root: %v", err)
	}
	// A key of another kind, put into the request on its way.
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))
	v.Fault(func(_ http.ResponseWriter, r *http.Request) bool {
		var body map[string]any
		if json.NewDecoder(r.Body).Decode(&body) == nil && body["csr"] != nil {
			body["csr"] = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: must(ca.RequestIntermediate(domain, rsaKey, 0))}))
		}
		text := must(json.Marshal(body))
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
		return false
	})
	if _, err := adoptFrom(t, p, root); !contains(err, "not of the key that was requested") {
		t.Errorf("another key: %v", err)
	}
	for name, c := range map[string]struct{ body, want string }{
		"nothing":      {`{}`, "no PEM certificate"},
		"no data":      {`{"data":{}}`, "no PEM certificate"},
		"garbled":      {`{"data":{"certificate":"garbled"}}`, "no PEM certificate"},
		"not text":     {`{"data":{"certificate":7,"ca_chain":[1,null,{}]}}`, "no PEM certificate"},
		"not JSON":     {`<html>`, "sign the intermediate"},
		"key, not one": {`{"data":{"certificate":"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"}}`, "not CERTIFICATE"},
	} {
		v.Fault(func(w http.ResponseWriter, r *http.Request) bool { io.WriteString(w, c.body); return true })
		if _, err := adoptFrom(t, p, root); !contains(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVaultThatDoesNotAnswerIsAway(t *testing.T) {
	v := vaulttest.Start(t)
	withPolicies(t, v)
	root := withRoot(t, v, "pki", "ec", 256)
	client := connect(t, v, appRole(t, v, nil))
	p := must(NewPKI(client, PKIConfig{RootFile: rootFile(t, root)}))
	if _, err := adoptFrom(t, p, root); err != nil {
		t.Fatal(err)
	}
	status := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			http.Error(w, `{"errors":["x"]}`, code)
			return true
		}
	}
	for name, c := range map[string]struct {
		fault func(http.ResponseWriter, *http.Request) bool
		want  string
	}{
		"500": {status(500), "status 500"},
		"502": {status(502), "status 502"},
		"429": {status(429), "status 429"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "https://127.0.0.1:1/x", http.StatusTemporaryRedirect)
			return true
		}, "sign the intermediate"},
		"cut": {func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }, "EOF"},
	} {
		v.Fault(c.fault)
		_, err := adoptFrom(t, p, root)
		if !contains(err, c.want) || !errors.Is(err, keys.ErrAway) {
			t.Errorf("%s: %v", name, err)
		}
	}
	v.Fault(vaulttest.Silent)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := p.Sign(ctx, must(ca.RequestIntermediate(domain, newKey(), 0)), time.Hour); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("slow: %v", err)
	}
	v.Fault(nil)
	v.Seal(t)
	if _, err := adoptFrom(t, p, root); !contains(err, "status 503", "sealed") || !errors.Is(err, keys.ErrAway) {
		t.Errorf("sealed: %v", err)
	}
	v.Unseal(t)
	if _, err := adoptFrom(t, p, root); err != nil {
		t.Errorf("unsealed: %v", err)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"certificate":"x","ca_chain":["y"]}`))
	f.Add([]byte(`{"certificate":7,"ca_chain":"z","type":"ecdsa-p256","keys":{"1":{"public_key":"x"}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var data map[string]any
		if json.Unmarshal(text, &data) != nil {
			return
		}
		if chain, err := certificates(data); err == nil && len(chain) == 0 {
			t.Fatal("an empty chain")
		}
		if pub, err := publicKey(data, 1); err == nil && pub == nil {
			t.Fatal("no key")
		}
	})
}
