// This file holds KeyType: the kinds of key that certificates may have.

package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"slices"
	"strings"
)

// KeyType is a kind of key, as people write it. The zero value is the default,
// P-256.
type KeyType string

// The kinds of key.
const (
	P256    KeyType = "P-256"
	P384    KeyType = "P-384"
	Ed25519 KeyType = "Ed25519"
	RSA2048 KeyType = "RSA-2048"
	RSA3072 KeyType = "RSA-3072"
	RSA4096 KeyType = "RSA-4096"
)

// KeyTypes lists every kind of key.
func KeyTypes() []KeyType { return []KeyType{P256, P384, Ed25519, RSA2048, RSA3072, RSA4096} }

// ParseKeyType parses the name of a kind, whatever its case. Nothing is the
// default.
func ParseKeyType(text string) (KeyType, error) {
	if text == "" {
		return P256, nil
	}
	for _, t := range KeyTypes() {
		if strings.EqualFold(text, string(t)) {
			return t, nil
		}
	}
	if len(text) > 40 {
		text = text[:40] + "…"
	}
	return "", fmt.Errorf("key type %q is none of %v", text, KeyTypes())
}

// OrDefault returns t, or P-256 for the zero value.
func (t KeyType) OrDefault() KeyType {
	if t == "" {
		return P256
	}
	return t
}

// String returns the name of the kind.
func (t KeyType) String() string { return string(t.OrDefault()) }

// Bits returns the length of an RSA modulus, 0 for other kinds.
func (t KeyType) Bits() int {
	switch t {
	case RSA2048:
		return 2048
	case RSA3072:
		return 3072
	case RSA4096:
		return 4096
	case P256, P384, Ed25519:
	}
	return 0
}

// Generate makes a key of the kind.
func (t KeyType) Generate() (crypto.Signer, error) {
	switch t.OrDefault() {
	case P256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case P384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case RSA2048, RSA3072, RSA4096:
		return rsa.GenerateKey(rand.Reader, t.Bits())
	}
	return nil, fmt.Errorf("key type %q is none of %v", string(t), KeyTypes())
}

// KeyTypeOf returns the kind of a public key. A curve, a length or an
// algorithm that no certificate of ours may have is an error that says which
// would do.
func KeyTypeOf(pub crypto.PublicKey) (KeyType, error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return P256, nil
		case elliptic.P384():
			return P384, nil
		}
		return "", fmt.Errorf("key on curve %s: only P-256 and P-384 are accepted", k.Curve.Params().Name)
	case ed25519.PublicKey:
		return Ed25519, nil
	case *rsa.PublicKey:
		sizes := []KeyType{RSA2048, RSA3072, RSA4096}
		n := k.N.BitLen()
		if i := slices.IndexFunc(sizes, func(t KeyType) bool { return t.Bits() == n }); i >= 0 {
			return sizes[i], nil
		}
		if n < 2048 || n > 4096 {
			return "", fmt.Errorf("RSA key of %d bits: 2048 to 4096 are accepted", n)
		}
		return KeyType(fmt.Sprintf("RSA-%d", n)), nil
	}
	return "", fmt.Errorf("key of kind %T is not accepted", pub)
}
