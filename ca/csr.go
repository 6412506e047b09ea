// This file holds ProvenKey: a public key whose holder proved possession.

package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
)

// MaxCSRBytes bounds a certificate request before it is parsed.
const MaxCSRBytes = 16 << 10

// ProvenKey is a public key of an accepted kind whose possession was proven,
// by a CSR's signature or by a TLS handshake. The zero value is invalid; only
// the checks make one.
type ProvenKey struct {
	pub  crypto.PublicKey
	spki []byte
	hash [32]byte // SHA-256 of the SubjectPublicKeyInfo
}

// ProveCSR checks a PKCS#10 request: its size, its kind of key (P-256, P-384,
// Ed25519, RSA of 2048 to 4096 bits) and its signature (RFC 2986 §4.2). Its
// subject, extensions and attributes are ignored.
func ProveCSR(der []byte) (ProvenKey, error) {
	if len(der) > MaxCSRBytes {
		return ProvenKey{}, invalid(ReasonBadCSR, "certificate request is %d bytes, more than %d", len(der), MaxCSRBytes)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return ProvenKey{}, invalid(ReasonBadCSR, "certificate request is not PKCS#10: %w", err)
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return ProvenKey{}, err
	}
	if err := csr.CheckSignature(); err != nil {
		return ProvenKey{}, invalid(ReasonBadCSR, "certificate request's proof of possession: %w", err)
	}
	return ProvenKey{pub: csr.PublicKey, spki: csr.RawSubjectPublicKeyInfo, hash: sha256.Sum256(csr.RawSubjectPublicKeyInfo)}, nil
}

// ProveHandshake takes the key of the peer's leaf from a completed handshake,
// in which the peer signed with it (RFC 8446 §4.4.3).
func ProveHandshake(cs tls.ConnectionState) (ProvenKey, error) {
	if !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 {
		return ProvenKey{}, denied(ReasonNoCertificate, "peer presented no certificate")
	}
	leaf := cs.PeerCertificates[0]
	return ProvenKey{pub: leaf.PublicKey, spki: leaf.RawSubjectPublicKeyInfo, hash: sha256.Sum256(leaf.RawSubjectPublicKeyInfo)}, nil
}

// IsZero reports whether k is the invalid zero value.
func (k ProvenKey) IsZero() bool { return k.pub == nil }

// Hash returns the hex SHA-256 of the key's SubjectPublicKeyInfo.
func (k ProvenKey) Hash() string { return hex.EncodeToString(k.hash[:]) }

func checkKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
		return invalid(ReasonBadCSR, "key on curve %s: only P-256 and P-384 are accepted", k.Curve.Params().Name)
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 4096 {
			return invalid(ReasonBadCSR, "RSA key of %d bits: 2048 to 4096 are accepted", n)
		}
		return nil
	}
	return invalid(ReasonBadCSR, "key of kind %T is not accepted", pub)
}
