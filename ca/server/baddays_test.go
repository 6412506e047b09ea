// This file holds the tests of bad days: refused peers and requests, a log
// that fails, floods, loose permissions, a second server, a restore.

package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/identitytest"
	"github.com/aval-id/aval/identity/wire"
)

// faulty records in a log until it is told to fail.
type faulty struct {
	ca.Recorder
	fail atomic.Pointer[error]
}

func (f *faulty) RecordAll(ctx context.Context, events []audit.Event) ([]audit.Receipt, error) {
	if err := f.fail.Load(); err != nil {
		return nil, *err
	}
	return f.Recorder.RecordAll(ctx, events)
}

func (f *faulty) set(err error) {
	if err == nil {
		f.fail.Store(nil)
		return
	}
	f.fail.Store(&err)
}

func TestNoRecordNoAct(t *testing.T) {
	s := must(New(testConfig(shortDir(t))))
	log := &faulty{Recorder: s.authorityLog}
	s.setRecorder(log)
	r := run(t, s)
	r.apply(t, registration("shop", "web", "/web", ""))
	n := r.join(t, "one", nil)
	token := r.token(t, "two", nil)
	stream := n.sync(t)
	log.set(fmt.Errorf("test: %w", audit.ErrDiskFull))

	res := stream.issue(t, request(1, "shop/web", "/web"))[0]
	if len(res.GetChain()) > 0 || codes.Code(res.GetCode()) != codes.ResourceExhausted || res.GetRetryAfter() == 0 {
		t.Fatalf("workload leaf: %v", res)
	}
	_, anonymous := r.dial(t, nil)
	_, err := anonymous.Attest(t.Context(), &wire.AttestRequest{Token: token, Csr: csrOf(newKey())})
	wantCode(t, err, codes.ResourceExhausted, "no certificate without a record")
	_, err = n.client.Renew(t.Context(), &wire.RenewRequest{Csr: csrOf(newKey())})
	wantCode(t, err, codes.ResourceExhausted, "no certificate without a record")
	_, err = r.admin.CreateToken(t.Context(), &wire.CreateTokenRequest{Ttl: 60_000})
	wantCode(t, err, codes.ResourceExhausted, "token")
	_, err = r.admin.EvictNode(t.Context(), &wire.EvictNodeRequest{Name: "one"})
	wantCode(t, err, codes.ResourceExhausted, "eviction")
	_, err = r.admin.Apply(t.Context(), &wire.ApplyRequest{Documents: [][]byte{registration("shop", "api", "/api", "")}})
	wantCode(t, err, codes.ResourceExhausted, "not in force")
	if got := must(r.admin.Get(t.Context(), &wire.GetRequest{})); len(got.GetDocuments()) != 1 {
		t.Fatal("a document is in force without its record")
	}
	_, err = r.admin.Delete(t.Context(), &wire.DeleteRequest{Keys: []*wire.ResourceKey{{Kind: "Registration", Namespace: "shop", Name: "web"}}})
	wantCode(t, err, codes.ResourceExhausted, "waits for its record")
	backup, err := r.admin.Backup(t.Context(), &wire.BackupRequest{})
	if err == nil {
		_, err = backup.Recv()
	}
	wantCode(t, err, codes.ResourceExhausted, "backup")
	before := r.certificates()
	k := keeper{server: r.Server}
	k.Renew(t.Context(), time.Now().Add(DefaultIntermediateTTL))
	for i, c := range r.certificates() {
		if c.cert != before[i].cert {
			t.Errorf("%s was renewed without a record", c.role)
		}
	}
	// The stream lives on, and everything works once the log does.
	log.set(nil)
	if res := stream.issue(t, request(2, "shop/web", "/web"))[0]; len(res.GetChain()) == 0 {
		t.Fatalf("after the log came back: %v", res)
	}
	waitEvent(t, r.authorityLog, "the stored document", func(e audit.Event) bool { return e.Document == "Registration shop/api" })
	position := r.apply(t, registration("shop", "more", "/more", "")).GetPosition()
	stream.reach(t, position)
	if got := strings.Join(stream.names(), " "); got != "Registration shop/api Registration shop/more Registration shop/web" {
		t.Fatalf("node holds %s", got)
	}
}

// TestFullDiskStopsIssuanceAndNotAdministration runs the authority log on a
// real file system of a megabyte.
func TestFullDiskStopsIssuanceAndNotAdministration(t *testing.T) {
	cfg := testConfig(shortDir(t))
	cfg.AuthorityReserve = 128 << 10
	dir := LogDir(cfg.DataDir, AuthorityLog)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for d := dir; d != filepath.Dir(cfg.DataDir); d = filepath.Dir(d) {
		os.Chmod(d, 0o700)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		t.Skipf("needs the right to mount: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	r := start(t, cfg)
	n := r.join(t, "one", nil)
	r.apply(t, registration("shop", "web", "/web", ""))
	s := n.sync(t)
	csr := csrOf(n.key)
	batch := func() []*wire.IssueRequest {
		var out []*wire.IssueRequest
		for range 100 {
			out = append(out, &wire.IssueRequest{Registration: "shop/web", SpiffeId: "spiffe://example.org/web", Csr: csr})
		}
		return out
	}
	var full *wire.IssueResult
	for i := 0; full == nil; i++ {
		if res := s.issue(t, batch()...)[0]; len(res.GetChain()) == 0 {
			full = res
		}
		if i > 100 {
			t.Fatal("a log of a megabyte took 10,000 issuances")
		}
	}
	if codes.Code(full.GetCode()) != codes.ResourceExhausted || !strings.Contains(full.GetError(), "disk") || full.GetRetryAfter() == 0 {
		t.Fatalf("result %v", full)
	}
	if err := r.Ready(); !errors.Is(err, audit.ErrDiskFull) {
		t.Errorf("ready: %v", err)
	}
	s.reach(t, r.apply(t, registration("shop", "more", "/more", "")).GetPosition())
	must(r.admin.EvictNode(t.Context(), &wire.EvictNodeRequest{Name: "one"}))
	wantCode(t, <-s.ended, codes.PermissionDenied, "evicted")
}

func TestOutboxIsDrainedOnceAfterACrash(t *testing.T) {
	cfg := testConfig(shortDir(t))
	s := must(New(cfg))
	log := &faulty{Recorder: s.authorityLog}
	s.setRecorder(log)
	r := run(t, s)
	log.set(errors.New("test: broken"))
	_, err := r.admin.Apply(t.Context(), &wire.ApplyRequest{Documents: [][]byte{registration("shop", "web", "/web", "")}})
	wantCode(t, err, codes.Unavailable, "not in force")
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r = start(t, cfg)
		if got := events(t, r.authorityLog, audit.KindDocumentApplied); len(got) != 1 || got[0].Revision == 0 || got[0].Epoch == 0 {
			t.Fatalf("events %+v", got)
		}
		if got := must(r.admin.Get(t.Context(), &wire.GetRequest{})); len(got.GetDocuments()) != 1 {
			t.Fatal("the document is not in force")
		}
		if left, _, _ := r.store.Scan(prefixOutbox, 0); len(left) != 0 {
			t.Fatalf("outbox %v", left)
		}
		r.stop()
	}
}

func TestStrangersAreRefusedAndRecorded(t *testing.T) {
	cfg := testConfig(shortDir(t))
	r := start(t, cfg)
	n := r.join(t, "one", nil)
	r.apply(t, registration("shop", "web", "/web", ""))
	s := n.sync(t)
	key := newKey()
	res := s.issue(t, &wire.IssueRequest{Registration: "shop/web", SpiffeId: "spiffe://example.org/web", Csr: csrOf(key)})[0]
	workload := must(identity.NewSVID(must(identity.ParseChain(res.GetChain())), key, time.Now()))
	foreign := identitytest.New(t, "other.org").SVID(t, "/aval/node/one")
	forged := identitytest.New(t, "example.org").SVID(t, "/aval/node/one")
	own := r.Credentials().SVID
	for reason, cert := range map[string]*tls.Certificate{
		audit.ReasonWrongTrustDomain: foreign.TLSCertificate(),
		audit.ReasonUnknownAuthority: forged.TLSCertificate(),
		audit.ReasonIDMismatch:       workload.TLSCertificate(),
		"server":                     own.TLSCertificate(),
		audit.ReasonNotAnSVID:        {Certificate: [][]byte{r.trust.Load().intermediate.Certificate().Raw}, PrivateKey: n.key},
	} {
		_, client := r.dial(t, cert)
		if _, err := client.Renew(t.Context(), &wire.RenewRequest{Csr: csrOf(newKey())}); err == nil {
			t.Errorf("%s: admitted", reason)
		}
		if reason == "server" || reason == audit.ReasonNotAnSVID {
			continue // counted with the others of its reason and source
		}
		waitEvent(t, r.connections, reason, func(e audit.Event) bool { return e.Kind == audit.KindConnection && e.Reason == reason })
	}
	_, client := r.dial(t, nil)
	_, err := client.Renew(t.Context(), &wire.RenewRequest{Csr: csrOf(newKey())})
	wantCode(t, err, codes.Unauthenticated, "certificate")
	bad, err := client.Sync(t.Context())
	if err == nil {
		_, err = bad.Recv()
	}
	wantCode(t, err, codes.Unauthenticated, "certificate")
}

func TestBadJoinsAreRefusedAndRecorded(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(shortDir(t)))
	_, client := r.dial(t, nil)
	token, key := r.token(t, "one", nil), newKey()
	short := must(r.admin.CreateToken(t.Context(), &wire.CreateTokenRequest{Node: "late", Ttl: 1000})).GetToken()
	attest := func(req *wire.AttestRequest) error { _, err := client.Attest(t.Context(), req); return err }
	for range 2 { // the same key may retry
		if err := attest(&wire.AttestRequest{Token: token, Csr: csrOf(key)}); err != nil {
			t.Fatal(err)
		}
	}
	timer := time.NewTimer(1100 * time.Millisecond)
	<-timer.C
	for reason, req := range map[string]*wire.AttestRequest{
		ca.ReasonTokenReused:  {Token: token, Csr: csrOf(newKey())},
		ca.ReasonTokenExpired: {Token: short, Csr: csrOf(newKey())},
		ca.ReasonBadToken:     {Token: ca.NewToken().Reveal(), Csr: csrOf(newKey())},
		ca.ReasonBadCSR:       {Token: token, Csr: []byte("garbled")},
		ca.ReasonUnknownNode:  {NodeId: "spiffe://example.org/aval/node/nobody", Csr: csrOf(newKey())},
		ca.ReasonUnknownKey:   {NodeId: "spiffe://example.org/aval/node/one", Csr: csrOf(newKey())},
	} {
		err := attest(req)
		if err == nil {
			t.Errorf("%s: admitted", reason)
			continue
		}
		if req.GetToken() != "" && strings.Contains(err.Error(), req.GetToken()[4:]) {
			t.Errorf("%s: the token is in the error", reason)
		}
		waitEvent(t, r.connections, reason, func(e audit.Event) bool { return e.Kind == audit.KindRefused && e.Reason == reason })
	}
	if err := attest(&wire.AttestRequest{Token: "avt_x", Csr: csrOf(key)}); err == nil {
		t.Error("a malformed token was taken")
	}
	if err := attest(&wire.AttestRequest{}); err == nil {
		t.Error("an empty request was taken")
	}
	text := new(bytes.Buffer)
	for _, log := range r.logs() {
		for e, err := range log.Entries(0) {
			if err != nil {
				t.Fatal(err)
			}
			text.Write(e.AppendJSON(nil))
		}
	}
	for _, secret := range []string{token, short} {
		if strings.Contains(text.String(), secret[4:]) {
			t.Error("a token is in a log")
		}
	}
}

func TestHandshakesAreBounded(t *testing.T) {
	cfg := testConfig(shortDir(t))
	cfg.MaxConnections = 16 // four handshakes at a time
	cfg.HandshakeTimeout = time.Second
	r := start(t, cfg)
	n := r.join(t, "one", nil)
	r.apply(t, registration("shop", "web", "/web", ""))
	s := n.sync(t)
	before := openFiles(t)

	// TLS 1.2 is refused.
	if c, err := tls.Dial("tcp", r.Addr().String(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err == nil {
		c.Close()
		t.Error("TLS 1.2 was accepted")
	}
	// A flood of connections that never finish their handshake: some are
	// over a limit, the others time out, and issuing goes on.
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			c, err := net.Dial("tcp", r.Addr().String())
			if err != nil {
				return
			}
			defer c.Close()
			c.Write([]byte{0x16, 3, 1})
			io.Copy(io.Discard, c) // until the server closes it
		})
	}
	for i := range 5 {
		if res := s.issue(t, request(uint64(i), "shop/web", "/web"))[0]; len(res.GetChain()) == 0 {
			t.Fatalf("during the flood: %v", res)
		}
	}
	wg.Wait()
	for _, reason := range []string{audit.ReasonTLSVersion, audit.ReasonLimit, audit.ReasonHandshakeTimeout} {
		waitEvent(t, r.connections, reason, func(e audit.Event) bool { return e.Reason == reason && e.Verdict == audit.VerdictDenied })
	}
	if got := len(events(t, r.connections, audit.KindConnection)); got > 12 {
		t.Errorf("%d records of a flood from one source", got)
	}
	// What the flood took is given back: a new node can join.
	r.join(t, "two", nil).sync(t)
	if after := openFiles(t); after > before+16 {
		t.Errorf("%d open files, were %d", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	return len(must(os.ReadDir("/proc/self/fd")))
}

func TestMalformedStreamsEndAlone(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	n := r.join(t, "one", nil)
	for name, frames := range map[string][]*wire.NodeFrame{
		"no hello":     {{Frame: &wire.NodeFrame_Ack{Ack: &wire.Ack{}}}},
		"empty":        {{}},
		"second hello": {{Frame: &wire.NodeFrame_Hello{Hello: &wire.Hello{}}}, {Frame: &wire.NodeFrame_Hello{Hello: &wire.Hello{}}}},
		"unknown":      {{Frame: &wire.NodeFrame_Hello{Hello: &wire.Hello{}}}, {}},
	} {
		raw := must(n.client.Sync(t.Context()))
		for _, f := range frames {
			raw.Send(f)
		}
		var err error
		for err == nil {
			_, err = raw.Recv()
		}
		if wantCode(t, err, codes.InvalidArgument, ""); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	s := n.sync(t)
	var many []*wire.IssueRequest
	for range MaxBatch + 1 {
		many = append(many, &wire.IssueRequest{})
	}
	for _, res := range s.issue(t, many...) {
		if codes.Code(res.GetCode()) != codes.InvalidArgument {
			t.Fatalf("a batch over the limit: %v", res)
		}
	}
	nils := s.issue(t, &wire.IssueRequest{}, &wire.IssueRequest{Registration: strings.Repeat("x", 1<<16), SpiffeId: strings.Repeat("y", 1<<16)})
	for _, res := range nils {
		if res.GetError() == "" {
			t.Fatalf("empty request: %v", res)
		}
	}
}

func FuzzConnectionRecord(f *testing.F) {
	f.Add([]byte(`{"time":"2026-11-22T10:00:00Z","kind":"connection","verdict":"allowed","reason":"allowed"}`))
	f.Add([]byte(`{"kind":"issuance"}`))
	f.Add([]byte(`{}{}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := decodeRecord(raw)
		if err == nil && e.Kind != audit.KindConnection && e.Kind != audit.KindLoss {
			t.Fatalf("took a record of the kind %s", e.Kind)
		}
	})
}

// TestViewEqualsAWholeSnapshot holds the incremental deltas against a fresh
// snapshot after each of many random changes.
func TestViewEqualsAWholeSnapshot(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(shortDir(t)))
	s := r.join(t, "one", map[string]string{"zone": "a"}).sync(t)
	spaces := []string{"aval-system", "n1", "n2"}
	for i := range 60 {
		ns := spaces[i*7%3]
		var docs [][]byte
		for j := range i%3 + 1 {
			name := fmt.Sprintf("d%d", (i*5+j)%6)
			switch (i + j) % 3 {
			case 0:
				docs = append(docs, registration(ns, name, "/r/"+ns+name, ""))
			case 1:
				docs = append(docs, registration(ns, name, "/r/"+ns+name, `,"node":{"zone":"b"}`))
			case 2:
				docs = append(docs, denyAll(ns, name))
			}
		}
		position := r.apply(t, docs...).GetPosition()
		if i%4 == 3 {
			all := r.documents.now.Load().sorted(func(k document.Key) bool { return k.Namespace == ns })
			if len(all) > 0 {
				key := wire.FromKey(all[i%len(all)].key)
				position = must(r.admin.Delete(t.Context(), &wire.DeleteRequest{Keys: []*wire.ResourceKey{key}})).GetPosition()
			}
		}
		s.reach(t, position)
		fresh := view{attributes: identity.Attributes{"zone": {"a"}}, root: "aval-system", sent: map[document.Key]uint64{}, namespaces: map[string]int{}}
		fresh.advance(r.documents.now.Load(), r.keySets.now.Load(), identity.Bundle{})
		if len(fresh.sent) != len(s.held) {
			t.Fatalf("after change %d: holds %v, should hold %v", i, s.names(), fresh.sent)
		}
		for k, rev := range fresh.sent {
			if s.held[k.String()] != rev {
				t.Fatalf("after change %d: %s is held at %d, not %d", i, k, s.held[k.String()], rev)
			}
		}
	}
}
