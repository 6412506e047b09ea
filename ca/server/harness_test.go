// This file holds what the tests of this package stand on: a real server on a
// temporary directory, a real operator's connection, and a node that speaks
// the protocol over real TLS.

package server

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/mtls"
	"github.com/aval-id/aval/identity/wire"
)

func TestMain(m *testing.M) {
	if child := os.Getenv("AVAL_TEST_CHILD"); child != "" {
		runChild(child)
		return
	}
	goleak.VerifyTestMain(m)
}

var testDomain = must(identity.ParseTrustDomain("example.org"))

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// testConfig is a configuration on dir, on a free port.
func testConfig(dir string) Config {
	return Config{
		TrustDomain: testDomain, DataDir: filepath.Join(dir, "data"), Listen: "127.0.0.1:0",
		AdminSocket: filepath.Join(dir, "admin.sock"), MinTTL: time.Second, AuthorityReserve: -1,
		LockTimeout: 100 * time.Millisecond, HandshakeTimeout: 2 * time.Second, Version: "test",
	}
}

// running is a server that runs.
type running struct {
	*Server
	admin wire.AdminClient
	stop  func() error
}

// shortDir is a temporary directory whose path fits a Unix socket.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "aval")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func start(t testing.TB, cfg Config) *running {
	t.Helper()
	if cfg.Logger == nil && testing.Verbose() {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return run(t, s)
}

func run(t testing.TB, s *Server) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	r := &running{Server: s}
	conn, err := grpc.NewClient("unix://"+s.AdminSocket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(4*wire.MaxMessageBytes)))
	if err != nil {
		t.Fatal(err)
	}
	r.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		conn.Close()
		cancel()
		return <-done
	}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	r.admin = wire.NewAdminClient(conn)
	if _, err := r.admin.ServerStatus(t.Context(), &wire.ServerStatusRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *running) token(t testing.TB, node string, attributes map[string]string) string {
	t.Helper()
	m := map[string]*wire.Values{}
	for k, v := range attributes {
		m[k] = &wire.Values{Values: []string{v}}
	}
	resp, err := r.admin.CreateToken(t.Context(), &wire.CreateTokenRequest{Node: node, Attributes: m, Ttl: 600_000})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetToken()
}

func registration(ns, name, path, spec string) []byte {
	return fmt.Appendf(nil, `{"apiVersion":"aval.dev/v1alpha1","kind":"Registration","metadata":{"name":%q,"namespace":%q,"labels":{"app":%q}},"spec":{"id":%q,"workload":{"unix.uid":"1000"}%s}}`,
		name, ns, name, path, spec)
}

func denyAll(ns, name string) []byte {
	return fmt.Appendf(nil, `{"apiVersion":"aval.dev/v1alpha1","kind":"AuthorizationPolicy","metadata":{"name":%q,"namespace":%q},"spec":{}}`, name, ns)
}

func (r *running) apply(t testing.TB, docs ...[]byte) *wire.ApplyResponse {
	t.Helper()
	resp, err := r.admin.Apply(t.Context(), &wire.ApplyRequest{Documents: docs})
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// testNode is a node's side of the protocol.
type testNode struct {
	server *running
	key    *ecdsa.PrivateKey
	id     string
	chain  []*x509.Certificate
	bundle identity.Bundle
	conn   *grpc.ClientConn
	client wire.NodeClient
}

func newKey() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

func csrOf(key crypto.Signer) []byte {
	return must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key))
}

// dial connects to the node API, with a client certificate where creds has
// one. The test looks at statuses, not at who the server is.
func (r *running) dial(t testing.TB, cert *tls.Certificate) (*grpc.ClientConn, wire.NodeClient) {
	t.Helper()
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: []string{"h2"}}
	if cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	conn, err := grpc.NewClient("passthrough:///"+r.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, wire.NewNodeClient(conn)
}

// join attests a node by a token and connects as it.
func (r *running) join(t testing.TB, name string, attributes map[string]string) *testNode {
	t.Helper()
	return r.joinWith(t, r.token(t, name, attributes), newKey())
}

func (r *running) joinWith(t testing.TB, token string, key *ecdsa.PrivateKey) *testNode {
	t.Helper()
	_, anonymous := r.dial(t, nil)
	resp, err := anonymous.Attest(t.Context(), &wire.AttestRequest{Token: token, Csr: csrOf(key)})
	if err != nil {
		t.Fatal(err)
	}
	n := &testNode{server: r, key: key, id: resp.GetNodeId(), chain: must(identity.ParseChain(resp.GetChain()))}
	n.bundle = must(wire.ToBundle(resp.GetBundle()))
	n.connect(t)
	return n
}

func (n *testNode) connect(t testing.TB) {
	t.Helper()
	svid := must(identity.NewSVID(n.chain, n.key, time.Now()))
	if n.conn != nil {
		n.conn.Close()
	}
	n.conn, n.client = n.server.dial(t, svid.TLSCertificate())
}

// stream is an open Sync of a test node.
type stream struct {
	wire.Node_SyncClient
	welcome *wire.Welcome
	held    map[string]uint64 // what the node holds, by "Kind ns/name"
	at      *wire.Position
	frames  chan *wire.ServerFrame // issue results, acks, goodbyes
	ended   chan error
	deltas  chan *wire.Position // each complete delta's position
	keySets chan *wire.KeySet   // as they come
}

func (n *testNode) sync(t testing.TB) *stream {
	t.Helper()
	s, err := n.trySync(t)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (n *testNode) trySync(t testing.TB) (*stream, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	raw, err := n.client.Sync(ctx)
	if err != nil {
		return nil, err
	}
	// An error of Send is io.EOF; the cause comes with Recv.
	_ = raw.Send(&wire.NodeFrame{Frame: &wire.NodeFrame_Hello{Hello: &wire.Hello{Version: "test", Clock: time.Now().UnixMilli(), Evaluator: 1}}})
	first, err := raw.Recv()
	if err != nil {
		return nil, err
	}
	s := &stream{Node_SyncClient: raw, welcome: first.GetWelcome(), held: map[string]uint64{},
		frames: make(chan *wire.ServerFrame, 1024), ended: make(chan error, 1), deltas: make(chan *wire.Position, 4096), keySets: make(chan *wire.KeySet, 1024)}
	if err := s.take(); err != nil {
		return nil, err
	}
	go func() {
		for {
			if err := s.take(); err != nil {
				s.ended <- err
				return
			}
		}
	}()
	return s, nil
}

// take receives one frame into the node's state.
func (s *stream) take() error {
	f, err := s.Recv()
	if err != nil {
		return err
	}
	d := f.GetDelta()
	if d == nil {
		if f.GetCheckpoints() == nil {
			s.frames <- f
		}
		return nil
	}
	if d.GetReset_() {
		clear(s.held)
	}
	for _, r := range d.GetUpserts() {
		s.held[wire.ToKey(r.GetKey()).String()] = r.GetRevision()
	}
	for _, k := range d.GetDeletes() {
		delete(s.held, wire.ToKey(k).String())
	}
	for _, set := range d.GetKeySets() {
		s.keySets <- set
	}
	if d.GetComplete() {
		s.deltas <- d.GetPosition()
	}
	return nil
}

// reach waits until the node holds a position.
func (s *stream) reach(t testing.TB, p *wire.Position) {
	t.Helper()
	timer := time.NewTimer(10 * time.Second)
	defer timer.Stop()
	for s.at == nil || s.at.Before(p) {
		select {
		case s.at = <-s.deltas:
		case err := <-s.ended:
			t.Fatalf("stream ended: %v", err)
		case <-timer.C:
			t.Fatalf("position %v was not reached, the node is at %v", p, s.at)
		}
	}
}

func (s *stream) names() []string {
	var out []string
	for k := range s.held {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func (s *stream) answer(t testing.TB) *wire.ServerFrame {
	t.Helper()
	select {
	case f := <-s.frames:
		return f
	case err := <-s.ended:
		s.ended <- err
		select {
		case f := <-s.frames: // came before the end
			return f
		default:
			t.Fatalf("stream ended: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no answer came")
	}
	return nil
}

// issue sends one batch and returns its results.
func (s *stream) issue(t testing.TB, requests ...*wire.IssueRequest) []*wire.IssueResult {
	t.Helper()
	if err := s.Send(&wire.NodeFrame{Frame: &wire.NodeFrame_Issue{Issue: &wire.IssueBatch{Batch: 7, Requests: requests}}}); err != nil {
		t.Fatal(err)
	}
	results := s.answer(t).GetIssued()
	if results.GetBatch() != 7 || len(results.GetResults()) != len(requests) {
		t.Fatalf("results %v for %d requests", results, len(requests))
	}
	return results.GetResults()
}

func request(n uint64, registration, path string) *wire.IssueRequest {
	return &wire.IssueRequest{Request: n, Registration: registration, SpiffeId: "spiffe://example.org" + path, Csr: csrOf(newKey())}
}

// events returns what a log holds of a kind.
func events(t testing.TB, log *audit.Log, kind audit.Kind) []audit.Event {
	t.Helper()
	var out []audit.Event
	if err := log.Read(0, func(e audit.Entry) error {
		if e.Kind == kind {
			out = append(out, e.Event)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// waitEvent waits for an event that match accepts.
func waitEvent(t testing.TB, log *audit.Log, what string, match func(audit.Event) bool) audit.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var from int64
	for {
		var found *audit.Event
		size := log.Size()
		if err := log.Read(from, func(e audit.Entry) error {
			from = e.Index + 1
			if match(e.Event) {
				found = &e.Event
				return errStop
			}
			return nil
		}); err != nil && found == nil {
			t.Fatal(err)
		}
		if found != nil {
			return *found
		}
		if err := log.Wait(ctx, size); err != nil {
			t.Fatalf("no event: %s", what)
		}
	}
}

func wantCode(t testing.TB, err error, code codes.Code, text string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(fmt.Sprint(err), text) {
		t.Fatalf("got %v, want %s with %q", err, code, text)
	}
}

func verifies(t testing.TB, chain [][]byte, bundle identity.Bundle) identity.ID {
	t.Helper()
	certs := must(identity.ParseChain(chain))
	peer, err := mtls.NewVerifier(0).Verify(certs, identity.NewCredentials(identity.SVID{}, 1, bundle), mtls.PurposeClient, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return peer.ID
}
