// This file holds the test of a server whose configuration file names Vault.

package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aval-id/aval/ca/keys/keystest"
	"github.com/aval-id/aval/ca/vault/vaulttest"
	"github.com/aval-id/aval/rotation"
)

// quiet takes what a process says while it runs.
type quiet struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (q *quiet) Write(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.text.Write(p)
}

func (q *quiet) String() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.text.String()
}

func TestConfigurationFileLeadsToVaultAndStatusSaysHowItGoes(t *testing.T) {
	v := vaulttest.Start(t)
	v.Mount(t, "transit", "transit")
	v.Write(t, "transit/keys/aval-root", map[string]any{"type": "ecdsa-p384"})
	dir, err := os.MkdirTemp("", "aval") // short, for the socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket, health := filepath.Join(dir, "admin.sock"), freeAddress(t)
	config := filepath.Join(dir, "server.yaml")
	write(t, dir, "server.yaml", fmt.Sprintf(`trustDomain: example.org
dataDir: %s/data
listen: 127.0.0.1:0
httpListen: %s
adminSocket: %s
minTTL: 1s
intermediateTTL: 8s
upstream:
  kind: vault-transit
  timeout: 5s
  vault:
    address: %s
    caFile: %s
    key: aval-root
    auth: {method: token, tokenSource: "file:%s"}
`, dir, health, socket, v.Address, v.CAFile, keystest.SecretFile(t, v.Token)))
	ctx, stop := context.WithCancel(t.Context())
	var said quiet
	end := make(chan int, 1)
	go func() { end <- run(ctx, []string{"server", "--config", config}, streams{out: &said, err: &said}) }()
	defer func() {
		stop()
		if code := <-end; code != exitDone {
			t.Errorf("the server ended with %d: %s", code, said.String())
		}
	}()
	// status waits until the answer of ca status holds a text.
	status := func(want string) (code int) {
		t.Helper()
		patience, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for {
			code, out, stderr := execute(t, "", "ca", "status", "--admin-socket", socket)
			if strings.Contains(out, want) {
				return code
			}
			if !rotation.Pause(patience, 50*time.Millisecond) {
				t.Fatalf("no %q in %s%s; the server said: %s", want, out, stderr, said.String())
			}
		}
	}
	if code := status("signed by: own root, vault transit key https://"); code != exitDone {
		t.Errorf("exit %d", code)
	}
	if code, text := request(t, http.MethodGet, "http://"+health+"/metrics"); code != http.StatusOK || !strings.Contains(text, "aval_server_upstream_failures_total 0") {
		t.Errorf("%d: no metric of the upstream", code)
	}
	v.Seal(t)
	if code := status("status 503"); code != exitNegative {
		t.Errorf("exit %d where the last signature failed", code)
	}
	if strings.Contains(said.String(), v.Token) {
		t.Error("the token is in the log")
	}
}
