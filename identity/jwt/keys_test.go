// This file holds the tests of key sets.

package jwt_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/aval-id/aval/identity/jwt"
	"github.com/aval-id/aval/identity/jwt/jwttest"
)

// jwk prints a key with members changed, or removed where they are nil.
func jwk(t testing.TB, key any, changes map[string]any) string {
	t.Helper()
	data, err := jose.JSONWebKey{Key: key}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	for name, v := range changes {
		if m[name] = v; v == nil {
			delete(m, name)
		}
	}
	if data, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestAKeySetSaysWhatIsWrongWithWhichKey(t *testing.T) {
	t.Parallel()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	public := private.Public()
	scalar, err := private.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	secret := base64.RawURLEncoding.EncodeToString(scalar)[:12]
	good := jwk(t, public, nil)
	for _, c := range []struct{ name, key, want string }{
		{"private", jwk(t, private, nil), "keys[1] is a private key"},
		{"shared secret", `{"kty":"oct","k":"c2VjcmV0"}`, "keys[1] is a shared secret"},
		{"shared secret without its value", `{"kty":"oct"}`, "keys[1] is a shared secret"},
		{"for encryption", jwk(t, public, map[string]any{"use": "enc"}), "keys[1] is not for signatures"},
		{"for other operations", jwk(t, public, map[string]any{"key_ops": []string{"encrypt"}}), "keys[1] is not for signatures"},
		{"of no kind", `{"kty":"PQC"}`, "its kty is none of RSA, EC, OKP"},
		{"off the curve", jwk(t, public, map[string]any{"x": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}), "it is no whole key"},
		{"of another curve", jwk(t, public, map[string]any{"crv": "secp256k1"}), "it is no whole key"},
		{"half of one", jwk(t, public, map[string]any{"y": nil}), "it is no whole key"},
		{"too small", jwk(t, small.Public(), nil), "from 2048 to 8192 bits"},
		{"for another algorithm", jwk(t, public, map[string]any{"alg": "RS256"}), "its alg is none"},
		{"for HMAC", jwk(t, public, map[string]any{"alg": "HS256"}), "its alg is none"},
		{"a number for a kid", jwk(t, public, map[string]any{"kid": 7}), "not a JSON object of texts"},
		{"a long kid", jwk(t, public, map[string]any{"kid": strings.Repeat("k", 257)}), "kid of more than"},
		{"no object", `"key"`, "not a JSON object of texts"},
	} {
		set := `{"keys":[` + good + `,` + c.key + `]}`
		_, err := jwt.ParseKeys([]byte(set))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error repeats the secret", c.name)
		}
	}
	for _, c := range []struct{ name, set, want string }{
		{"no JSON", `keys`, "is not a JSON object"},
		{"no keys", `{}`, `"keys" is missing`},
		{"none", `{"keys":[]}`, `"keys" is missing or empty`},
		{"a list", `[` + good + `]`, "is not a JSON object"},
		{"too many", `{"keys":[` + strings.Repeat(good+",", 64) + good + `]}`, "more than 64"},
		{"too large", `{"keys":[` + good + strings.Repeat(" ", jwt.MaxKeySetBytes) + `]}`, "bytes are more than"},
	} {
		if _, err := jwt.ReadKeys([]byte(c.set)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestAPublishedSetMayHaveKeysForOtherEnds(t *testing.T) {
	t.Parallel()
	key := jwttest.NewKey(t, "one", jose.ES256)
	good := jwk(t, key.Private.Public(), map[string]any{"kid": "one", "x5c": []string{"not looked at"}, "x5t": "AA"})
	set := `{"keys":[{"kty":"PQC"},` + jwk(t, key.Private.Public(), map[string]any{"use": "enc"}) + `,` + good + `],"other":1}`
	keys, err := jwt.ReadKeys([]byte(set))
	if err != nil {
		t.Fatal(err)
	}
	if keys.Len() != 1 || fmt.Sprint(keys.IDs()) != "[one]" || strings.Contains(string(keys.JSON()), "x5c") {
		t.Errorf("%d keys %v: %s", keys.Len(), keys.IDs(), keys.JSON())
	}
	if _, err := jwt.ReadKeys([]byte(`{"keys":[{"kty":"PQC"}]}`)); err == nil {
		t.Error("a set without a key that verifies was taken")
	}
	if _, err := jwt.ReadKeys([]byte(`{"keys":[` + good + `,{"kty":"oct","k":"c2VjcmV0"}]}`)); err == nil {
		t.Error("a set with a secret was taken")
	}
}

func FuzzReadKeys(f *testing.F) {
	f.Add(jwttest.Set(f, jwttest.NewKey(f, "a", jose.ES256), jwttest.NewKey(f, "b", jose.EdDSA)))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AA"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := jwt.ReadKeys(data)
		if err != nil {
			return
		}
		again, err := jwt.ParseKeys(keys.JSON())
		if err != nil || again.Len() != keys.Len() || string(again.JSON()) != string(keys.JSON()) {
			t.Fatalf("what was read does not read again: %v\n%s", err, keys.JSON())
		}
		if strings.Contains(string(keys.JSON()), `"d"`) && keys.Len() == 0 {
			t.Fatal("a secret is passed on")
		}
	})
}
