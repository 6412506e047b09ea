// This file holds the tests of peers that attack: strangers who send without
// end, nodes that lie, and an evicted one that races its eviction.

package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/identity/wire"
)

// meddling lets a test act between the check of a request and its record.
type meddling struct {
	ca.Recorder
	before func(audit.Event)
}

func (m *meddling) RecordAll(ctx context.Context, events []audit.Event) ([]audit.Receipt, error) {
	for _, e := range events {
		m.before(e)
	}
	return m.Recorder.RecordAll(ctx, events)
}

// backup copies the store into a file.
func (r *running) backup(t testing.TB) string {
	t.Helper()
	stream := must(r.admin.Backup(t.Context(), &wire.BackupRequest{}))
	var copied bytes.Buffer
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		copied.Write(m.GetData())
	}
	path := filepath.Join(t.TempDir(), "backup")
	if err := os.WriteFile(path, copied.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAnEvictionIsNotUndoneByAnAttestationUnderWay(t *testing.T) {
	cfg := testConfig(shortDir(t))
	s := must(New(cfg))
	log := &meddling{Recorder: s.authorityLog, before: func(audit.Event) {}}
	s.setRecorder(log)
	r := run(t, s)
	token, key := r.token(t, "one", nil), newKey()
	r.joinWith(t, token, key)
	path := r.backup(t)
	_, anonymous := r.dial(t, nil)
	// The attestation begins after the eviction did, is checked before that is
	// stored, and is admitted after it.
	attesting, evicted, attested := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	log.before = func(e audit.Event) {
		switch e.Kind {
		case audit.KindNodeEvicted:
			go func() {
				_, err := anonymous.Attest(t.Context(), &wire.AttestRequest{Token: token, Csr: csrOf(key)})
				attested <- err
			}()
			<-attesting
		case audit.KindNodeAttested:
			close(attesting)
			<-evicted
		}
	}
	_, err := r.admin.EvictNode(t.Context(), &wire.EvictNodeRequest{Name: "one"})
	close(evicted)
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, <-attested, codes.PermissionDenied, "evicted")
	if node, _ := r.nodes.get("one"); !node.Evicted {
		t.Fatal("the eviction was undone")
	}
	// The log holds the attestation after the eviction. That readmits nobody
	// when an older store comes back either.
	r.stop()
	must(Restore(path, cfg.DataDir))
	r = start(t, cfg)
	if node, _ := r.nodes.get("one"); !node.Evicted {
		t.Fatal("the eviction was undone by a restore")
	}
	_, anonymous = r.dial(t, nil)
	_, err = anonymous.Attest(t.Context(), &wire.AttestRequest{NodeId: "spiffe://example.org/aval/node/one", Csr: csrOf(key)})
	wantCode(t, err, codes.PermissionDenied, "evicted")
}

func TestARestoreVoidsJoinTokens(t *testing.T) {
	cfg := testConfig(shortDir(t))
	r := start(t, cfg)
	token := r.token(t, "one", nil)
	path := r.backup(t)
	r.joinWith(t, token, newKey())
	r.stop()
	must(Restore(path, cfg.DataDir))
	r = start(t, cfg)
	_, anonymous := r.dial(t, nil)
	_, err := anonymous.Attest(t.Context(), &wire.AttestRequest{Token: token, Csr: csrOf(newKey())})
	wantCode(t, err, codes.PermissionDenied, "not known")
	r.joinWith(t, r.token(t, "one", nil), newKey())
}

func TestANodesVersionNeverBreaksTheListOfNodes(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	n := r.join(t, "one", nil)
	stream, err := n.client.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&wire.NodeFrame{Frame: &wire.NodeFrame_Hello{Hello: &wire.Hello{Version: strings.Repeat("é", 200) + "x", Clock: 1}}}); err != nil {
		t.Fatal(err)
	}
	must(stream.Recv())
	for _, version := range []string{strings.Repeat("x", 127) + "é", strings.Repeat("x", 126) + "é"} {
		s, err := n.client.Sync(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(&wire.NodeFrame{Frame: &wire.NodeFrame_Hello{Hello: &wire.Hello{Version: version}}}); err != nil {
			t.Fatal(err)
		}
		must(s.Recv())
		if _, err := r.admin.ListNodes(t.Context(), &wire.ListNodesRequest{}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAStrangerThatSendsOrStaysIsCutOff(t *testing.T) {
	cfg := testConfig(shortDir(t))
	cfg.HandshakeTimeout, cfg.MaxConnections = time.Second, 16 // four strangers
	r := start(t, cfg)
	member := r.join(t, "one", nil)
	member.sync(t)
	// A message that is never whole: without a bound it would be gathered.
	_, much := r.dial(t, nil)
	_, err := much.Attest(t.Context(), &wire.AttestRequest{Token: strings.Repeat("x", 8<<20)})
	wantCode(t, err, codes.Unavailable, "")
	// A call that never ends. Attest is called as a stream, and says nothing.
	conn, _ := r.dial(t, nil)
	silent, err := conn.NewStream(t.Context(), &wire.Node_ServiceDesc.Streams[0], wire.Node_Attest_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	if err := silent.RecvMsg(&wire.AttestResponse{}); err == nil {
		t.Fatal("an answer to nothing")
	}
	// Who is over the limit leaves a record; a node's place is not taken.
	var over []context.CancelFunc
	for range 8 {
		ctx, cancel := context.WithCancel(t.Context())
		over = append(over, cancel)
		conn, _ := r.dial(t, nil)
		go func() {
			if s, err := conn.NewStream(ctx, &wire.Node_ServiceDesc.Streams[0], wire.Node_Attest_FullMethodName); err == nil {
				_ = s.RecvMsg(&wire.AttestResponse{})
			}
		}()
	}
	waitEvent(t, r.connections, "limit", func(e audit.Event) bool { return e.Reason == audit.ReasonLimit })
	// A handshake may meet theirs in the few places for handshakes, but not
	// for longer than they last.
	var refused error
	for began := time.Now(); time.Since(began) < 10*cfg.HandshakeTimeout; {
		member.connect(t)
		if _, refused = member.trySync(t); refused == nil {
			break
		}
	}
	if refused != nil {
		t.Fatal(refused)
	}
	for _, cancel := range over {
		cancel()
	}
}

func TestOneSourceCannotTakeAllPlacesForHandshakes(t *testing.T) {
	cfg := testConfig(shortDir(t))
	cfg.MaxConnections, cfg.MaxHandshakesPerSource, cfg.HandshakeTimeout = 64, 4, time.Minute // 16 places
	r := start(t, cfg)
	node := r.join(t, "one", nil)
	// Silent connections of another address of this machine.
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	closed := make(chan struct{}, 64)
	for range 40 {
		c, err := from.DialContext(t.Context(), "tcp", r.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		go func() {
			if _, err := c.Read(make([]byte, 1)); err != nil {
				closed <- struct{}{}
			}
		}()
	}
	for range 36 {
		<-closed
	}
	node.connect(t)
	node.sync(t)
	e := waitEvent(t, r.connections, "limit", func(e audit.Event) bool { return e.Reason == audit.ReasonLimit })
	if !strings.HasPrefix(e.Source, "127.0.0.2:") || !strings.Contains(e.Detail, "more than 4 handshakes of one source") {
		t.Errorf("record: %+v", e)
	}
}

func TestARecordsClaimedTimeHidesNothing(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	n := r.join(t, "one", nil)
	s := n.sync(t)
	record := func(at time.Time, sni string) []byte {
		return fmt.Appendf(nil, `{"time":%q,"kind":"connection","verdict":"denied","reason":"policy_denied","sni":%q}`, at.Format(time.RFC3339), sni)
	}
	long := time.Date(1970, 1, 2, 0, 0, 0, 0, time.UTC)
	batch := [][]byte{record(time.Now(), "evidence")}
	for range 20 {
		batch = append(batch, record(long, "chaff"))
	}
	batch = append(batch, []byte(`{"time":"2026-01-01T00:00:00Z","kind":"loss","kept_from":1000000}`))
	batch = append(batch, []byte(`{"time":"9999-12-31T23:59:59-01:00","kind":"connection","reason":"allowed"}`))
	if err := s.Send(&wire.NodeFrame{Frame: &wire.NodeFrame_Records{Records: &wire.RecordBatch{Sequence: 1, Events: batch}}}); err != nil {
		t.Fatal(err)
	}
	s.answer(t)
	for _, e := range events(t, r.connections, audit.KindLoss) {
		if e.KeptFrom != 0 || e.Lost != 2 {
			t.Errorf("loss: %+v", e)
		}
	}
	entries := must(r.admin.Entries(t.Context(), &wire.EntriesRequest{Log: ConnectionsLog, Since: time.Now().Add(-time.Hour).UnixMilli()}))
	var text strings.Builder
	for {
		m, err := entries.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range m.GetEntries() {
			text.Write(e)
		}
	}
	if !strings.Contains(text.String(), "evidence") || strings.Contains(text.String(), "chaff") {
		t.Fatalf("entries of the last hour: %s", text.String())
	}
}

func TestARenewalByAReplacedKeyRecordsNothing(t *testing.T) {
	cfg := testConfig(shortDir(t))
	s := must(New(cfg))
	log := &meddling{Recorder: s.authorityLog, before: func(audit.Event) {}}
	s.setRecorder(log)
	r := run(t, s)
	old := r.join(t, "one", nil)
	path := r.backup(t)
	token, fresh := r.token(t, "one", nil), newKey()
	_, anonymous := r.dial(t, nil)
	// While the old key's renewal is under way, the node joins anew.
	log.before = func(e audit.Event) {
		if e.Kind != audit.KindNodeRenewed {
			return
		}
		if _, err := anonymous.Attest(context.Background(), &wire.AttestRequest{Token: token, Csr: csrOf(fresh)}); err != nil {
			t.Error(err)
		}
	}
	_, err := old.client.Renew(t.Context(), &wire.RenewRequest{Csr: csrOf(newKey())})
	wantCode(t, err, codes.PermissionDenied, "not one that node one may use")
	want := must(ca.ProveCSR(csrOf(fresh))).Hash()
	if node, _ := r.nodes.get("one"); len(node.Keys) != 1 || node.Keys[0] != want {
		t.Fatalf("keys %v, want %s", node.Keys, want)
	}
	r.stop()
	must(Restore(path, cfg.DataDir))
	r = start(t, cfg)
	if node, _ := r.nodes.get("one"); len(node.Keys) != 1 || node.Keys[0] != want {
		t.Fatalf("after a restore: keys %v, want %s", node.Keys, want)
	}
}

func TestClaimedLossesNeverRunOver(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	n := r.join(t, "one", nil)
	s := n.sync(t)
	for seq := range uint64(2) {
		batch := &wire.RecordBatch{Sequence: seq + 1, Lost: 1<<64 - 1, Events: [][]byte{[]byte("not a record")}}
		if err := s.Send(&wire.NodeFrame{Frame: &wire.NodeFrame_Records{Records: batch}}); err != nil {
			t.Fatal(err)
		}
		s.answer(t)
	}
	for _, e := range events(t, r.connections, audit.KindLoss) {
		if e.Lost != maxLost+1 {
			t.Errorf("a loss of %d", e.Lost)
		}
	}
	if got := len(events(t, r.connections, audit.KindLoss)); got != 2 {
		t.Errorf("%d records of two losses", got)
	}
}
