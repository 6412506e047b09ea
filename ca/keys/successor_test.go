// This file holds the tests of keys that follow one another.

package keys

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aval-id/aval/identity"
)

func TestAKeyFollowsBesideAndIsDestroyedWhereItIsOurs(t *testing.T) {
	dir := t.TempDir()
	os.Chmod(dir, 0o700)
	next, err := Beside(FileURI(filepath.Join(dir, "root.key")), "root-2")
	if err != nil || next != FileURI(filepath.Join(dir, "root-2.key")) {
		t.Fatal(next, err)
	}
	if _, made, err := OpenOrCreate(t.Context(), next, identity.P256); err != nil || !made {
		t.Fatal(made, err)
	}
	if gone, err := Destroy(next, t.TempDir()); err != nil || gone {
		t.Fatalf("a key elsewhere was destroyed: %v %v", gone, err)
	}
	for range 2 { // once more changes nothing
		if gone, err := Destroy(next, dir); err != nil || !gone {
			t.Fatal(gone, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "root-2.key")); !os.IsNotExist(err) {
		t.Fatal(err)
	}
	sealed := FileURI(filepath.Join(dir, "root.key")) + ";passphrase-source=env:P"
	if next, err = Beside(sealed, "root-2"); err != nil {
		t.Fatal(err)
	}
	if l, err := parseURI(next); err != nil || l.get("path") != filepath.Join(dir, "root-2.key") || l.get("passphrase-source") != "env:P" {
		t.Fatalf("beside an encrypted key: %q %v", next, err)
	}
	if _, err := Beside("pkcs11:token=t;object=o", "root-2"); err == nil || !strings.Contains(err.Error(), "name the new key's URI") {
		t.Fatal(err)
	}
}

func TestAURIWithASecretIsNotRecorded(t *testing.T) {
	for uri, fine := range map[string]bool{
		"softkms:path=/a/root.key":                    true,
		"pkcs11:token=t;object=o?pin-source=/run/pin": true,
		"pkcs11:token=t;object=o?pin-value=hunter2":   false,
		"pkcs11:token=t;object=o;pin-value=hunter2":   false,
		"softkms:path=/a/root.key;passphrase=hunter2": false,
		"tpmkms:name=root?password=hunter2":           false,
		"nothing that is a URI hunter2 %zz":           false,
	} {
		_, err := parseURI(uri)
		if (err == nil) != fine || err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", uri, err)
		}
	}
}
