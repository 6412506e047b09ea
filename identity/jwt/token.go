// This file holds Token: a token's parts before its signature is looked at,
// and its verification.

package jwt

import (
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// MaxTokenBytes bounds a token.
const MaxTokenBytes = 16 << 10

// Leeway is how far clocks may differ: a token ends that much later, and may
// begin that much earlier.
const Leeway = time.Minute

// Why a token is not valid. None of them repeats anything of the token.
var (
	ErrSize      = errors.New("token is too large")
	ErrForm      = errors.New("token is not a JWS of three parts with JSON in it")
	ErrAlgorithm = errors.New("token is signed by an algorithm that is not taken")
	ErrCritical  = errors.New("token demands an extension that is not known")
	ErrIssuer    = errors.New("token is of another issuer")
	ErrAudience  = errors.New("token is for another audience")
	ErrSignature = errors.New("token is signed by no key of its issuer")
	ErrNoKeys    = errors.New("keys of the token's issuer are not there yet")
	ErrNoEnd     = errors.New("token has no exp")
	ErrExpired   = errors.New("token has expired")
	ErrNotYet    = errors.New("token is not valid yet")
	ErrClaim     = errors.New("token has a claim of a wrong type")
)

// Token is a token whose parts are known. Nothing in it may be believed
// before Verify.
type Token struct {
	jws      *jose.JSONWebSignature
	raw      string
	claims   map[string]any
	issuer   string
	end      time.Time
	notFrom  time.Time // nbf and iat, whichever is later; zero where neither is there
	verified bool
}

// Parse takes a token apart (RFC 7515 §3.1). It checks all but signature,
// time, issuer and audience.
func Parse(raw string) (*Token, error) {
	if len(raw) > MaxTokenBytes {
		return nil, ErrSize
	}
	if strings.Count(raw, ".") != 2 || strings.ContainsFunc(raw, func(r rune) bool { return !isBase64URL(r) && r != '.' }) {
		return nil, ErrForm
	}
	jws, err := jose.ParseSignedCompact(raw, algorithms)
	if err != nil {
		var other *jose.ErrUnexpectedSignatureAlgorithm
		if errors.As(err, &other) {
			return nil, ErrAlgorithm
		}
		return nil, ErrForm
	}
	if len(jws.Signatures) != 1 {
		return nil, ErrForm
	}
	extra := jws.Signatures[0].Protected.ExtraHeaders
	for _, name := range []jose.HeaderKey{"crit", "b64"} {
		if _, ok := extra[name]; ok {
			return nil, ErrCritical
		}
	}
	t := &Token{jws: jws, raw: raw}
	if err := json.Unmarshal(jws.UnsafePayloadWithoutVerification(), &t.claims); err != nil || t.claims == nil {
		return nil, ErrForm
	}
	return t, t.readClaims()
}

// isBase64URL reports whether base64url has the letter (RFC 4648 §5). Decoders
// are known to skip others.
func isBase64URL(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_'
}

// readClaims reads the registered claims (RFC 7519 §4.1).
func (t *Token) readClaims() error {
	for _, name := range []string{"iss", "sub", "azp", "jti"} {
		v, ok := t.claims[name]
		text, isText := v.(string)
		if ok && !isText {
			return ErrClaim
		}
		if name == "iss" {
			t.issuer = text
		}
	}
	switch aud := t.claims["aud"].(type) {
	case nil, string:
	case []any:
		for _, a := range aud {
			if _, ok := a.(string); !ok {
				return ErrClaim
			}
		}
	default:
		return ErrClaim
	}
	for _, name := range []string{"exp", "nbf", "iat"} {
		v, ok := t.claims[name]
		if !ok {
			if name == "exp" {
				return ErrNoEnd
			}
			continue
		}
		at, ok := numericDate(v)
		switch {
		case !ok:
			return ErrClaim
		case name == "exp":
			t.end = at
		case at.After(t.notFrom):
			t.notFrom = at
		}
	}
	return nil
}

// numericDate reads seconds since 1970 (RFC 7519 §2).
func numericDate(v any) (time.Time, bool) {
	seconds, ok := v.(float64)
	const most = 253402300799 // the year 9999
	if !ok || math.IsNaN(seconds) || seconds < 0 || seconds > most {
		return time.Time{}, false
	}
	whole, part := math.Modf(seconds)
	return time.Unix(int64(whole), int64(part*1e9)), true
}

// Issuer returns what the token says of its issuer, which chooses the keys.
func (t *Token) Issuer() string { return t.issuer }

// Verify checks signature, time and audience. The caller has chosen the keys
// by the Issuer. Without audiences any will do; else the token must be for
// one of them.
func (t *Token) Verify(keys *Keys, audiences []string, now time.Time) error {
	if keys.Len() == 0 {
		return ErrNoKeys
	}
	if !now.Before(t.end.Add(Leeway)) {
		return ErrExpired
	}
	if now.Add(Leeway).Before(t.notFrom) {
		return ErrNotYet
	}
	if len(audiences) > 0 && !t.isFor(audiences) {
		return ErrAudience
	}
	head := t.jws.Signatures[0].Protected
	for _, k := range keys.candidates(head.KeyID, jose.SignatureAlgorithm(head.Algorithm)) {
		if _, err := t.jws.Verify(k.public); err == nil {
			t.verified = true
			return nil
		}
	}
	return ErrSignature
}

func (t *Token) isFor(audiences []string) bool {
	switch aud := t.claims["aud"].(type) {
	case string:
		return slices.Contains(audiences, aud)
	case []any:
		for _, a := range aud {
			if text, ok := a.(string); ok && slices.Contains(audiences, text) {
				return true
			}
		}
	}
	return false
}

// Claims returns what a verified token says, as encoding/json decodes it, and
// nil of one that is not. The caller must not change it.
func (t *Token) Claims() map[string]any {
	if !t.verified {
		return nil
	}
	return t.claims
}

// End returns the first moment at which the token is not valid any more, the
// leeway included.
func (t *Token) End() time.Time { return t.end.Add(Leeway) }

// Payload returns the claims of a verified token as the token has them, in
// base64url, and "" of one that is not.
func (t *Token) Payload() string {
	if !t.verified {
		return ""
	}
	_, rest, _ := strings.Cut(t.raw, ".")
	payload, _, _ := strings.Cut(rest, ".")
	return payload
}
