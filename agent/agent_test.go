// This file holds the tests of the whole agent against a server, with real
// sockets, TLS, files and the released go-spiffe client.

package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aval-id/aval/agent/history"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/identitytest"
	"github.com/aval-id/aval/identity/wire"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
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
	extra := ""
	for _, m := range more {
		if strings.HasPrefix(m, "{") {
			workload = m
		} else {
			extra += "  " + m + "\n"
		}
	}
	return fmt.Sprintf("---\napiVersion: aval.dev/v1alpha1\nkind: Registration\nmetadata: {name: %s, namespace: shop, labels: {app: %s}}\nspec:\n  id: %s\n  workload: %s\n%s",
		name, name, id, workload, extra)
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

func TestGoSpiffeFetchesAndVerifies(t *testing.T) {
	td := identitytest.New(t, "example.org")
	s := newFakeServer(t, td)
	s.apply(registration("web", "/ns/shop/sa/web", "dnsNames: [web.shop]", "hint: front"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	c := a.client(t)
	x, err := c.FetchX509Context(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	svid := x.DefaultSVID()
	if svid.ID.String() != web || svid.Hint != "front" || len(svid.Certificates) != 2 {
		t.Fatalf("got %s, hint %q, %d certificates", svid.ID, svid.Hint, len(svid.Certificates))
	}
	if b, ok := x.Bundles.Get(svid.ID.TrustDomain()); !ok || !b.HasX509Authority(td.Root) {
		t.Fatal("the bundle has not the root")
	}
	if _, err := c.FetchX509Bundles(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.FetchJWTBundles(t.Context()); status.Code(err) != codes.Unimplemented {
		t.Fatalf("JWT bundles: %v", err)
	}
}

func TestTheSecurityHeaderIsRequiredExactlyOnceAndTrue(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.apply(registration("web", "/ns/shop/sa/web"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	c := workload.NewSpiffeWorkloadAPIClient(a.dial(t))
	for name, headers := range map[string][]string{
		"none": nil, "wrong case": {"workload.spiffe.io", "True"}, "empty": {"workload.spiffe.io", ""},
		"twice": {"workload.spiffe.io", "true", "workload.spiffe.io", "true"},
	} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), headers...)
		var codesSeen []codes.Code
		x, err := c.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err == nil {
			_, err = x.Recv()
		}
		codesSeen = append(codesSeen, status.Code(err))
		b, err := c.FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
		if err == nil {
			_, err = b.Recv()
		}
		codesSeen = append(codesSeen, status.Code(err))
		_, err = c.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{})
		codesSeen = append(codesSeen, status.Code(err))
		_, err = c.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{})
		codesSeen = append(codesSeen, status.Code(err))
		for i, code := range codesSeen {
			if code != codes.InvalidArgument {
				t.Errorf("%s: call %d answered %s", name, i, code)
			}
		}
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true")
	if _, err := c.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("FetchJWTSVID: %v", err)
	}
	if _, err := c.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("ValidateJWTSVID: %v", err)
	}
}

func TestNoMatchingRegistrationIsPermissionDenied(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.apply(registration("other", "/other", `{unix.uid: 4294967}`))
	a := start(t, testConfig(t, s))
	a.ready(t)
	if _, err := a.stream(t).Recv(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "unix.uid=") {
		t.Fatalf("got %v", err)
	}
}

func TestBeforeItsServerAnAgentServesNothingThenRecovers(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.apply(registration("web", "/ns/shop/sa/web"))
	addr := s.addr
	s.stop()
	a := start(t, testConfig(t, s))
	eventually(t, "socket open", func() bool {
		c, err := net.Dial("unix", a.cfg.Socket)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
	if _, err := a.stream(t).Recv(); status.Code(err) != codes.Unavailable {
		t.Fatalf("got %v", err)
	}
	if a.Ready() == nil {
		t.Fatal("ready without a server")
	}
	s.start(addr)
	a.ready(t)
	if _, err := a.client(t).FetchX509SVID(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestEveryMessageHoldsTheWholeSetAndChangesComeByEvent(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.apply(registration("web", "/ns/shop/sa/web", "hint: same"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	st := a.stream(t)
	recv := func() *workload.X509SVIDResponse {
		t.Helper()
		m, err := st.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	if got := ids(recv()); !slices.Equal(got, []string{web}) {
		t.Fatal(got)
	}
	s.apply(registration("api", "/ns/shop/sa/api", "hint: same"))
	m := recv()
	if got := ids(m); !slices.Equal(got, []string{api, web}) {
		t.Fatal(got)
	}
	if m.GetSvids()[0].GetHint() != "same" || m.GetSvids()[1].GetHint() != "" {
		t.Fatal("hints are not unique")
	}
	// A registration of the same ID adds nothing; a change of labels neither.
	s.apply(registration("zweb", "/ns/shop/sa/web"))
	start := time.Now()
	s.apply("", regKey("api"))
	if got := ids(recv()); !slices.Equal(got, []string{web}) {
		t.Fatal(got)
	}
	t.Logf("gone after %v", time.Since(start))
	s.apply("", regKey("web"))
	// web still has its second registration: same ID, another SVID.
	if got := ids(recv()); !slices.Equal(got, []string{web}) {
		t.Fatal(got)
	}
	s.apply("", regKey("zweb"))
	if _, err := st.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Fatalf("after the last registration went: %v", err)
	}
	if got := a.ring.Stats(time.Now()).SVIDs; got != 0 {
		eventually(t, "keys dropped", func() bool { return a.ring.Stats(time.Now()).SVIDs == 0 })
	}
}

func TestSVIDsRotateOnAnOpenStreamWithANewKey(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.svidTTL = 2 * time.Second
	s.apply(registration("web", "/ns/shop/sa/web"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	st := a.stream(t)
	var keys, certs []string
	for range 3 {
		m, err := st.Recv()
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, string(m.GetSvids()[0].GetX509SvidKey()))
		certs = append(certs, string(m.GetSvids()[0].GetX509Svid()))
	}
	slices.Sort(keys)
	slices.Sort(certs)
	if len(slices.Compact(keys)) != 3 || len(slices.Compact(certs)) != 3 {
		t.Fatal("a renewal kept its key or certificate")
	}
}

func TestServerAwayServesOnAndRenewsWhenItIsBack(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.svidTTL = 3 * time.Second
	s.apply(registration("web", "/ns/shop/sa/web"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	st := a.stream(t)
	if _, err := st.Recv(); err != nil {
		t.Fatal(err)
	}
	addr := s.addr
	s.stop()
	eventually(t, "disconnected", func() bool { return !a.upstream.Status().Connected })
	if _, err := a.client(t).FetchX509SVID(t.Context()); err != nil {
		t.Fatalf("with the server away: %v", err)
	}
	eventually(t, "a renewal that could not be", func() bool { return a.ring.Stats(time.Now()).Failed > 0 })
	s.start(addr)
	if _, err := st.Recv(); err != nil {
		t.Fatalf("after the server came back: %v", err)
	}
}

func TestRefusedIdentityLeavesTheOthers(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.refuse = func(r *wire.IssueRequest) *wire.IssueResult {
		if r.GetRegistration() == "shop/api" {
			return &wire.IssueResult{Error: "not this node's", Code: uint32(codes.PermissionDenied), RetryAfter: 60_000}
		}
		return nil
	}
	s.apply(registration("web", "/ns/shop/sa/web") + registration("api", "/ns/shop/sa/api"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	m, err := a.stream(t).Recv()
	if err != nil || !slices.Equal(ids(m), []string{web}) {
		t.Fatal(m, err)
	}
	s.mu.Lock()
	s.refuse = func(*wire.IssueRequest) *wire.IssueResult {
		return &wire.IssueResult{Error: "the log is full", Code: uint32(codes.ResourceExhausted)}
	}
	s.mu.Unlock()
	s.apply(registration("only", "/only"), regKey("web"), regKey("api"))
	eventually(t, "the change", func() bool {
		view, _ := a.feed.Current()
		return len(view.Registrations) == 1
	})
	if _, err := a.stream(t).Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "the log is full") {
		t.Fatalf("got %v", err)
	}
}

func TestDeltasAreAcknowledgedWithTheIssuersServed(t *testing.T) {
	td := identitytest.New(t, "example.org")
	s := newFakeServer(t, td)
	s.apply(registration("web", "/ns/shop/sa/web"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	if _, err := a.stream(t).Recv(); err != nil {
		t.Fatal(err)
	}
	s.apply(registration("api", "/ns/shop/sa/api"))
	eventually(t, "ack", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.acks) < 2 {
			return false
		}
		last := s.acks[len(s.acks)-1]
		return last.GetPosition().GetRevision() == s.revision && slices.Equal(last.GetIssuers(), []string{fmt.Sprintf("%x", td.Intermediate.SubjectKeyId)})
	})
}

func TestARestartOfTheServerResumesAndANewEpochResyncs(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.apply(registration("web", "/ns/shop/sa/web"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	st := a.stream(t)
	if _, err := st.Recv(); err != nil {
		t.Fatal(err)
	}
	restart := func(change func()) *wire.Hello {
		t.Helper()
		s.stop()
		s.mu.Lock()
		n := len(s.hellos)
		change()
		s.mu.Unlock()
		s.start(s.addr)
		eventually(t, "reconnect", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return len(s.hellos) > n && a.upstream.Status().Connected
		})
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.hellos[n]
	}
	hello := restart(func() {})
	if hello.GetHeld().GetEpoch() != 1 || hello.GetHeld().GetRevision() != 2 {
		t.Fatalf("after a restart the agent said it holds %v", hello.GetHeld())
	}
	// A restored store: another epoch, an older state.
	restart(func() { s.epoch, s.revision, s.docs = 2, 1, map[document.Key]*wire.Resource{} })
	if _, err := st.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Fatalf("after the resync without the registration: %v", err)
	}
	// A server that forgets to announce the resync is asked for everything.
	restart(func() { s.epoch, s.revision, s.badEpoch = 3, 1, true })
	s.apply(registration("api", "/ns/shop/sa/api"))
	eventually(t, "full snapshot of epoch 3", func() bool {
		view, _ := a.feed.Current()
		return view != nil && view.Position.Epoch == 3 && len(view.Registrations) == 1
	})
}

func TestRestartOfTheAgentNeedsNoToken(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	cfg := testConfig(t, s)
	a := start(t, cfg)
	a.ready(t)
	a.stop(t)
	cfg.JoinToken, cfg.BundleHash = "", ""
	b := start(t, cfg)
	b.ready(t)
	if s.attests != 1 {
		t.Fatalf("%d attestations", s.attests)
	}
	for _, name := range []string{"credential.pem", "bundle.pem"} {
		fi, err := os.Stat(filepath.Join(cfg.DataDir, "node", name))
		if err != nil || fi.Mode().Perm() != 0o600 {
			t.Fatalf("%s: %v %v", name, fi, err)
		}
	}
}

func TestAnExpiredCredentialIsReplacedByTheRecordedKey(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.nodeTTL = 100 * time.Millisecond
	cfg := testConfig(t, s)
	a := start(t, cfg)
	eventually(t, "joined", func() bool { return !a.node.ID().IsZero() })
	a.stop(t)
	eventually(t, "expired", func() bool { return !a.node.Valid(time.Now()) })
	s.mu.Lock()
	s.nodeTTL = time.Hour
	s.mu.Unlock()
	cfg.JoinToken = ""
	b := start(t, cfg)
	b.ready(t)
}

func TestTheNodeCredentialIsRenewedWithANewKeyAndUsed(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.nodeTTL = 1500 * time.Millisecond
	s.apply(registration("web", "/ns/shop/sa/web"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	first := a.node.Credentials().SVID
	eventually(t, "renewed twice, and the old keys forgotten", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.renewed >= 2 && len(s.nodes[first.ID.String()]) == 1
	})
	if s.attests != 1 {
		t.Fatalf("%d attestations", s.attests)
	}
	if a.node.Credentials().SVID.Serial() == first.Serial() {
		t.Fatal("the credential is the first one")
	}
	if _, err := a.client(t).FetchX509SVID(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestWrongHashEndsTheAgentAndNamesBoth(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	cfg := testConfig(t, s)
	cfg.BundleHash = identityHash(t)
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = a.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), cfg.BundleHash) || !strings.Contains(err.Error(), s.hash()) {
		t.Fatalf("got %v", err)
	}
	if s.attests != 0 {
		t.Fatal("something was sent")
	}
}

func identityHash(t *testing.T) string {
	t.Helper()
	return "sha256:" + strings.Repeat("ab", 32)
}

func TestAWorkloadPosingAsServerIsRefused(t *testing.T) {
	td := identitytest.New(t, "example.org")
	s := newFakeServer(t, td)
	s.stop()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	serveAs(t, s, l, td, "/ns/shop/sa/web")
	a, err := New(testConfig(t, s))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "workload") {
		t.Fatalf("got %v", err)
	}
	if s.attests != 0 {
		t.Fatal("something was sent")
	}
}

func TestARefusedTokenEndsTheAgentWithTheServersStatus(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.tokens["good-token"] = "sha256:another"
	a, err := New(testConfig(t, s))
	if err != nil {
		t.Fatal(err)
	}
	err = a.Run(t.Context())
	var withStatus interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &withStatus) || withStatus.GRPCStatus().Code() != codes.PermissionDenied {
		t.Fatalf("got %v", err)
	}
	if strings.Contains(err.Error(), "good-token") {
		t.Fatal("the token is in the error")
	}
}

func TestABundleFileServesAsWellAsAHash(t *testing.T) {
	td := identitytest.New(t, "example.org")
	s := newFakeServer(t, td)
	cfg := testConfig(t, s)
	cfg.BundleHash, cfg.BundleFile = "", filepath.Join(t.TempDir(), "bundle.pem")
	if err := os.WriteFile(cfg.BundleFile, encode(td), 0o644); err != nil {
		t.Fatal(err)
	}
	start(t, cfg).ready(t)

	other := identitytest.New(t, "example.org")
	cfg = testConfig(t, s)
	cfg.BundleHash, cfg.BundleFile = "", filepath.Join(t.TempDir(), "bundle.pem")
	if err := os.WriteFile(cfg.BundleFile, encode(other), 0o644); err != nil {
		t.Fatal(err)
	}
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "not trusted") {
		t.Fatalf("got %v", err)
	}
}

func TestAnEvictedNodeServesNothingAndEnds(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.apply(registration("web", "/ns/shop/sa/web"))
	cfg := testConfig(t, s)
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- a.Run(t.Context()) }()
	ta := &testAgent{Agent: a, cfg: cfg}
	ta.ready(t)
	st := ta.stream(t)
	if _, err := st.Recv(); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.tokens = map[string]string{}
	s.mu.Unlock()
	s.evict("spiffe://example.org/aval/node/n1")
	if _, err := st.Recv(); status.Code(err) != codes.Unavailable {
		t.Fatalf("open stream: %v", err)
	}
	err = <-done
	var withStatus interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &withStatus) || withStatus.GRPCStatus().Code() != codes.PermissionDenied {
		t.Fatalf("got %v", err)
	}
	// A new token lets the node in again, with what is on disk.
	s.mu.Lock()
	s.tokens["second"] = ""
	s.mu.Unlock()
	cfg.JoinToken = "second"
	start(t, cfg).ready(t)
}

func TestOneAgentForEachDataDirectoryAndSocket(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	cfg := testConfig(t, s)
	a := start(t, cfg)
	a.ready(t)
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Fatalf("same data directory: %v", err)
	}
	cfg.DataDir = filepath.Join(t.TempDir(), "data")
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another agent serves it") {
		t.Fatalf("same socket: %v", err)
	}
	// A socket that a dead agent left behind is taken over.
	a.stop(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: cfg.Socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	s.mu.Lock()
	s.tokens["good-token"] = ""
	s.mu.Unlock()
	start(t, cfg).ready(t)
}

func TestSocketsInUnsafePlacesAreRefused(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	cfg := testConfig(t, s)
	open := filepath.Join(t.TempDir(), "open")
	if err := os.Mkdir(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	cfg.Socket = filepath.Join(open, "agent.sock")
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "mode 0777") {
		t.Fatalf("got %v", err)
	}
	cfg.Socket = filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(cfg.Socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a, err = New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "a file is in its place") {
		t.Fatalf("got %v", err)
	}
}

func TestCheckpointsAreKeptAndAShrinkIsEvidence(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	cfg := testConfig(t, s)
	a := start(t, cfg)
	a.ready(t)
	for i, size := range []int{10, 20, 20, 15} {
		seed := fmt.Sprint(size)
		if i == 2 {
			seed = "20"
		}
		s.push(&wire.ServerFrame{Frame: &wire.ServerFrame_Checkpoints{Checkpoints: &wire.Checkpoints{
			Checkpoints: []*wire.Checkpoint{s.checkpoint(size, seed)},
		}}})
	}
	var kept []history.Checkpoint
	eventually(t, "three checkpoints on disk", func() bool {
		var err error
		kept, err = Checkpoints(cfg.DataDir)
		return err == nil && len(kept) == 3
	})
	if kept[0].Size != 10 || kept[1].Size != 20 || kept[2].Size != 15 {
		t.Fatalf("kept %v", kept)
	}
}

func TestAThousandWorkloadsAreServed(t *testing.T) {
	if testing.Short() {
		t.Skip("a thousand SVIDs take a while under load")
	}
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	var docs strings.Builder
	for i := range 1000 {
		docs.WriteString(registration(fmt.Sprintf("w%04d", i), fmt.Sprintf("/w/%d", i)))
	}
	s.apply(docs.String())
	began := time.Now()
	a := start(t, testConfig(t, s))
	a.ready(t)
	m, err := a.stream(t).Recv()
	if err != nil || len(m.GetSvids()) != 1000 {
		t.Fatal(len(m.GetSvids()), err)
	}
	t.Logf("1,000 SVIDs after %v in %d batches", time.Since(began), len(s.batches))
	for _, n := range s.batches {
		if n > 100 {
			t.Fatalf("a batch of %d", n)
		}
	}
}

func TestStatusAndExplain(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.apply(registration("web", "/ns/shop/sa/web") +
		registration("near", "/near", fmt.Sprintf("{unix.uid: %d, unix.path: /nowhere}", os.Getuid())) +
		registration("far", "/far", "{unix.uid: 4294967, unix.path: /nowhere}"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	if _, err := a.stream(t).Recv(); err != nil {
		t.Fatal(err)
	}
	c := wire.NewLocalClient(a.dial(t))
	st, err := c.Status(t.Context(), &wire.StatusRequest{})
	if err != nil || !st.GetConnected() || st.GetRegistrations() != 3 || st.GetIdentities() != 1 || st.GetTrustDomain() != "example.org" {
		t.Fatal(st, err)
	}
	e, err := c.Explain(t.Context(), &wire.ExplainRequest{Pid: int32(os.Getpid())})
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, r := range e.GetRegistrations() {
		order = append(order, r.GetRegistration())
	}
	if !slices.Equal(order, []string{"shop/web", "shop/near", "shop/far"}) {
		t.Fatal(order)
	}
	r := e.GetRegistrations()
	if !r[0].GetMatches() || r[0].GetSerial() == "" || r[1].GetMatches() || !slices.Equal(r[1].GetMissing(), []string{"unix.path=/nowhere"}) {
		t.Fatal(r[0], r[1])
	}
	if self, err := os.Executable(); err != nil || !slices.Equal(r[1].GetSeen(), []string{"unix.path=" + self}) {
		t.Fatal(r[1].GetSeen(), self, err)
	}
	if _, err := c.Explain(t.Context(), &wire.ExplainRequest{Pid: 1 << 30}); status.Code(err) != codes.NotFound {
		t.Fatalf("no such pid: %v", err)
	}
}

func TestTokensPrintAsPlaceholders(t *testing.T) {
	tok := Token("avt_secret")
	var b strings.Builder
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "token", tok, "config", Config{JoinToken: tok})
	if s := b.String() + fmt.Sprintf("%v %+v %#v %s", tok, Config{JoinToken: tok}, tok, tok); strings.Contains(s, "secret") {
		t.Fatal(s)
	}
}

func TestStreamsAndConnectionsLeaveNothingBehind(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.apply(registration("web", "/ns/shop/sa/web"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	before := openFiles(t)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			conn, err := grpc.NewClient("unix://"+a.cfg.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true"))
			defer cancel()
			st, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
			if err == nil {
				_, err = st.Recv()
			}
			if err != nil && !errors.Is(err, io.EOF) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	eventually(t, "descriptors back to before", func() bool {
		return a.endpoint.Stats().Connections == 0 && openFiles(t) <= before
	})
}

// ownDigest is the SHA-256 of the test binary.
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
