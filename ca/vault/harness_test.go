// This file holds what the tests of this package stand on: a Vault with pki
// and transit, and a login that may do what deploy/vault says and no more.

package vault

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/aval-id/aval/ca/keys"
	"github.com/aval-id/aval/ca/vault/vaulttest"
	"github.com/aval-id/aval/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var domain = must(identity.ParseTrustDomain("example.org"))

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newKey() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

// secretFile writes a secret that its owner alone may read.
func secretFile(t testing.TB, text string) keys.Secret {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "secret")
	if err := errors.Join(os.Chmod(dir, 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	return must(keys.ParseSecret("file:" + path))
}

// withPolicies gives a Vault the shipped policies.
func withPolicies(t testing.TB, v *vaulttest.Server) {
	t.Helper()
	for _, name := range []string{"pki", "transit"} {
		v.Policy(t, "aval-"+name, string(must(os.ReadFile(filepath.Join("..", "..", "deploy", "vault", name+".hcl")))))
	}
}

// withRoot mounts a pki engine with a root of its own.
func withRoot(t testing.TB, v *vaulttest.Server, mount, kind string, bits int) *x509.Certificate {
	t.Helper()
	v.Mount(t, mount, "pki")
	secret := v.Write(t, mount+"/root/generate/internal", map[string]any{
		"common_name": "Root of " + mount, "key_type": kind, "key_bits": bits, "ttl": "87600h",
	})
	certs, err := identity.DecodeCertificates([]byte(secret.Data["certificate"].(string)))
	if err != nil {
		t.Fatal(err)
	}
	return certs[0]
}

func rootFile(t testing.TB, root *x509.Certificate) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(path, identity.EncodeCertificates([]*x509.Certificate{root}), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// appRole makes a role with the policies and returns a login by it.
func appRole(t testing.TB, v *vaulttest.Server, settings map[string]any) Auth {
	t.Helper()
	v.Enable(t, "approle", "approle")
	body := map[string]any{"token_policies": "aval-pki,aval-transit", "token_no_default_policy": true, "token_ttl": "1h"}
	maps.Copy(body, settings)
	v.Write(t, "auth/approle/role/aval", body)
	id := must(v.Client(t, v.Token).Logical().Read("auth/approle/role/aval/role-id"))
	secret := v.Write(t, "auth/approle/role/aval/secret-id", nil)
	return Auth{Method: MethodAppRole, RoleID: id.Data["role_id"].(string), SecretID: secretFile(t, secret.Data["secret_id"].(string)+"\n")}
}

func connect(t testing.TB, v *vaulttest.Server, auth Auth) *Client {
	t.Helper()
	c, err := New(Config{Address: v.Address, CAFile: v.CAFile, Auth: auth})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.http.CloseIdleConnections)
	return c
}

// output is a log that may be read while it is written.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func (o *output) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(o, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func contains(err error, texts ...string) bool {
	for _, text := range texts {
		if err == nil || !strings.Contains(err.Error(), text) {
			return false
		}
	}
	return true
}
