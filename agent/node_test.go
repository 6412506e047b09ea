// This file holds the tests of the agent as a node: joining, restarts,
// renewal, eviction, and the places where its files lie.

package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/agent/history"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/identitytest"
	"github.com/aval-id/aval/identity/wire"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

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
	if err := b.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another process serves it") {
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
	if st := a.status(); len(st.GetContradicted()) != 1 {
		t.Fatalf("the status names the contradicted logs %v", st.GetContradicted())
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
