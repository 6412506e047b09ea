// This file holds the tests of keys in a PKCS#11 token, with SoftHSM.

//go:build full && cgo

package keys

import (
	"errors"
	"strings"
	"testing"

	"github.com/aval-id/aval/ca/keys/keystest"
	"github.com/aval-id/aval/identity"
)

func TestTokenHoldsTheKey(t *testing.T) {
	uri := keystest.Token(t, canary)
	pin := keystest.SecretFile(t, canary+"\n")
	deviceHolds(t, func(name string) string { return uri(name, pin) }, identity.P256, identity.P384, identity.RSA2048)
	if _, _, err := OpenOrCreate(t.Context(), uri("e", pin), identity.Ed25519); err == nil {
		t.Error("an Ed25519 key was made")
	}
	// A PIN that is wrong, and one that is missing, open nothing and are not
	// repeated.
	wrong := keystest.SecretFile(t, "not-"+canary)
	for _, pin := range []string{wrong, "/absent/pin"} {
		_, err := Open(t.Context(), uri("P-256", pin))
		if err == nil || errors.Is(err, ErrNotFound) || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v", pin, err)
		}
	}
	_, err := Open(t.Context(), strings.Replace(uri("P-256", pin), "token=ca", "token=other", 1))
	if err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("another token: %v", err)
	}
}
