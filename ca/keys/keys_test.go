// This file holds the tests of key files, of URIs and of secrets.

package keys

import (
	"crypto"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aval-id/aval/ca/keys/keystest"
	"github.com/aval-id/aval/identity"
)

// canary is a secret that nothing may repeat.
const canary = "canary-8f1d4c2a77"

func same(a, b crypto.Signer) bool {
	return a.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(b.Public())
}

func TestKeyIsMadeOnceForItsOwnerAlone(t *testing.T) {
	for _, kind := range []identity.KeyType{identity.P256, identity.P384, identity.Ed25519, identity.RSA2048} {
		path := filepath.Join(t.TempDir(), "root.key")
		uri := FileURI(path)
		if _, err := Open(t.Context(), uri); !errors.Is(err, ErrNotFound) {
			t.Fatalf("open of a missing key: %v", err)
		}
		first, created, err := OpenOrCreate(t.Context(), uri, kind)
		if err != nil || !created {
			t.Fatal(created, err)
		}
		again, created, err := OpenOrCreate(t.Context(), uri, identity.P256)
		if err != nil || created {
			t.Fatal(created, err)
		}
		if got, err := identity.KeyTypeOf(again.Public()); err != nil || got != kind || !same(first, again) {
			t.Fatalf("made %s, and a key of type %s came back: %v", kind, got, err)
		}
		if fi, _ := os.Stat(path); fi.Mode().Perm() != 0o600 {
			t.Fatalf("mode %v", fi.Mode())
		}
	}
}

func TestLoosePermissionsAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	if _, _, err := OpenOrCreate(t.Context(), FileURI(path), ""); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path     string
		bad, fix os.FileMode
	}{{path, 0o640, 0o600}, {filepath.Dir(path), 0o777, 0o700}} {
		os.Chmod(c.path, c.bad)
		if _, err := Open(t.Context(), FileURI(path)); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("%s with mode %v: %v", c.path, c.bad, err)
		}
		os.Chmod(c.path, c.fix)
	}
}

func TestEncryptedKeyOpensWithItsPassphraseAlone(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	if err := os.WriteFile(filepath.Join(dir, "root"), []byte(canary+"\n"), 0o440); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AVAL_TEST_PASSPHRASE", canary)
	path := filepath.Join(t.TempDir(), "root.key")
	with := func(source string) string { return FileURI(path) + ";passphrase-source=" + source }
	made, created, err := OpenOrCreate(t.Context(), with("credential:root"), "")
	if err != nil || !created {
		t.Fatal(created, err)
	}
	text, _ := os.ReadFile(path)
	if !strings.HasPrefix(string(text), "-----BEGIN ENCRYPTED PRIVATE KEY-----") {
		t.Fatal("the key lies there as it is")
	}
	for _, source := range []string{"credential:root", "env:AVAL_TEST_PASSPHRASE", "file:" + keystest.SecretFile(t, canary+"\n"), keystest.SecretFile(t, canary)} {
		key, err := Open(t.Context(), with(source))
		if err != nil || !same(made, key) {
			t.Errorf("%s: %v", source, err)
		}
	}
	wrong := keystest.SecretFile(t, "not-"+canary)
	for uri, want := range map[string]string{
		FileURI(path):                  "passphrase-source=",
		with("file:" + wrong):          "does not open",
		with("env:AVAL_TEST_NOTHING"):  "is empty",
		with("credential:absent"):      "credential:absent",
		with("file:/absent/aval/file"): "no such file",
	} {
		_, err := Open(t.Context(), uri)
		if err == nil || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v, want %q", uri, err, want)
		}
	}
}

func TestEncryptedKeyIsOpenedByOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed: run .ci/setup")
	}
	passphrase := keystest.SecretFile(t, canary)
	path := filepath.Join(t.TempDir(), "root.key")
	if _, _, err := OpenOrCreate(t.Context(), FileURI(path)+";passphrase-source=file:"+passphrase, identity.P384); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(openssl, "pkey", "-in", path, "-passin", "file:"+passphrase, "-noout", "-text_pub").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "P-384") {
		t.Fatalf("%v: %s", err, out)
	}
	// The way from a plain key to an encrypted one that the errors name.
	plain := filepath.Join(t.TempDir(), "plain.key")
	if _, _, err := OpenOrCreate(t.Context(), FileURI(plain), ""); err != nil {
		t.Fatal(err)
	}
	uri := FileURI(plain) + ";passphrase-source=file:" + passphrase
	if _, err := Open(t.Context(), uri); err == nil || !strings.Contains(err.Error(), "openssl pkcs8 -topk8 -v2 aes-256-cbc -iter 600000") {
		t.Fatalf("a plain key where a passphrase is named: %v", err)
	}
	out, err = exec.Command(openssl, "pkcs8", "-topk8", "-v2", "aes-256-cbc", "-iter", "600000",
		"-in", plain, "-out", plain+".new", "-passout", "file:"+passphrase).CombinedOutput()
	if err := errors.Join(err, os.Chmod(plain+".new", 0o600), os.Rename(plain+".new", plain)); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := Open(t.Context(), uri); err != nil {
		t.Fatal(err)
	}
}

func TestShortPassphraseMakesNoKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	_, _, err := OpenOrCreate(t.Context(), FileURI(path)+";passphrase-source=file:"+keystest.SecretFile(t, "short"), "")
	if err == nil || !strings.Contains(err.Error(), "at least 12") {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Fatal("a key was written")
	}
}

func TestSecretsAreNeverInURIsOrErrors(t *testing.T) {
	for _, uri := range []string{
		"pkcs11:module-path=/x;token=ca;id=01;object=root?pin-value=" + canary,
		"pkcs11:module-path=/x;token=ca;id=01;object=root;pin=" + canary,
		"softkms:path=/x/root.key;passphrase=" + canary,
		"softkms:path=/x/root.key;passphrase-source=" + canary,
		"softkms:path=/x/root.key;password=" + canary + "%",
		"pkcs11:%zz?pin-value=" + canary,
		"pkcs11:token=a?pin-value=%zz" + canary,
		canary,
		"azurekms:name=a;vault=b;client-secret=" + canary,
	} {
		_, err := Open(t.Context(), uri)
		if err == nil || errors.Is(err, ErrNotFound) || strings.Contains(err.Error(), canary) {
			t.Errorf("%q: %v", uri, err)
		}
	}
	for _, text := range []string{canary, "file:" + canary, "credential:a/" + canary, "env:=" + canary} {
		if _, err := ParseSecret(text); err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestURIsSayWhatIsWrongWithThem(t *testing.T) {
	for uri, want := range map[string]string{
		"":                                     "want SCHEME",
		"nonsense":                             "want SCHEME",
		"softkms:path=relative":                "not an absolute path",
		"softkms:path=/a;path=/b":              "2 times",
		"softkms:path=/a;paht=/b":              `no attribute "paht"`,
		"ssh:name=x":                           "no key lives at",
		"tpmkms:storage-directory=/x":          "name=",
		"tpmkms:name=root":                     "storage-directory",
		"pkcs11:module-path=/x;id=01;object=o": "exactly one of",
		"pkcs11:module-path=/x;token=a;serial=b;id=01;object=o":     "exactly one of",
		"pkcs11:module-path=/x;token=a;id=01":                       "object=",
		"pkcs11:module-path=x;token=a;id=01;object=o":               "absolute",
		"pkcs11:module-path=/x;token=a;id=01;object=o;pin-source=1": "pin-source",
		"awskms:region=eu-west-1":                                   "key-id=",
		"cloudkms:resource=projects/p/locations/l":                  "cryptoKeyVersions",
		"azurekms:name=root":                                        "vault=",
		"azurekms:name=root;vault=v;hsm=true":                       `no attribute "hsm"`,
	} {
		if err := Check(uri); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", uri, err, want)
		}
	}
}

func TestHomesOutsideThisBinaryAreNamed(t *testing.T) {
	for _, uri := range []string{
		"pkcs11:module-path=/x.so;token=ca;id=4242;object=root?pin-source=file:/etc/aval/pin",
		"awskms:key-id=alias/aval-root;region=eu-central-1",
		"cloudkms:resource=projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
		"azurekms:name=root;vault=aval",
	} {
		err := Check(uri)
		if full && err != nil {
			t.Errorf("%s: %v", uri, err)
		}
		if !full && (!errors.Is(err, ErrNotBuiltIn) || !strings.Contains(err.Error(), "make build-full")) {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

// sign proves that a key signs, and that its signature holds.
func sign(t *testing.T, key crypto.Signer) {
	t.Helper()
	der, err := certify(rand.Reader, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := der.CheckSignatureFrom(der); err != nil {
		t.Fatal(err)
	}
}

func FuzzURI(f *testing.F) {
	f.Add("softkms:path=/a/b;passphrase-source=env:X")
	f.Add("pkcs11:module-path=/x;token=ca;id=4242;object=root?pin-source=file:/etc/aval/pin")
	f.Add("cloudkms:resource=projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := parseURI(text)
		if err != nil {
			return
		}
		again, err := parseURI(u.text())
		if err != nil && len(u.values) > 0 && len(u.text()) <= maxURI {
			t.Fatalf("%q prints as %q: %v", text, u.text(), err)
		}
		if err == nil && len(again.values) != len(u.values) {
			t.Fatalf("%q prints as %q", text, u.text())
		}
	})
}

func FuzzSecret(f *testing.F) {
	f.Add("file:/etc/aval/pin")
	f.Add("credential:root")
	f.Add("env:PIN")
	f.Add("/etc/aval/pin")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSecret(text)
		if err != nil {
			return
		}
		if again, err := ParseSecret(s.String()); err != nil || again != s {
			t.Fatalf("%q prints as %q: %v", text, s, err)
		}
	})
}
