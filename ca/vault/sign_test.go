// This file holds what signs the JWTs of the tests.

package vault

import (
	"crypto"
	"crypto/rand"
	"encoding/asn1"
	"math/big"
	"testing"
)

// ecdsaSign returns the two numbers of an ECDSA signature.
func ecdsaSign(t *testing.T, key crypto.Signer, digest []byte) (r, s *big.Int) {
	t.Helper()
	der, err := key.Sign(rand.Reader, digest, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	var sig struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &sig); err != nil {
		t.Fatal(err)
	}
	return sig.R, sig.S
}
