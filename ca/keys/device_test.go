// This file holds what the tests of devices share, and those of the TPM.

package keys

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/rotation"
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

// swtpm starts a TPM in software and returns its socket, which may be used
// for one client at a time.
func swtpm(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("swtpm")
	if err != nil {
		t.Skip("swtpm is not installed: run .ci/setup")
	}
	dir, err := os.MkdirTemp("", "aval-tpm") // short: a socket's path has 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ctx, stop := context.WithCancel(context.Background())
	socket := filepath.Join(dir, "sock")
	cmd := exec.CommandContext(ctx, path, "socket", "--tpm2", "--tpmstate", "dir="+dir,
		"--ctrl", "type=unixio,path="+filepath.Join(dir, "ctrl"), "--server", "type=unixio,path="+socket,
		"--flags", "not-need-init,startup-clear")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(); cmd.Wait() })
	deadline := time.Now().Add(30 * time.Second)
	for {
		if _, err := os.Stat(socket); err == nil {
			return socket
		}
		if time.Now().After(deadline) {
			t.Fatal("swtpm did not come up")
		}
		if !rotation.Pause(t.Context(), 10*time.Millisecond) {
			t.Fatal("the test ended")
		}
	}
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
	socket := swtpm(t)
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
