// Package vaulttest starts a real Vault core for tests, on loopback and over
// TLS, and stands between it and its clients where a test wants it slow,
// broken or gone. The server is the program of .ci/vault.
package vaulttest

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
)

// Server is a running Vault. Everything ends with the test.
type Server struct {
	// Address is the https URL of the proxy before Vault, CAFile holds what
	// its certificate leads to, and Token is a root token.
	Address, CAFile, Token string
	// Direct is Vault's own URL, where client certificates reach it.
	Direct string

	unseal string
	fault  atomic.Pointer[func(w http.ResponseWriter, r *http.Request) (handled bool)]
	// Seen counts the requests that came.
	Seen atomic.Int64
}

// Binary returns the path of the server's program, or skips the test.
func Binary(t testing.TB) string {
	t.Helper()
	path := os.Getenv("AVAL_TEST_VAULT")
	if path == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Skip("no cache directory to find a Vault server in: ", err)
		}
		path = filepath.Join(cache, "aval", "vaultserver")
	}
	if _, err := os.Stat(path); err != nil {
		t.Skipf("there is no Vault server at %s: run .ci/setup, which builds it (ten minutes, once), or name one with AVAL_TEST_VAULT", path)
	}
	return path
}

// Start starts a Vault.
func Start(t testing.TB) *Server {
	t.Helper()
	binary := Binary(t)
	dir := t.TempDir()
	s := &Server{CAFile: filepath.Join(dir, "ca.pem")}
	proxy := httptest.NewUnstartedServer(nil) // has a certificate for 127.0.0.1
	proxy.StartTLS()
	t.Cleanup(proxy.Close)
	pair := proxy.TLS.Certificates[0]
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writePair(t, pair, cert, key)
	if err := copyFile(cert, s.CAFile); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), binary, "-cert", cert, "-key", key)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatal("the Vault server did not start: ", err)
	}
	var said struct{ Address, Token, Unseal string }
	if err := json.Unmarshal(line, &said); err != nil {
		t.Fatal(err)
	}
	s.Address, s.Direct, s.Token, s.unseal = proxy.URL, said.Address, said.Token, said.Unseal
	proxy.Config.Handler = s.proxy(t, said.Address)
	return s
}

// proxy passes requests on, unless a fault takes them.
func (s *Server) proxy(t testing.TB, address string) http.Handler {
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	text, err := os.ReadFile(s.CAFile)
	if err != nil || !pool.AppendCertsFromPEM(text) {
		t.Fatal("CA file: ", err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	t.Cleanup(transport.CloseIdleConnections)
	pass := &httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u) }}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.Seen.Add(1)
		if fault := s.fault.Load(); fault != nil && (*fault)(w, r) {
			return
		}
		pass.ServeHTTP(w, r)
	})
}

// Fault puts a fault before Vault, nil takes it away. It returns true where it
// has answered.
func (s *Server) Fault(fault func(w http.ResponseWriter, r *http.Request) bool) {
	if fault == nil {
		s.fault.Store(nil)
		return
	}
	s.fault.Store(&fault)
}

// Silent is the fault of a Vault that takes a request and never answers.
func Silent(_ http.ResponseWriter, r *http.Request) bool {
	io.Copy(io.Discard, r.Body) // only then does the server see the client leave
	<-r.Context().Done()
	return true
}

// Client returns a client with a token, past the faults.
func (s *Server) Client(t testing.TB, token string) *api.Client {
	t.Helper()
	cfg := api.DefaultConfig()
	cfg.Address = s.Direct
	if err := errors.Join(cfg.Error, cfg.ConfigureTLS(&api.TLSConfig{CACert: s.CAFile})); err != nil {
		t.Fatal(err)
	}
	client, err := api.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cfg.HttpClient.CloseIdleConnections)
	client.SetToken(token)
	return client
}

// Write writes to a path as the root.
func (s *Server) Write(t testing.TB, path string, data map[string]any) *api.Secret {
	t.Helper()
	secret, err := s.Client(t, s.Token).Logical().Write(path, data)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// Mount mounts a secrets engine, Enable a way to log in.
func (s *Server) Mount(t testing.TB, path, kind string) {
	t.Helper()
	if err := s.Client(t, s.Token).Sys().Mount(path, &api.MountInput{Type: kind, Config: api.MountConfigInput{MaxLeaseTTL: "87600h"}}); err != nil {
		t.Fatal(err)
	}
}

// Enable mounts a way to log in.
func (s *Server) Enable(t testing.TB, path, kind string) {
	t.Helper()
	if err := s.Client(t, s.Token).Sys().EnableAuthWithOptions(path, &api.EnableAuthOptions{Type: kind}); err != nil {
		t.Fatal(err)
	}
}

// Policy writes a policy.
func (s *Server) Policy(t testing.TB, name, rules string) {
	t.Helper()
	if err := s.Client(t, s.Token).Sys().PutPolicy(name, rules); err != nil {
		t.Fatal(err)
	}
}

// Seal seals the server.
func (s *Server) Seal(t testing.TB) {
	t.Helper()
	if err := s.Client(t, s.Token).Sys().Seal(); err != nil {
		t.Fatal(err)
	}
}

// Unseal unseals the server and waits until it is active.
func (s *Server) Unseal(t testing.TB) {
	t.Helper()
	client := s.Client(t, s.Token)
	if _, err := client.Sys().Unseal(s.unseal); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		if _, err := client.Auth().Token().LookupSelfWithContext(ctx); err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal("the Vault server did not become active")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
