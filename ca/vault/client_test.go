// This file holds the tests of logging in: each way, lost tokens, leases.

package vault

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/aval-id/aval/ca/keys"
	"github.com/aval-id/aval/ca/vault/vaulttest"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/rotation"
)

func TestEachWayToLogInSigns(t *testing.T) {
	v := vaulttest.Start(t)
	withPolicies(t, v)
	root := withRoot(t, v, "pki", "ec", 256)
	policies := map[string]any{"token_policies": "aval-pki", "token_no_default_policy": true, "token_ttl": "1h"}
	token := must(v.Client(t, v.Token).Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{"aval-pki"}, NoDefaultPolicy: true, TTL: "1h"}))
	certFile, keyFile := clientCertificate(t, v, policies)
	for _, c := range []struct {
		auth   Auth
		direct bool // past the proxy, which ends TLS
	}{
		{Auth{Method: MethodToken, Token: secretFile(t, token.Auth.ClientToken)}, false},
		{appRole(t, v, policies), false},
		{kubernetesRole(t, v, policies), false},
		{jwtRole(t, v, policies), false},
		{Auth{Method: MethodCert, Role: "aval", CertFile: certFile, KeyFile: keyFile}, true},
	} {
		t.Run(c.auth.Method, func(t *testing.T) {
			client := connect(t, v, c.auth)
			if c.direct {
				client.cfg.Address = v.Direct
			}
			p := must(NewPKI(client, PKIConfig{RootFile: rootFile(t, root)}))
			if _, err := adoptFrom(t, p, root); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func kubernetesRole(t *testing.T, v *vaulttest.Server, policies map[string]any) Auth {
	// The reviewer of tokens is an API server; Vault asks it as it asks any.
	review := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var asked struct{ Spec struct{ Token string } }
		json.NewDecoder(r.Body).Decode(&asked)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		json.NewEncoder(w).Encode(map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
			"status": map[string]any{"authenticated": asked.Spec.Token != "", "audiences": []string{"vault"}, "user": map[string]any{
				"username": "system:serviceaccount:aval-system:aval-server", "uid": "u-1", "groups": []string{"system:serviceaccounts"}}}})
	}))
	t.Cleanup(review.Close)
	v.Enable(t, "kubernetes", "kubernetes")
	v.Write(t, "auth/kubernetes/config", map[string]any{"kubernetes_host": review.URL, "disable_local_ca_jwt": true,
		"kubernetes_ca_cert": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: review.Certificate().Raw}))})
	body := map[string]any{"bound_service_account_names": "aval-server", "bound_service_account_namespaces": "aval-system", "audience": "vault"}
	maps.Copy(body, policies)
	v.Write(t, "auth/kubernetes/role/aval", body)
	return Auth{Method: MethodKubernetes, Role: "aval", JWT: secretFile(t, signJWT(t, newKey(), map[string]any{
		"iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:aval-system:aval-server", "aud": []string{"vault"},
		"kubernetes.io": map[string]any{"namespace": "aval-system", "serviceaccount": map[string]any{"name": "aval-server", "uid": "u-1"}},
	}))}
}

func jwtRole(t *testing.T, v *vaulttest.Server, policies map[string]any) Auth {
	key := newKey()
	spki := must(x509.MarshalPKIXPublicKey(key.Public()))
	v.Enable(t, "jwt", "jwt")
	v.Write(t, "auth/jwt/config", map[string]any{"jwt_validation_pubkeys": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))})
	body := map[string]any{"role_type": "jwt", "bound_audiences": "vault", "bound_subject": "aval", "user_claim": "sub"}
	maps.Copy(body, policies)
	v.Write(t, "auth/jwt/role/aval", body)
	return Auth{Method: MethodJWT, Role: "aval", JWT: secretFile(t, signJWT(t, key, map[string]any{"sub": "aval", "aud": "vault"}))}
}

// signJWT makes an ES256 token that lives for an hour.
func signJWT(t *testing.T, key crypto.Signer, claims map[string]any) string {
	t.Helper()
	claims["exp"], claims["iat"], claims["nbf"] = time.Now().Add(time.Hour).Unix(), time.Now().Unix(), time.Now().Unix()
	part := func(v any) string { return base64.RawURLEncoding.EncodeToString(must(json.Marshal(v))) }
	text := part(map[string]string{"alg": "ES256", "typ": "JWT"}) + "." + part(claims)
	digest := sha256.Sum256([]byte(text))
	r, s := ecdsaSign(t, key, digest[:])
	raw := make([]byte, 64)
	r.FillBytes(raw[:32])
	s.FillBytes(raw[32:])
	return text + "." + base64.RawURLEncoding.EncodeToString(raw)
}

func clientCertificate(t *testing.T, v *vaulttest.Server, policies map[string]any) (certFile, keyFile string) {
	key := newKey()
	template := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "aval"}, DNSNames: []string{"aval.example.org"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	v.Enable(t, "cert", "cert")
	body := map[string]any{"certificate": string(text), "allowed_common_names": "aval"}
	maps.Copy(body, policies)
	v.Write(t, "auth/cert/certs/aval", body)
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := errors.Join(os.WriteFile(certFile, text, 0o600), os.WriteFile(keyFile, must(identity.EncodeKey(key)), 0o600)); err != nil {
		t.Fatal(err)
	}
	return certFile, keyFile
}

func TestLostTokenIsReplacedByANewLogin(t *testing.T) {
	t.Parallel()
	v := vaulttest.Start(t)
	withPolicies(t, v)
	root := withRoot(t, v, "pki", "ec", 256)
	client := connect(t, v, appRole(t, v, nil))
	p := must(NewPKI(client, PKIConfig{RootFile: rootFile(t, root)}))
	if _, err := adoptFrom(t, p, root); err != nil {
		t.Fatal(err)
	}
	first := client.login.token
	v.Write(t, "auth/token/revoke", map[string]any{"token": first})
	if _, err := adoptFrom(t, p, root); err != nil {
		t.Fatal(err)
	}
	if client.login.token == first {
		t.Fatal("the lost token is still used")
	}
	// A policy that lacks the path is not a lost token: one login more, and
	// then an error that says where to look.
	v.Policy(t, "aval-pki", `path "auth/token/lookup-self" { capabilities = ["read"] }`)
	before := v.Seen.Load()
	_, err := adoptFrom(t, p, root)
	if !contains(err, "status 403", "deploy/vault") || v.Seen.Load()-before != 3 {
		t.Fatalf("%d requests, %v", v.Seen.Load()-before, err)
	}
	if !errors.Is(err, keys.ErrAway) {
		t.Fatal("a refusal is not a missing key")
	}
}

func TestLoginIsRenewedByItsLeaseAndRevokedAtTheEnd(t *testing.T) {
	t.Parallel()
	v := vaulttest.Start(t)
	withPolicies(t, v)
	root := withRoot(t, v, "pki", "ec", 256)
	client := connect(t, v, appRole(t, v, map[string]any{"token_ttl": "2s", "token_max_ttl": "5s"}))
	var renewals, logins, revocations atomic.Int64
	v.Fault(func(_ http.ResponseWriter, r *http.Request) bool {
		switch {
		case strings.HasSuffix(r.URL.Path, "/renew-self"):
			renewals.Add(1)
		case strings.HasSuffix(r.URL.Path, "/login"):
			logins.Add(1)
		case strings.HasSuffix(r.URL.Path, "/revoke-self"):
			revocations.Add(1)
		}
		return false
	})
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	p := must(NewPKI(client, PKIConfig{RootFile: rootFile(t, root)}))
	for renewals.Load() < 2 || logins.Load() < 2 {
		if _, err := adoptFrom(t, p, root); err != nil {
			t.Fatal(err)
		}
		if !rotation.Pause(ctx, 100*time.Millisecond) {
			t.Fatalf("%d renewals, %d logins", renewals.Load(), logins.Load())
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if revocations.Load() != 1 || client.login.token != "" {
		t.Fatalf("%d revocations at the end", revocations.Load())
	}
}

func TestTLSIsNeverSkipped(t *testing.T) {
	v := vaulttest.Start(t)
	t.Setenv("VAULT_SKIP_VERIFY", "true")
	t.Setenv("VAULT_ADDR", "http://127.0.0.1:1")
	t.Setenv("VAULT_TOKEN", v.Token)
	client := must(New(Config{Address: v.Address, Auth: Auth{Method: MethodToken, Token: secretFile(t, v.Token)}}))
	t.Cleanup(client.http.CloseIdleConnections)
	if _, err := client.token(t.Context()); !contains(err, "certificate") || !errors.Is(err, keys.ErrAway) {
		t.Fatal(err)
	}
	client = connect(t, v, Auth{Method: MethodToken, Token: secretFile(t, v.Token)})
	if _, err := client.token(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestNamespaceGoesWithEachCall(t *testing.T) {
	v := vaulttest.Start(t)
	t.Setenv("VAULT_NAMESPACE", "of-the-environment")
	for _, want := range []string{"", "team/ca"} {
		client := must(New(Config{Address: v.Address, CAFile: v.CAFile, Namespace: want, Auth: Auth{Method: MethodToken, Token: secretFile(t, v.Token)}}))
		t.Cleanup(client.http.CloseIdleConnections)
		got := make(chan string, 8)
		v.Fault(func(w http.ResponseWriter, r *http.Request) bool {
			got <- r.Header.Get("X-Vault-Namespace")
			return false
		})
		client.token(t.Context())
		if ns := strings.Trim(<-got, "/"); ns != want {
			t.Errorf("namespace %q, want %q", ns, want)
		}
	}
}

func TestConfigurationSaysWhatIsWrongWithIt(t *testing.T) {
	token := must(keys.ParseSecret("env:TOKEN"))
	for want, cfg := range map[string]Config{
		"address is missing":           {},
		"only https":                   {Address: "http://vault:8200", Auth: Auth{Method: MethodToken, Token: token}},
		"not https://HOST:PORT":        {Address: "https://user:secret@vault", Auth: Auth{Method: MethodToken, Token: token}},
		"way to log in is missing":     {Address: "https://vault"},
		`"ldap" is no way`:             {Address: "https://vault", Auth: Auth{Method: "ldap"}},
		"token source is missing":      {Address: "https://vault", Auth: Auth{Method: MethodToken}},
		"secret ID source is missing":  {Address: "https://vault", Auth: Auth{Method: MethodAppRole, RoleID: "x"}},
		"role is set, and is not used": {Address: "https://vault", Auth: Auth{Method: MethodToken, Token: token, Role: "x"}},
		"JWT source is missing":        {Address: "https://vault", Auth: Auth{Method: MethodJWT, Role: "x"}},
		"key file is missing":          {Address: "https://vault", Auth: Auth{Method: MethodCert, CertFile: "/x"}},
		"no such file":                 {Address: "https://vault", CAFile: "/absent", Auth: Auth{Method: MethodToken, Token: token}},
	} {
		if _, err := New(cfg); !contains(err, want) || contains(err, "secret@") {
			t.Errorf("%v, want %q", err, want)
		}
	}
	client := must(New(Config{Address: "https://vault", Auth: Auth{Method: MethodToken, Token: token}}))
	for want, cfg := range map[string]PKIConfig{
		"exactly one":       {},
		"exactly one of":    {RootFile: "/x", RootHash: "sha256:" + strings.Repeat("0", 64)},
		"64 lower-case hex": {RootHash: "sha256:ABC"},
		"is not a path":     {RootFile: "/x", Mount: "a/../sys"},
		"neither a name":    {RootFile: "/x", Issuer: "a/b"},
	} {
		if _, err := NewPKI(client, cfg); !contains(err, want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	for want, cfg := range map[string]TransitConfig{"key's name": {}, "key's name is": {Key: "a/b"}, "mount": {Key: "a", Mount: ".."}, "version": {Key: "a", Version: -1}} {
		if _, err := NewTransit(client, cfg); !contains(err, want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestSecretsAreInNoErrorAndNoLog(t *testing.T) {
	v := vaulttest.Start(t)
	withPolicies(t, v)
	auth := appRole(t, v, nil)
	secret := must(auth.SecretID.Read())
	var log output
	client := must(New(Config{Address: v.Address, CAFile: v.CAFile, Auth: auth, Logger: log.logger()}))
	t.Cleanup(client.http.CloseIdleConnections)
	token, err := client.token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	texts := []string{log.String()}
	note := func(err error) {
		t.Helper()
		if err == nil {
			t.Fatal("no error")
		}
		texts = append(texts, err.Error())
	}
	ask := func() error {
		_, err := client.call(t.Context(), "try", func(ctx context.Context, l *api.Logical) (*api.Secret, error) {
			return l.ReadWithContext(ctx, "sys/mounts")
		})
		return err
	}
	note(ask()) // denied
	v.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		// An answer that throws back whatever came with the request.
		body, _ := io.ReadAll(r.Body)
		http.Error(w, string(body)+r.Header.Get("X-Vault-Token"), http.StatusBadGateway)
		return true
	})
	note(ask())
	client.forget(token)
	note(ask())
	v.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		body, _ := io.ReadAll(r.Body)
		w.WriteHeader(http.StatusBadRequest)
		json.NewEncoder(w).Encode(map[string]any{"errors": []string{string(body)}})
		return true
	})
	note(ask())
	v.Seal(t)
	v.Fault(nil)
	note(ask())
	texts = append(texts, log.String())
	for _, text := range texts {
		if strings.Contains(text, secret) || strings.Contains(text, token) {
			t.Errorf("a secret is in %q", text)
		}
	}
}
