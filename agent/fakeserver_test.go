// This file holds a server for the agent's tests: real TLS, real gRPC and
// real certificates, and a store and a log of nothing but memory.

package agent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/identitytest"
	"github.com/aval-id/aval/identity/mtls"
	"github.com/aval-id/aval/identity/wire"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// fakeServer admits nodes, pushes documents and issues SVIDs.
type fakeServer struct {
	wire.UnimplementedNodeServer
	t    testing.TB
	td   *identitytest.TrustDomain
	addr string
	grpc *grpc.Server

	mu        sync.Mutex
	tokens    map[string]string   // token → hash of the key it is bound to, "" while unbound
	nodes     map[string][]string // node ID → key hashes on record
	evicted   map[string]bool
	epoch     uint64
	revision  uint64
	docs      map[document.Key]*wire.Resource
	sessions  map[chan *wire.ServerFrame]bool
	hellos    []*wire.Hello
	acks      []*wire.Ack
	batches   []int // sizes of the issue batches
	issued    int
	renewed   int
	attests   int
	svidTTL   time.Duration
	nodeTTL   time.Duration
	refuse    func(*wire.IssueRequest) *wire.IssueResult
	hold      chan struct{} // where set, issuance waits for it
	records   []map[string]any
	lost      uint64
	muteAcks  bool // records are taken but not acknowledged
	badEpoch  bool // deltas of another epoch come without a resync
	logKey    ed25519.PrivateKey
	afterSave func()
	registry  bool // keeps the registry of endpoints
	reports   []*wire.EndpointReport
}

func newFakeServer(t testing.TB, td *identitytest.TrustDomain) *fakeServer {
	t.Helper()
	s := &fakeServer{
		t: t, td: td, tokens: map[string]string{"good-token": ""}, nodes: map[string][]string{}, evicted: map[string]bool{},
		epoch: 1, revision: 1, docs: map[document.Key]*wire.Resource{}, sessions: map[chan *wire.ServerFrame]bool{},
		svidTTL: time.Hour, nodeTTL: time.Hour,
	}
	_, s.logKey, _ = ed25519.GenerateKey(nil)
	s.start("127.0.0.1:0")
	t.Cleanup(s.stop)
	return s
}

// start listens; stop and start again make a restart at the same address.
func (s *fakeServer) start(addr string) {
	s.t.Helper()
	var l net.Listener
	eventually(s.t, "listen at "+addr, func() (ok bool) {
		var err error
		l, err = net.Listen("tcp", addr)
		return err == nil
	})
	s.addr = l.Addr().String()
	svid := s.td.SVID(s.t, "/aval/server/server-1")
	svid, err := identity.NewSVID(append(svid.Chain, s.td.Root), svid.Key, time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	creds := mtls.Fixed{C: identity.NewCredentials(svid, 1, s.td.Bundle)}
	config := mtls.OptionalServerConfig(creds, mtls.NewVerifier(0), mtls.HasRole(s.td.Name, identity.RoleNode))
	s.serve(l, config)
}

func (s *fakeServer) serve(l net.Listener, config *tls.Config) {
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	wire.RegisterNodeServer(g, s)
	s.mu.Lock()
	s.grpc = g
	s.mu.Unlock()
	go g.Serve(l)
}

func (s *fakeServer) stop() {
	s.mu.Lock()
	g := s.grpc
	s.mu.Unlock()
	g.Stop()
}

func (s *fakeServer) hash() string { return identity.CertificateHash(s.td.Root) }

func (s *fakeServer) Attest(_ context.Context, req *wire.AttestRequest) (*wire.AttestResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attests++
	csr, err := x509.ParseCertificateRequest(req.GetCsr())
	if err != nil || csr.CheckSignature() != nil {
		return nil, status.Error(codes.InvalidArgument, "bad CSR")
	}
	key, err := identity.KeyHash(csr.PublicKey)
	if err != nil {
		return nil, err
	}
	const id = "spiffe://example.org/aval/node/n1"
	if req.GetToken() == "" {
		if s.evicted[req.GetNodeId()] || !slices.Contains(s.nodes[req.GetNodeId()], key) {
			return nil, status.Error(codes.PermissionDenied, "node is not known by this key")
		}
	} else {
		bound, ok := s.tokens[req.GetToken()]
		if !ok || bound != "" && bound != key {
			return nil, status.Error(codes.PermissionDenied, "join token is not valid")
		}
		s.tokens[req.GetToken()] = key
		s.nodes[id] = []string{key}
		delete(s.evicted, id)
	}
	if s.afterSave != nil {
		s.afterSave()
	}
	now := time.Now()
	chain := s.td.SignCSR(s.t, "/aval/node/n1", req.GetCsr(), identitytest.Lifetime(now.Add(-time.Minute), now.Add(s.nodeTTL)))
	return &wire.AttestResponse{NodeId: id, Chain: ders(chain), Bundle: wire.FromBundle(s.td.Bundle)}, nil
}

func (s *fakeServer) caller(ctx context.Context) (string, error) {
	p, _ := peer.FromContext(ctx)
	certs := p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates
	if len(certs) == 0 {
		return "", status.Error(codes.Unauthenticated, "no certificate")
	}
	id := certs[0].URIs[0].String()
	key, err := identity.KeyHash(certs[0].PublicKey)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.evicted[id] {
		return "", status.Error(codes.PermissionDenied, "node is evicted")
	}
	if i := slices.Index(s.nodes[id], key); i > 0 {
		s.nodes[id] = s.nodes[id][i:] // the new key is used: the old one is forgotten
	}
	return id, nil
}

func (s *fakeServer) Renew(ctx context.Context, req *wire.RenewRequest) (*wire.RenewResponse, error) {
	id, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(req.GetCsr())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "bad CSR")
	}
	key, err := identity.KeyHash(csr.PublicKey)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renewed++
	s.nodes[id] = append(s.nodes[id], key)
	now := time.Now()
	chain := s.td.SignCSR(s.t, "/aval/node/n1", req.GetCsr(), identitytest.Lifetime(now.Add(-time.Minute), now.Add(s.nodeTTL)))
	return &wire.RenewResponse{Chain: ders(chain)}, nil
}

func (s *fakeServer) Sync(stream wire.Node_SyncServer) error {
	if _, err := s.caller(stream.Context()); err != nil {
		return err
	}
	frame, err := stream.Recv()
	if err != nil {
		return err
	}
	out := make(chan *wire.ServerFrame, 1000)
	s.welcome(out, frame.GetHello())
	defer func() {
		s.mu.Lock()
		delete(s.sessions, out)
		s.mu.Unlock()
	}()
	ended := make(chan error, 1)
	go func() {
		for {
			f, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			s.take(out, f)
		}
	}()
	for {
		select {
		case f := <-out:
			if err := stream.Send(f); err != nil {
				return err
			}
			if f.GetGoodbye() != nil {
				return nil
			}
		case err := <-ended:
			return err
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (s *fakeServer) welcome(out chan *wire.ServerFrame, hello *wire.Hello) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hellos = append(s.hellos, hello)
	s.sessions[out] = true
	at := &wire.Position{Epoch: s.epoch, Revision: s.revision}
	resync := hello.GetHeld().GetEpoch() != s.epoch && !s.badEpoch
	out <- &wire.ServerFrame{Frame: &wire.ServerFrame_Welcome{Welcome: &wire.Welcome{
		Settings: &wire.Settings{TrustDomain: s.td.Name.String(), RootNamespace: "aval-system"},
		Position: at, Clock: time.Now().UnixMilli(), ServerId: "spiffe://example.org/aval/server/server-1", Resync: resync,
		Attributes: map[string]*wire.Values{"node.name": {Values: []string{"n1"}}}, Endpoints: s.registry,
	}}}
	d := &wire.Delta{Position: at, Complete: true, Reset_: resync || hello.GetHeld().GetEpoch() == 0, Bundles: []*wire.Bundle{wire.FromBundle(s.td.Bundle)}}
	for _, key := range slices.SortedFunc(maps.Keys(s.docs), document.Key.Compare) {
		d.Upserts = append(d.Upserts, s.docs[key])
	}
	out <- &wire.ServerFrame{Frame: &wire.ServerFrame_Delta{Delta: d}}
}

func (s *fakeServer) take(out chan *wire.ServerFrame, f *wire.NodeFrame) {
	switch f := f.GetFrame().(type) {
	case *wire.NodeFrame_Ack:
		s.mu.Lock()
		s.acks = append(s.acks, f.Ack)
		s.mu.Unlock()
	case *wire.NodeFrame_Endpoints:
		s.mu.Lock()
		s.reports = append(s.reports, f.Endpoints)
		s.mu.Unlock()
	case *wire.NodeFrame_Issue:
		go func() {
			out <- &wire.ServerFrame{Frame: &wire.ServerFrame_Issued{Issued: s.issue(f.Issue)}}
		}()
	case *wire.NodeFrame_Records:
		s.mu.Lock()
		for _, e := range f.Records.GetEvents() {
			var v map[string]any
			if json.Unmarshal(e, &v) != nil {
				continue
			}
			if v["kind"] == string(audit.KindLoss) {
				s.lost += uint64(v["lost"].(float64))
			} else {
				s.records = append(s.records, v)
			}
		}
		s.lost += f.Records.GetLost()
		mute := s.muteAcks
		s.mu.Unlock()
		if !mute {
			out <- &wire.ServerFrame{Frame: &wire.ServerFrame_RecordsAck{RecordsAck: &wire.RecordsAck{Sequence: f.Records.GetSequence()}}}
		}
	}
}

func (s *fakeServer) issue(b *wire.IssueBatch) *wire.IssueResults {
	s.mu.Lock()
	hold, refuse, ttl := s.hold, s.refuse, s.svidTTL
	s.batches = append(s.batches, len(b.GetRequests()))
	s.mu.Unlock()
	if hold != nil {
		<-hold
	}
	out := &wire.IssueResults{Batch: b.GetBatch()}
	for _, r := range b.GetRequests() {
		if refuse != nil {
			if res := refuse(r); res != nil {
				res.Request = r.GetRequest()
				out.Results = append(out.Results, res)
				continue
			}
		}
		id, err := identity.ParseID(r.GetSpiffeId())
		if err != nil {
			panic(err)
		}
		now := time.Now()
		chain := s.td.SignCSR(s.t, id.Path(), r.GetCsr(), identitytest.Lifetime(now.Add(-time.Minute), now.Add(ttl)))
		out.Results = append(out.Results, &wire.IssueResult{Request: r.GetRequest(), Chain: ders(chain)})
		s.mu.Lock()
		s.issued++
		s.mu.Unlock()
	}
	return out
}

// apply changes documents and pushes the change to every session.
func (s *fakeServer) apply(docs string, deletes ...document.Key) {
	s.t.Helper()
	parsed, err := document.Parse("test.yaml", []byte(docs))
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	d := &wire.Delta{Position: &wire.Position{Epoch: s.epoch, Revision: s.revision}, Complete: true}
	for _, doc := range parsed {
		text, err := doc.JSON()
		if err != nil {
			s.t.Fatal(err)
		}
		res := &wire.Resource{Key: wire.FromKey(doc.Key()), Document: text, Revision: s.revision, Evaluator: 1}
		s.docs[doc.Key()] = res
		d.Upserts = append(d.Upserts, res)
	}
	for _, key := range deletes {
		delete(s.docs, key)
		d.Deletes = append(d.Deletes, wire.FromKey(key))
	}
	s.broadcast(&wire.ServerFrame{Frame: &wire.ServerFrame_Delta{Delta: d}})
}

// broadcast sends to every session, guarded by s.mu.
func (s *fakeServer) broadcast(f *wire.ServerFrame) {
	for out := range s.sessions {
		out <- f
	}
}

func (s *fakeServer) push(f *wire.ServerFrame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broadcast(f)
}

// evict shuts a node out and says so.
func (s *fakeServer) evict(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.evicted[id] = true
	s.broadcast(&wire.ServerFrame{Frame: &wire.ServerFrame_Goodbye{Goodbye: &wire.Goodbye{Reason: "test", Evicted: true}}})
}

// checkpoint signs a checkpoint of a log of this size.
func (s *fakeServer) checkpoint(size int, seed string) *wire.Checkpoint {
	s.t.Helper()
	const origin = "example.org/authority/server-1"
	root := sha256.Sum256([]byte(seed))
	skey, vkey := noteKeys(origin, s.logKey)
	signer, err := note.NewSigner(skey)
	if err != nil {
		s.t.Fatal(err)
	}
	text, err := note.Sign(&note.Note{Text: fmt.Sprintf("%s\n%d\n%s\n", origin, size, base64.StdEncoding.EncodeToString(root[:]))}, signer)
	if err != nil {
		s.t.Fatal(err)
	}
	return &wire.Checkpoint{Log: origin, Note: text, VerifierKey: vkey}
}

// noteKeys prints an Ed25519 key in the forms of package note.
func noteKeys(name string, key ed25519.PrivateKey) (signer, verifier string) {
	pub := append([]byte{1}, key.Public().(ed25519.PublicKey)...)
	h := sha256.New()
	fmt.Fprintf(h, "%s\n", name)
	h.Write(pub)
	sum := h.Sum(nil)[:4]
	seed := append([]byte{1}, key.Seed()...)
	return fmt.Sprintf("PRIVATE+KEY+%s+%x+%s", name, sum, base64.StdEncoding.EncodeToString(seed)),
		fmt.Sprintf("%s+%x+%s", name, sum, base64.StdEncoding.EncodeToString(pub))
}

func ders(chain []*x509.Certificate) [][]byte {
	out := make([][]byte, len(chain))
	for i, c := range chain {
		out[i] = bytes.Clone(c.Raw)
	}
	return out
}
