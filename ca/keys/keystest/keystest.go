// Package keystest makes homes for keys in tests: a TPM and a PKCS#11 token in
// software, and files for secrets.
package keystest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/aval-id/aval/rotation"
)

// SecretFile writes a secret that its owner alone may read, and returns its
// path.
func SecretFile(t testing.TB, text string) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "secret")
	if err := errors.Join(os.Chmod(dir, 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	return path
}

// TPM starts a TPM in software. It returns its socket, which serves one client
// at a time, and what ends it; the test's end does too.
func TPM(t testing.TB) (socket string, stop func()) {
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
	socket = filepath.Join(dir, "sock")
	cmd := exec.Command(path, "socket", "--tpm2", "--tpmstate", "dir="+dir,
		"--ctrl", "type=unixio,path="+filepath.Join(dir, "ctrl"), "--server", "type=unixio,path="+socket,
		"--flags", "not-need-init,startup-clear")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	stop = func() {
		if !ended {
			ended = true
			cmd.Process.Kill()
			cmd.Wait()
		}
	}
	t.Cleanup(stop)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		if _, err := os.Stat(socket); err == nil {
			return socket, stop
		}
		if !rotation.Pause(ctx, 10*time.Millisecond) {
			t.Fatal("swtpm did not come up")
		}
	}
}

// SoftHSM is the library of the token in software.
const SoftHSM = "/usr/lib/softhsm/libsofthsm2.so"

// Token makes a PKCS#11 token with a PIN, and returns what gives the URI of a
// key in it. It sets the environment of the test.
func Token(t *testing.T, pin string) func(name, pinFile string) string {
	t.Helper()
	if _, err := os.Stat(SoftHSM); err != nil {
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
	if out, err := exec.Command("softhsm2-util", "--init-token", "--free", "--label", "ca", "--pin", pin, "--so-pin", "5678").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return func(name, pinFile string) string {
		return fmt.Sprintf("pkcs11:module-path=%s;token=ca;id=%x;object=%s?pin-source=file:%s", SoftHSM, name, name, pinFile)
	}
}
