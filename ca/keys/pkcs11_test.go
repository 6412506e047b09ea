// This file holds the tests of keys in a PKCS#11 token, with SoftHSM.

//go:build full && cgo

package keys

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aval-id/aval/identity"
)

const softHSM = "/usr/lib/softhsm/libsofthsm2.so"

// softToken makes a token and returns the URI of a key in it.
func softToken(t *testing.T) func(name, pin string) string {
	t.Helper()
	if _, err := os.Stat(softHSM); err != nil {
		t.Skip("SoftHSM is not installed: run .ci/setup")
	}
	dir := t.TempDir()
	tokens := filepath.Join(dir, "tokens")
	conf := filepath.Join(dir, "softhsm2.conf")
	if err := errors.Join(os.Mkdir(tokens, 0o700), os.Chmod(dir, 0o700),
		os.WriteFile(conf, fmt.Appendf(nil, "directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", tokens), 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", conf)
	if out, err := exec.Command("softhsm2-util", "--init-token", "--free", "--label", "ca", "--pin", canary, "--so-pin", "5678").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return func(name, pin string) string {
		return fmt.Sprintf("pkcs11:module-path=%s;token=ca;id=%x;object=%s?pin-source=file:%s", softHSM, name, name, pin)
	}
}

func TestTokenHoldsTheKey(t *testing.T) {
	uri := softToken(t)
	pin := secretFile(t, canary+"\n")
	deviceHolds(t, func(name string) string { return uri(name, pin) }, identity.P256, identity.P384, identity.RSA2048)
	if _, _, err := OpenOrCreate(t.Context(), uri("e", pin), identity.Ed25519); err == nil {
		t.Error("an Ed25519 key was made")
	}
	// A PIN that is wrong, and one that is missing, open nothing and are not
	// repeated.
	wrong := secretFile(t, "not-"+canary)
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
