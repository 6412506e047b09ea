// This file holds the tests of a root's key in a transit engine.

package vault

import (
	"errors"
	"testing"
	"time"

	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/ca/keys"
	"github.com/aval-id/aval/ca/vault/vaulttest"
	"github.com/aval-id/aval/identity"
)

func TestTransitHoldsTheKeyOfARoot(t *testing.T) {
	v := vaulttest.Start(t)
	withPolicies(t, v)
	v.Mount(t, "transit", "transit")
	client := connect(t, v, appRole(t, v, nil))
	transit := must(NewTransit(client, TransitConfig{Key: "aval-root"}))
	if _, err := transit.Open(t.Context()); !errors.Is(err, keys.ErrNotFound) || !contains(err, "vault write -f transit/keys/aval-root") {
		t.Fatalf("a missing key: %v", err)
	}
	now := time.Now()
	for kind, want := range map[string]identity.KeyType{
		"ecdsa-p256": identity.P256, "ecdsa-p384": identity.P384, "ed25519": identity.Ed25519, "rsa-2048": identity.RSA2048,
	} {
		v.Write(t, "transit/keys/aval-root", map[string]any{"type": kind})
		key, err := transit.Open(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if got := must(identity.KeyTypeOf(key.Public())); got != want {
			t.Errorf("%s: a key of type %s", kind, got)
		}
		draft := must(ca.DraftRoot(domain, key, now, time.Hour))
		cert, err := ca.NewIssuer(sink{}).ReleaseRoot(t.Context(), draft)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		// A rotation in Vault leaves the root's key as it is.
		v.Write(t, "transit/keys/aval-root/rotate", nil)
		again := must(transit.Open(t.Context()))
		if _, err := ca.NewRoot(domain, cert, again, now); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		v.Write(t, "transit/keys/aval-root/config", map[string]any{"deletion_allowed": true})
		must(v.Client(t, v.Token).Logical().Delete("transit/keys/aval-root"))
	}
	for kind, want := range map[string]string{"aes256-gcm96": "has no", "ecdsa-p521": "P-521"} {
		v.Write(t, "transit/keys/aval-root", map[string]any{"type": kind})
		if _, err := transit.Open(t.Context()); !contains(err, want) {
			t.Errorf("%s: %v", kind, err)
		}
		v.Write(t, "transit/keys/aval-root/config", map[string]any{"deletion_allowed": true})
		must(v.Client(t, v.Token).Logical().Delete("transit/keys/aval-root"))
	}
	v.Write(t, "transit/keys/aval-root", map[string]any{"type": "ecdsa-p256"})
	key := must(transit.Open(t.Context()))
	v.Seal(t)
	if _, err := transit.Open(t.Context()); !errors.Is(err, keys.ErrAway) {
		t.Errorf("sealed: %v", err)
	}
	if _, err := ca.DraftRoot(domain, key, now, time.Hour); err != nil {
		t.Fatal(err)
	}
}
