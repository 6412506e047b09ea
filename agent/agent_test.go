// This file holds what the tests of the whole agent share: a running agent,
// its clients, and the wait for what other goroutines bring about.

package agent

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/identity/document"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

func TestMain(m *testing.M) {
	if os.Getenv(joinChild) != "" {
		os.Exit(runJoinChild())
	}
	if os.Getenv(execChild) != "" {
		os.Exit(runExecChild())
	}
	goleak.VerifyTestMain(m)
}

// testAgent is a running agent.
type testAgent struct {
	*Agent
	cfg    Config
	cancel context.CancelFunc
	done   chan error
}

func testConfig(t testing.TB, s *fakeServer) Config {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return Config{
		Server: s.addr, JoinToken: "good-token", BundleHash: s.hash(), DataDir: filepath.Join(dir, "data"),
		Socket: filepath.Join(dir, "agent.sock"), Logger: testLogger(t), RetryMax: 100 * time.Millisecond, Version: "test",
	}
}

// testLogger writes where AVAL_TEST_LOG is set.
func testLogger(testing.TB) *slog.Logger {
	if os.Getenv("AVAL_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return slog.New(slog.DiscardHandler)
}

func start(t testing.TB, cfg Config) *testAgent {
	t.Helper()
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ta := &testAgent{Agent: a, cfg: cfg, cancel: cancel, done: make(chan error, 1)}
	go func() { ta.done <- a.Run(ctx) }()
	t.Cleanup(func() { ta.stop(t) })
	return ta
}

func (a *testAgent) stop(t testing.TB) {
	t.Helper()
	a.cancel()
	select {
	case err := <-a.done:
		a.done <- err
		if err != nil && t.Context().Err() == nil {
			t.Errorf("agent: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the agent did not stop")
	}
}

// eventually waits for a condition that other goroutines bring about.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("not within ten seconds: %s", what)
		case <-tick.C:
		}
	}
}

func (a *testAgent) ready(t testing.TB) {
	t.Helper()
	eventually(t, "agent ready", func() bool { return a.Ready() == nil })
}

func registration(name, id string, more ...string) string {
	workload := fmt.Sprintf("{unix.uid: %d}", os.Getuid())
	var extra strings.Builder
	for _, m := range more {
		if strings.HasPrefix(m, "{") {
			workload = m
		} else {
			extra.WriteString("  " + m + "\n")
		}
	}
	return fmt.Sprintf("---\napiVersion: aval.dev/v1alpha1\nkind: Registration\nmetadata: {name: %s, namespace: shop, labels: {app: %s}}\nspec:\n  id: %s\n  workload: %s\n%s",
		name, name, id, workload, extra.String())
}

func regKey(name string) document.Key {
	return document.Key{Kind: document.Registration, Namespace: "shop", Name: name}
}

func (a *testAgent) client(t testing.TB) *workloadapi.Client {
	t.Helper()
	c, err := workloadapi.New(t.Context(), workloadapi.WithAddr("unix://"+a.cfg.Socket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (a *testAgent) dial(t testing.TB) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+a.cfg.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// stream opens FetchX509SVID as a client that obeys the specification.
func (a *testAgent) stream(t testing.TB) workload.SpiffeWorkloadAPI_FetchX509SVIDClient {
	t.Helper()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true")
	s, err := workload.NewSpiffeWorkloadAPIClient(a.dial(t)).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ids(resp *workload.X509SVIDResponse) []string {
	var out []string
	for _, s := range resp.GetSvids() {
		out = append(out, s.GetSpiffeId())
	}
	return out
}

const web, api = "spiffe://example.org/ns/shop/sa/web", "spiffe://example.org/ns/shop/sa/api"

func ownDigest(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

func openFiles(t testing.TB) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}
