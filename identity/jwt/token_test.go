// This file holds the tests of tokens: what is taken, and each way to be
// refused.

package jwt_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/aval-id/aval/identity/jwt"
	"github.com/aval-id/aval/identity/jwt/jwttest"
)

const issuer = "https://issuer.example.org"

var now = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func keysOf(t testing.TB, keys ...jwttest.Key) *jwt.Keys {
	t.Helper()
	parsed, err := jwt.ParseKeys(jwttest.Set(t, keys...))
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// verify is what a proxy does with a token.
func verify(raw string, keys *jwt.Keys, audiences []string) (*jwt.Token, error) {
	token, err := jwt.Parse(raw)
	if err != nil {
		return nil, err
	}
	if token.Issuer() != issuer {
		return nil, jwt.ErrIssuer
	}
	return token, token.Verify(keys, audiences, now)
}

func TestEveryAlgorithmThatIsTakenVerifies(t *testing.T) {
	t.Parallel()
	rsa := jwttest.NewKey(t, "rsa", jose.RS256)
	for _, alg := range []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
		jose.ES256, jose.ES384, jose.ES512, jose.EdDSA} {
		key := rsa
		key.Algorithm = alg
		if strings.HasPrefix(string(alg), "E") {
			key = jwttest.NewKey(t, "k", alg)
		}
		token, err := verify(key.Sign(t, jwttest.Claims(issuer, now, nil), nil), keysOf(t, key), nil)
		if err != nil {
			t.Errorf("%s: %v", alg, err)
			continue
		}
		if token.Claims()["sub"] != "alice" {
			t.Errorf("%s: claims %v", alg, token.Claims())
		}
	}
}

// shared signs with a secret that everybody knows: the public key.
func shared(t *testing.T, key jwttest.Key, claims map[string]any) string {
	der, err := x509.MarshalPKIXPublicKey(key.Private.Public())
	if err != nil {
		t.Fatal(err)
	}
	secret := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	head := fmt.Sprintf(`{"alg":"HS256","typ":"JWT","kid":%q}`, key.ID)
	text := unsigned(t, head, claims)
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func unsigned(t *testing.T, head string, claims map[string]any) string {
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString([]byte(head)) + "." + base64.RawURLEncoding.EncodeToString(payload)
}

func TestABadTokenIsRefusedForWhatIsWrong(t *testing.T) {
	t.Parallel()
	key, other := jwttest.NewKey(t, "k1", jose.ES256), jwttest.NewKey(t, "k1", jose.ES256)
	good := jwttest.Claims(issuer, now, nil)
	with := func(changes map[string]any) string { return key.Sign(t, jwttest.Claims(issuer, now, changes), nil) }
	headed := func(header map[jose.HeaderKey]any) string { return key.Sign(t, good, header) }
	renamed := key
	renamed.ID = "k2"
	encrypter, err := jose.NewEncrypter(jose.A128GCM, jose.Recipient{Algorithm: jose.DIRECT, Key: make([]byte, 16)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	jwe, err := encrypter.Encrypt([]byte(with(nil)))
	if err != nil {
		t.Fatal(err)
	}
	nested, err := jwe.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	cut := with(nil)
	for _, c := range []struct {
		name, token string
		want        error
	}{
		{"none", unsigned(t, `{"alg":"none"}`, good) + ".", jwt.ErrAlgorithm},
		{"None", unsigned(t, `{"alg":"None"}`, good) + ".", jwt.ErrAlgorithm},
		{"no alg", unsigned(t, `{"typ":"JWT"}`, good) + ".AA", jwt.ErrAlgorithm},
		{"HS256 with the public key", shared(t, key, good), jwt.ErrAlgorithm},
		{"wrong kid", renamed.Sign(t, good, nil), jwt.ErrSignature},
		{"wrong key of the right kid", other.Sign(t, good, nil), jwt.ErrSignature},
		{"algorithm of another key", unsigned(t, `{"alg":"RS256","kid":"k1"}`, good) + cut[strings.LastIndexByte(cut, '.'):], jwt.ErrSignature},
		{"changed claims", cut[:strings.IndexByte(cut, '.')] + unsigned(t, "", jwttest.Claims(issuer, now, map[string]any{"sub": "root"})) + cut[strings.LastIndexByte(cut, '.'):], jwt.ErrSignature},
		{"no signature", cut[:strings.LastIndexByte(cut, '.')+1], jwt.ErrSignature},
		{"key of its own", headed(map[jose.HeaderKey]any{"jwk": other.JWK()}), nil}, // the key in it is not looked at
		{"no exp", with(map[string]any{"exp": nil}), jwt.ErrNoEnd},
		{"exp as text", with(map[string]any{"exp": "4102444800"}), jwt.ErrClaim},
		{"EXP", with(map[string]any{"exp": nil, "EXP": 4102444800}), jwt.ErrNoEnd},
		{"expired", with(map[string]any{"exp": now.Add(-jwt.Leeway).Unix()}), jwt.ErrExpired},
		{"expired within the leeway", with(map[string]any{"exp": now.Add(-jwt.Leeway + time.Second).Unix()}), nil},
		{"nbf in the future", with(map[string]any{"nbf": now.Add(jwt.Leeway + time.Second).Unix()}), jwt.ErrNotYet},
		{"nbf within the leeway", with(map[string]any{"nbf": now.Add(jwt.Leeway).Unix()}), nil},
		{"iat in the future", with(map[string]any{"iat": now.Add(2 * jwt.Leeway).Unix()}), jwt.ErrNotYet},
		{"negative exp", with(map[string]any{"exp": -1}), jwt.ErrClaim},
		{"endless exp", with(map[string]any{"exp": 1e300}), jwt.ErrClaim},
		{"wrong iss", with(map[string]any{"iss": issuer + "/"}), jwt.ErrIssuer},
		{"no iss", with(map[string]any{"iss": nil}), jwt.ErrIssuer},
		{"iss as list", with(map[string]any{"iss": []string{issuer}}), jwt.ErrClaim},
		{"sub as number", with(map[string]any{"sub": 7}), jwt.ErrClaim},
		{"wrong aud", with(map[string]any{"aud": []string{"other", "API"}}), jwt.ErrAudience},
		{"no aud", with(map[string]any{"aud": nil}), jwt.ErrAudience},
		{"aud as object", with(map[string]any{"aud": map[string]any{"api": true}}), jwt.ErrClaim},
		{"aud with a number", with(map[string]any{"aud": []any{"api", 1}}), jwt.ErrClaim},
		{"crit", critical(t, key, `"exp"`), jwt.ErrCritical},
		{"crit b64", critical(t, key, `"b64"`), jwt.ErrCritical},
		{"nested JWE", nested, jwt.ErrForm},
		{"token in a token", key.SignPayload(t, []byte(with(nil)), map[jose.HeaderKey]any{"cty": "JWT"}), jwt.ErrForm},
		{"payload is a list", key.SignPayload(t, []byte(`[]`), nil), jwt.ErrForm},
		{"payload is null", key.SignPayload(t, []byte(`null`), nil), jwt.ErrForm},
		{"two payloads", key.SignPayload(t, []byte(`{}{}`), nil), jwt.ErrForm},
		{"giant", with(map[string]any{"x": strings.Repeat("x", jwt.MaxTokenBytes)}), jwt.ErrSize},
		{"garbage", "a.b.c", jwt.ErrForm},
		{"empty", "", jwt.ErrForm},
		{"two dots", "..", jwt.ErrAlgorithm},
		{"JSON", `{"payload":"","signatures":[]}`, jwt.ErrForm},
		{"padded", with(nil) + "=", jwt.ErrForm},
		{"line break", strings.Replace(with(nil), ".", "\n.", 1), jwt.ErrForm},
		{"two tokens", with(nil) + " " + with(nil), jwt.ErrForm},
	} {
		want := []string{"api", "web"}
		if c.want == nil || !errors.Is(c.want, jwt.ErrAudience) {
			want = nil
		}
		token, err := verify(c.token, keysOf(t, key), want)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if err != nil && token != nil && (token.Claims() != nil || token.Payload() != "") {
			t.Errorf("%s: claims are shown of a token that is not valid", c.name)
		}
		if err != nil && len(c.token) > 8 && strings.Contains(err.Error(), c.token[:8]) {
			t.Errorf("%s: the error repeats the token", c.name)
		}
	}
}

// critical makes a token with a critical header, which go-jose would not.
func critical(t *testing.T, key jwttest.Key, name string) string {
	t.Helper()
	text := unsigned(t, `{"alg":"ES256","kid":"k1","b64":true,"crit":[`+name+`]}`, jwttest.Claims(issuer, now, nil))
	other := key.SignPayload(t, []byte("{}"), nil)
	return text + other[strings.LastIndexByte(other, '.'):]
}

func TestOneOfTheAudiencesIsEnough(t *testing.T) {
	t.Parallel()
	key := jwttest.NewKey(t, "", jose.EdDSA)
	for _, aud := range []any{"api", []string{"x", "web"}} {
		if _, err := verify(key.Sign(t, jwttest.Claims(issuer, now, map[string]any{"aud": aud}), nil), keysOf(t, key), []string{"api", "web"}); err != nil {
			t.Errorf("%v: %v", aud, err)
		}
	}
}

func TestATokenWithoutKidIsTriedWithEachKeyThatFits(t *testing.T) {
	t.Parallel()
	signer := jwttest.NewKey(t, "", jose.ES256)
	var keys []jwttest.Key
	for i := range 7 {
		keys = append(keys, jwttest.NewKey(t, fmt.Sprint(i), jose.ES256))
	}
	named := signer
	named.ID = "last"
	raw := signer.Sign(t, jwttest.Claims(issuer, now, nil), nil)
	if _, err := verify(raw, keysOf(t, append(keys, named)...), nil); err != nil {
		t.Errorf("the eighth key: %v", err)
	}
	keys = append(keys, jwttest.NewKey(t, "8", jose.ES256))
	if _, err := verify(raw, keysOf(t, append(keys, named)...), nil); !errors.Is(err, jwt.ErrSignature) {
		t.Errorf("the ninth key: %v, want a bound", err)
	}
}

func TestWithoutKeysNoTokenIsValid(t *testing.T) {
	t.Parallel()
	raw := jwttest.NewKey(t, "", jose.ES256).Sign(t, jwttest.Claims(issuer, now, nil), nil)
	for _, keys := range []*jwt.Keys{nil, {}} {
		if _, err := verify(raw, keys, nil); !errors.Is(err, jwt.ErrNoKeys) {
			t.Errorf("%v", err)
		}
	}
}

// BenchmarkVerify is a token that was not seen before.
func BenchmarkVerify(b *testing.B) {
	for _, alg := range []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.EdDSA} {
		b.Run(string(alg), func(b *testing.B) {
			key := jwttest.NewKey(b, "k", alg)
			keys, raw := keysOf(b, key), key.Sign(b, jwttest.Claims(issuer, now, map[string]any{"aud": "api"}), nil)
			for b.Loop() {
				if _, err := verify(raw, keys, []string{"api"}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	key := jwttest.NewKey(f, "k", jose.ES256)
	keys := keysOf(f, key)
	f.Add(key.Sign(f, jwttest.Claims(issuer, now, nil), nil))
	f.Add(key.Sign(f, jwttest.Claims(issuer, now, map[string]any{"aud": []string{"a"}, "nbf": 1.5}), nil))
	f.Add("e30.e30.")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, raw string) {
		token, err := jwt.Parse(raw)
		if err != nil {
			return
		}
		err = token.Verify(keys, nil, now)
		if (err == nil) != (token.Claims() != nil) || (err == nil) != (token.Payload() != "") {
			t.Fatalf("claims are shown of what is not verified, or not of what is: %v: %q", err, raw)
		}
	})
}
