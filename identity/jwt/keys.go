// This file holds Keys: the public keys of one issuer, parsed from a JWK set.

package jwt

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

// Bounds of a key set.
const (
	MaxKeySetBytes = 1 << 20
	maxKeys        = 64
	maxKeyIDBytes  = 256
	minRSABits     = 2048
	maxRSABits     = 8192
)

// Keys are the keys that an issuer signs tokens with. They are immutable; a
// nil or zero Keys verifies nothing.
type Keys struct {
	list []key
	json []byte
}

// key is one public key and what it may verify.
type key struct {
	id         string
	public     any
	algorithms []jose.SignatureAlgorithm
}

// algorithms are all that a token may be signed by. Neither none nor those
// with a shared secret are among them.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
	jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// errUnused marks a key that is fit for something else than verifying tokens.
var errUnused = errors.New("is not for signatures that are known here")

// ParseKeys parses a JWK set strictly, as its author would want to hear of
// faults: each key must be a public one that verifies tokens.
func ParseKeys(data []byte) (*Keys, error) { return parseKeys(data, true) }

// ReadKeys parses a JWK set that somebody else publishes. Keys that are for
// other ends, or of a kind that isn't known, are left out (RFC 7517 §5); a
// set that has none left is refused, and so is one with a secret in it.
func ReadKeys(data []byte) (*Keys, error) { return parseKeys(data, false) }

func parseKeys(data []byte, strict bool) (*Keys, error) {
	if len(data) > MaxKeySetBytes {
		return nil, fmt.Errorf("JWK set: %d bytes are more than %d", len(data), MaxKeySetBytes)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, errors.New(`JWK set: is not a JSON object such as {"keys": [...]}`)
	}
	switch {
	case len(set.Keys) == 0:
		return nil, errors.New(`JWK set: "keys" is missing or empty`)
	case len(set.Keys) > maxKeys:
		return nil, fmt.Errorf("JWK set: %d keys are more than %d", len(set.Keys), maxKeys)
	}
	k := &Keys{}
	kept := make([]json.RawMessage, 0, len(set.Keys))
	for i, raw := range set.Keys {
		one, public, err := parseKey(raw)
		if errors.Is(err, errUnused) && !strict {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("JWK set: keys[%d] %w", i, err)
		}
		k.list = append(k.list, one)
		kept = append(kept, public)
	}
	if len(k.list) == 0 {
		return nil, errors.New("JWK set: no key in it verifies tokens")
	}
	var err error
	if k.json, err = json.Marshal(map[string][]json.RawMessage{"keys": kept}); err != nil {
		return nil, fmt.Errorf("JWK set: %w", err)
	}
	return k, nil
}

// rawKey is what of a JWK is looked at. Certificates and thumbprints beside a
// key say nothing here: its set is what is trusted.
type rawKey struct {
	Type       string   `json:"kty"`
	ID         string   `json:"kid,omitempty"`
	Use        string   `json:"use,omitempty"`
	Algorithm  string   `json:"alg,omitempty"`
	Operations []string `json:"key_ops,omitempty"`
	Curve      string   `json:"crv,omitempty"`
	X          string   `json:"x,omitempty"`
	Y          string   `json:"y,omitempty"`
	N          string   `json:"n,omitempty"`
	E          string   `json:"e,omitempty"`
	D          string   `json:"d,omitempty"`
	K          string   `json:"k,omitempty"`
	P          string   `json:"p,omitempty"`
}

// parseKey returns a key, and the public members of it. No error repeats what
// is written, which may be a secret.
func parseKey(data []byte) (key, json.RawMessage, error) {
	var raw rawKey
	if err := json.Unmarshal(data, &raw); err != nil {
		return key{}, nil, errors.New("is not a JSON object of texts")
	}
	switch {
	case raw.D != "" || raw.P != "":
		return key{}, nil, errors.New("is a private key: publish its public half alone, and replace it, for it is no secret any more")
	case raw.K != "" || raw.Type == "oct":
		return key{}, nil, errors.New("is a shared secret: tokens are verified by public keys alone")
	case len(raw.ID) > maxKeyIDBytes:
		return key{}, nil, fmt.Errorf("has a kid of more than %d bytes", maxKeyIDBytes)
	case raw.Use != "" && raw.Use != "sig", raw.Operations != nil && !slices.Contains(raw.Operations, "verify"):
		return key{}, nil, errUnused
	case raw.Type != "RSA" && raw.Type != "EC" && raw.Type != "OKP":
		return key{}, nil, fmt.Errorf("%w: its kty is none of RSA, EC, OKP", errUnused)
	}
	public, err := json.Marshal(raw)
	if err != nil {
		return key{}, nil, errors.New("cannot be printed")
	}
	var parsed jose.JSONWebKey
	if err := parsed.UnmarshalJSON(public); err != nil || !parsed.Valid() {
		return key{}, nil, fmt.Errorf("%w: it is no whole key of a known curve", errUnused)
	}
	k := key{id: raw.ID, public: parsed.Key}
	if k.algorithms, err = verifies(parsed.Key); err != nil {
		return key{}, nil, err
	}
	if raw.Algorithm != "" {
		k.algorithms = slices.DeleteFunc(k.algorithms, func(a jose.SignatureAlgorithm) bool { return string(a) != raw.Algorithm })
	}
	if len(k.algorithms) == 0 {
		return key{}, nil, fmt.Errorf("%w: its alg is none that its kind of key has here", errUnused)
	}
	return k, public, nil
}

// verifies returns the algorithms of a key.
func verifies(public any) ([]jose.SignatureAlgorithm, error) {
	switch k := public.(type) {
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return nil, fmt.Errorf("%w: an RSA key has from %d to %d bits", errUnused, minRSABits, maxRSABits)
		}
		return []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}, nil
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return []jose.SignatureAlgorithm{jose.ES256}, nil
		case elliptic.P384():
			return []jose.SignatureAlgorithm{jose.ES384}, nil
		case elliptic.P521():
			return []jose.SignatureAlgorithm{jose.ES512}, nil
		}
	case ed25519.PublicKey:
		return []jose.SignatureAlgorithm{jose.EdDSA}, nil
	}
	return nil, fmt.Errorf("%w: its curve is none of P-256, P-384, P-521, Ed25519", errUnused)
}

// JSON returns the set with the public members of its keys alone. The caller
// must not change it.
func (k *Keys) JSON() []byte {
	if k == nil {
		return nil
	}
	return k.json
}

// Len returns how many keys there are.
func (k *Keys) Len() int {
	if k == nil {
		return 0
	}
	return len(k.list)
}

// IDs returns the kid of each key that has one, in the order of the set.
func (k *Keys) IDs() []string {
	if k == nil {
		return nil
	}
	var ids []string
	for _, one := range k.list {
		if one.id != "" {
			ids = append(ids, one.id)
		}
	}
	return ids
}

// maxTries bounds the signatures that are checked for one token.
const maxTries = 8

// candidates are the keys that may have signed: of the named ID or of none,
// and of the algorithm. A token that names no key may be of any of them.
func (k *Keys) candidates(id string, alg jose.SignatureAlgorithm) []key {
	if k == nil {
		return nil
	}
	var out []key
	for _, one := range k.list {
		if (id == "" || one.id == "" || one.id == id) && slices.Contains(one.algorithms, alg) && len(out) < maxTries {
			out = append(out, one)
		}
	}
	return out
}
