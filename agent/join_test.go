// This file holds the tests of joining: the crash at any moment, and what a
// person sees of a wrong configuration.

package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/identitytest"
	"github.com/aval-id/aval/identity/mtls"
)

// joinChild makes the test binary run an agent: its value is the server, the
// hash, the data directory and the socket, separated by spaces.
const joinChild = "AVAL_TEST_JOIN"

func runJoinChild() int {
	f := strings.Fields(os.Getenv(joinChild))
	a, err := New(Config{
		Server: f[0], BundleHash: f[1], DataDir: f[2], Socket: f[3], JoinToken: "good-token",
		Logger: slog.New(slog.DiscardHandler), RetryMax: 50 * time.Millisecond,
	})
	if err == nil {
		go func() {
			for a.Ready() != nil {
				time.Sleep(time.Millisecond)
			}
			fmt.Println("ready")
		}()
		err = a.Run(context.Background())
	}
	fmt.Println("error:", err)
	return 1
}

func TestKilledWhileJoiningTheSameTokenAndKeyGoOn(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	cfg := testConfig(t, s)
	run := func() (*exec.Cmd, *bufio.Scanner) {
		t.Helper()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s %s", joinChild, s.addr, s.hash(), cfg.DataDir, cfg.Socket))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, bufio.NewScanner(out)
	}
	// Killed within the server's handling: the server knows the key, the
	// agent has no certificate.
	var child *exec.Cmd
	kill := make(chan struct{}, 1)
	s.mu.Lock()
	s.afterSave = func() {
		child.Process.Kill()
		child.Wait()
		select {
		case kill <- struct{}{}:
		default:
		}
	}
	s.mu.Unlock()
	for range 3 {
		s.mu.Lock() // the hook runs under this lock and sees child
		child, _ = run()
		s.mu.Unlock()
		<-kill
		if _, err := os.Stat(filepath.Join(cfg.DataDir, "node", "credential.pem")); err == nil {
			t.Fatal("a credential without an answer")
		}
	}
	s.mu.Lock()
	s.afterSave = nil
	s.mu.Unlock()
	// Killed at other moments, a little later each time.
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	for i := range rounds {
		cmd, _ := run()
		time.AfterFunc(time.Duration(i*4)*time.Millisecond, func() { cmd.Process.Kill() })
		cmd.Wait()
	}
	cmd, out := run()
	if !out.Scan() || out.Text() != "ready" {
		t.Fatalf("after the crashes: %q", out.Text())
	}
	cmd.Process.Kill()
	cmd.Wait()
	if n := len(s.nodes["spiffe://example.org/aval/node/n1"]); n != 1 {
		t.Fatalf("%d keys are on record", n)
	}
	// And later: no token any more, and none is needed.
	s.mu.Lock()
	s.tokens = map[string]string{}
	s.mu.Unlock()
	cmd, out = run()
	if !out.Scan() || out.Text() != "ready" {
		t.Fatalf("after the join: %q", out.Text())
	}
	cmd.Process.Kill()
	cmd.Wait()
}

func TestConfigRefusesWhatCannotWork(t *testing.T) {
	good := Config{Server: "127.0.0.1:1", JoinToken: "t", BundleHash: "sha256:" + strings.Repeat("0", 64), DataDir: t.TempDir() + "/d", Socket: "/tmp/x.sock"}
	for name, change := range map[string]func(*Config){
		"server address":   func(c *Config) { c.Server = "nowhere" },
		"bundle hash":      func(c *Config) { c.BundleHash = "sha1:00" },
		"both given":       func(c *Config) { c.BundleFile = "x" },
		"not absolute":     func(c *Config) { c.Socket = "x.sock" },
		"longer than":      func(c *Config) { c.Socket = "/" + strings.Repeat("x", 200) },
		"join token":       func(c *Config) { c.JoinToken = "" },
		"verify the serve": func(c *Config) { c.BundleHash = "" },
		"trust domain":     func(c *Config) { c.TrustDomain = "Example" },
		"negative":         func(c *Config) { c.MaxConnections = -1 },
		"mode":             func(c *Config) { c.DataDir = looseDir(t) },
	} {
		cfg := good
		change(&cfg)
		a, err := New(cfg)
		if err == nil {
			a.Close()
			t.Errorf("%s: accepted", name)
		} else if name != "both given" && !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func looseDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir() + "/loose"
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(dir+"/key", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// serveAs serves the node API with an SVID of another path.
func serveAs(t *testing.T, s *fakeServer, l net.Listener, td *identitytest.TrustDomain, path string) {
	t.Helper()
	svid := td.SVID(t, path)
	svid, err := identity.NewSVID(append(svid.Chain, td.Root), svid.Key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s.serve(l, mtls.OptionalServerConfig(mtls.Fixed{C: identity.NewCredentials(svid, 1, td.Bundle)}, mtls.NewVerifier(0), nil))
}

func encode(td *identitytest.TrustDomain) []byte {
	return identity.EncodeCertificates(td.Bundle.Roots())
}
