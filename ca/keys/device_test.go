// This file holds what the tests of devices share, and those of the TPM.

package keys

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/aval-id/aval/ca/keys/keystest"
	"github.com/aval-id/aval/identity"
)

func certify(random io.Reader, key crypto.Signer) (*x509.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"},
		NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(random, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// deviceHolds proves what every device must do: keys are made once, come back
// the same, sign, and are of the type that was asked for.
func deviceHolds(t *testing.T, uri func(name string) string, types ...identity.KeyType) {
	t.Helper()
	for _, kind := range types {
		u := uri(string(kind))
		if _, err := Open(t.Context(), u); !errors.Is(err, ErrNotFound) {
			t.Fatalf("%s: open of a missing key: %v", kind, err)
		}
		key, created, err := OpenOrCreate(t.Context(), u, kind)
		if err != nil || !created {
			t.Fatalf("%s: %v %v", kind, created, err)
		}
		sign(t, key)
		if got, err := identity.KeyTypeOf(key.Public()); err != nil || got != kind {
			t.Errorf("made %s: got %s %v", kind, got, err)
		}
		if err := key.Close(); err != nil {
			t.Error(err)
		}
		again, created, err := OpenOrCreate(t.Context(), u, kind)
		if err != nil || created || !same(key, again) {
			t.Fatalf("%s: another key came back: %v", kind, err)
		}
		sign(t, again)
		if err := again.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestTPMHoldsTheKey(t *testing.T) {
	socket, _ := keystest.TPM(t)
	dir := filepath.Join(t.TempDir(), "tpm")
	deviceHolds(t, func(name string) string {
		return "tpmkms:name=" + name + ";device=" + socket + ";storage-directory=" + dir
	}, identity.P256, identity.P384, identity.RSA2048)
	if _, _, err := OpenOrCreate(t.Context(), "tpmkms:name=e;device="+socket+";storage-directory="+dir, identity.Ed25519); err == nil {
		t.Error("the TPM made an Ed25519 key")
	}
}

func TestTPMThatIsGoneIsAnError(t *testing.T) {
	dir := t.TempDir()
	os.Chmod(dir, 0o700)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	_, _, err = OpenOrCreate(t.Context(), "tpmkms:name=root;device="+filepath.Join(dir, "s")+";storage-directory="+dir, "")
	if err == nil {
		t.Fatal("a key without a TPM")
	}
}
