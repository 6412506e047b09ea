// This file holds the tests of a server whose intermediates Vault signs: it
// goes on while Vault does not.

package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/aval-id/aval/ca/server"
	"github.com/aval-id/aval/ca/vault/vaulttest"
	"github.com/aval-id/aval/rotation"
)

// running is a server that runs until stop, or the test's end.
type running struct {
	*server.Server
	stop func() error
	log  *output
}

func startServer(t testing.TB, cfg server.Config) *running {
	t.Helper()
	r := &running{log: &output{}}
	dir, err := os.MkdirTemp("", "aval") // short, for the socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg.TrustDomain, cfg.Listen, cfg.AdminSocket = domain, "127.0.0.1:0", filepath.Join(dir, "a.sock")
	cfg.AuthorityReserve, cfg.Logger = -1, r.log.logger()
	s, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	r.Server = s
	r.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	until(t, func() bool { return s.Credentials() != nil && s.Ready() == nil })
	return r
}

// until waits for a condition, generously.
func until(t testing.TB, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !holds() {
		if !rotation.Pause(ctx, 20*time.Millisecond) {
			t.Fatal("it did not come")
		}
	}
}

// metric returns the value of one of the server's metrics.
func (r *running) metric(t testing.TB, name string) float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	for _, c := range r.Collectors() {
		registry.MustRegister(c)
	}
	for _, family := range must(registry.Gather()) {
		if family.GetName() == name {
			m := family.GetMetric()[0]
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// issuer names the intermediate under which the server's own SVID stands.
func (r *running) issuer() string {
	return r.Credentials().SVID.Chain[1].SerialNumber.String()
}

// backdated lets intermediates of a few seconds have a middle: Vault counts
// their beginning 30 seconds back.
func backdated(w http.ResponseWriter, r *http.Request) bool {
	text, _ := io.ReadAll(r.Body)
	var body map[string]any
	if strings.HasSuffix(r.URL.Path, "/sign-intermediate") && json.Unmarshal(text, &body) == nil {
		body["not_before_duration"] = "60s"
		text, _ = json.Marshal(body)
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
	return false
}

func TestServerIssuesOnWhileVaultIsAway(t *testing.T) {
	t.Parallel()
	v := vaulttest.Start(t)
	withPolicies(t, v)
	v.Mount(t, "pki", "pki")
	root := v.Write(t, "pki/root/generate/internal", map[string]any{"common_name": "R", "ttl": "87600h", "not_before_duration": "90s"})
	path := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(path, []byte(root.Data["certificate"].(string)), 0o644); err != nil {
		t.Fatal(err)
	}
	client := connect(t, v, appRole(t, v, nil))
	v.Fault(backdated)
	cfg := server.Config{DataDir: filepath.Join(t.TempDir(), "data"), Upstream: must(NewPKI(client, PKIConfig{RootFile: path})),
		MinTTL: time.Second, ServerTTL: 2 * time.Second, IntermediateTTL: 12 * time.Second, SigningTimeout: 2 * time.Second}
	r := startServer(t, cfg)
	first := r.issuer()
	if hash := r.Credentials().SVID.Chain; len(hash) != 3 {
		t.Fatalf("%d certificates", len(hash))
	}
	until(t, func() bool { return r.issuer() != first }) // renewed at half its life
	v.Seal(t)
	began := r.Credentials().Generation
	until(t, func() bool { return r.metric(t, "aval_server_upstream_failures_total") >= 2 })
	if r.Credentials().Generation == began {
		t.Error("the live intermediate issued nothing")
	}
	if text := r.log.String(); !strings.Contains(text, "the one in force issues on") || !strings.Contains(text, "status 503") {
		t.Error("nothing is said of it: ", text)
	}
	// In time: the server says that it is not ready before the end comes.
	until(t, func() bool { return r.Ready() != nil })
	if err := r.Ready(); !contains(err, "of its lifetime left", "vault pki") {
		t.Error(err)
	}
	v.Unseal(t)
	until(t, func() bool { return r.Ready() == nil })
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	// With a live intermediate a server starts without Vault.
	cfg.IntermediateTTL = time.Hour
	r = startServer(t, cfg)
	until(t, func() bool { return time.Until(r.Credentials().SVID.Chain[1].NotAfter) > 50*time.Minute })
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	v.Fault(func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) })
	startServer(t, cfg)
}

func TestSlowVaultIsOnNobodysPath(t *testing.T) {
	t.Parallel()
	v := vaulttest.Start(t)
	withPolicies(t, v)
	root := withRoot(t, v, "pki", "ec", 256)
	client := connect(t, v, appRole(t, v, nil))
	cfg := server.Config{DataDir: filepath.Join(t.TempDir(), "data"), Upstream: must(NewPKI(client, PKIConfig{RootFile: rootFile(t, root)})),
		MinTTL: time.Second, ServerTTL: 2 * time.Second, IntermediateTTL: 34 * time.Second, SigningTimeout: time.Minute}
	r := startServer(t, cfg)
	asked := make(chan struct{})
	v.Fault(func(w http.ResponseWriter, req *http.Request) bool {
		if strings.HasSuffix(req.URL.Path, "/sign-intermediate") {
			select {
			case asked <- struct{}{}:
			default:
			}
			return vaulttest.Silent(w, req)
		}
		return false
	})
	select {
	case <-asked:
	case <-time.After(time.Minute):
		t.Fatal("the intermediate was not renewed")
	}
	// While one signature waits, the server's own SVID is renewed twice.
	began := r.Credentials().Generation
	until(t, func() bool { return r.Credentials().Generation >= began+2 })
}

func TestRootOfATransitKeySigns(t *testing.T) {
	t.Parallel()
	v := vaulttest.Start(t)
	withPolicies(t, v)
	v.Mount(t, "transit", "transit")
	v.Write(t, "transit/keys/aval-root", map[string]any{"type": "rsa-2048"})
	transit := must(NewTransit(connect(t, v, appRole(t, v, nil)), TransitConfig{Key: "aval-root"}))
	cfg := server.Config{DataDir: filepath.Join(t.TempDir(), "data"), RootKeyHome: transit,
		MinTTL: time.Second, ServerTTL: 2 * time.Second, IntermediateTTL: 8 * time.Second}
	r := startServer(t, cfg)
	first := r.issuer()
	until(t, func() bool { return r.issuer() != first })
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	cfg.IntermediateTTL = time.Hour
	r = startServer(t, cfg)
	until(t, func() bool { return time.Until(r.Credentials().SVID.Chain[1].NotAfter) > 50*time.Minute })
	r.stop()
	v.Seal(t)
	r = startServer(t, cfg)
	if !strings.Contains(r.log.String(), "the root's key can't be reached") {
		t.Error("nothing is said of a root that is away")
	}
}
