// This file holds the crash test: a real server killed at random moments
// while it applies and issues.

package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/wire"
)

// victim is a server in a process of its own.
type victim struct {
	cfg     Config
	address string
	cmd     *exec.Cmd
	admin   wire.AdminClient
	conn    *grpc.ClientConn
}

func freePort(t *testing.T) int {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (v *victim) start(t *testing.T, dir string, port int) {
	t.Helper()
	v.cmd = exec.Command(must(os.Executable()))
	v.cmd.Env = append(os.Environ(), "AVAL_TEST_CHILD=server", "AVAL_TEST_ARG="+dir+" "+strconv.Itoa(port))
	out := must(v.cmd.StdoutPipe())
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "address ") {
		t.Fatalf("server said %q: %v", line, err)
	}
	v.address = strings.TrimSpace(strings.TrimPrefix(line, "address "))
	v.conn = must(grpc.NewClient("unix://"+v.cfg.AdminSocket, grpc.WithTransportCredentials(insecure.NewCredentials())))
	v.admin = wire.NewAdminClient(v.conn)
}

func (v *victim) kill() {
	v.cmd.Process.Kill()
	v.cmd.Wait()
	v.conn.Close()
}

// promised is what the server acknowledged.
type promised struct {
	mu        sync.Mutex
	documents map[string]bool // by path
	leaves    map[string]bool // SHA-256 of the leaf
}

func TestKilledServerLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	dir := shortDir(t)
	v := &victim{cfg: testConfig(dir)}
	port := freePort(t)
	p := &promised{documents: map[string]bool{}, leaves: map[string]bool{}}
	key := newKey()
	var node *testNode
	for round := range rounds {
		v.start(t, dir, port)
		if node == nil {
			r := &running{Server: &Server{nodeListener: fixedAddr(v.address)}, admin: v.admin}
			must(v.admin.ServerStatus(t.Context(), &wire.ServerStatusRequest{}, grpc.WaitForReady(true)))
			node = r.joinWith(t, r.token(t, "one", nil), key)
			r.apply(t, registration("shop", "web", "/web", ""))
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { p.applyUntil(ctx, v.admin, round) })
		wg.Go(func() { p.issueUntil(ctx, node) })
		timer := time.NewTimer(150*time.Millisecond + rand.N(250*time.Millisecond))
		<-timer.C
		v.kill()
		cancel()
		wg.Wait()
	}
	if len(p.documents) == 0 || len(p.leaves) == 0 {
		t.Fatalf("%d documents and %d leaves were acknowledged", len(p.documents), len(p.leaves))
	}
	r := start(t, v.cfg)
	p.check(t, r)
	r.stop()
	for _, log := range []string{AuthorityLog, ConnectionsLog} {
		verifier := strings.TrimSpace(string(must(os.ReadFile(LogVerifierFile(v.cfg.DataDir, log)))))
		report, err := audit.Verify(LogDir(v.cfg.DataDir, log), verifier, audit.VerifyOptions{})
		if err != nil || !report.Verified {
			t.Fatalf("log %s: %+v %v", log, report, err)
		}
	}
	t.Logf("%d kills: %d documents, %d leaves acknowledged, all there", rounds, len(p.documents), len(p.leaves))
}

// applyUntil applies one document after the other until the server is gone.
func (p *promised) applyUntil(ctx context.Context, admin wire.AdminClient, round int) {
	for i := 0; ctx.Err() == nil; i++ {
		name := fmt.Sprintf("d%d-%d", round, i)
		_, err := admin.Apply(ctx, &wire.ApplyRequest{Documents: [][]byte{registration("crash", name, "/crash/"+name, "")}}, grpc.WaitForReady(i == 0))
		if err != nil {
			return
		}
		p.mu.Lock()
		p.documents[name] = true
		p.mu.Unlock()
	}
}

// issueUntil has batches issued until the server is gone.
func (p *promised) issueUntil(ctx context.Context, node *testNode) {
	stream, err := node.client.Sync(ctx, grpc.WaitForReady(true))
	if err != nil {
		return
	}
	stream.Send(&wire.NodeFrame{Frame: &wire.NodeFrame_Hello{Hello: &wire.Hello{}}})
	csr := csrOf(node.key)
	ask := func() error {
		var batch []*wire.IssueRequest
		for n := range 3 {
			batch = append(batch, &wire.IssueRequest{Request: uint64(n), Registration: "shop/web", SpiffeId: "spiffe://example.org/web", Csr: csr})
		}
		return stream.Send(&wire.NodeFrame{Frame: &wire.NodeFrame_Issue{Issue: &wire.IssueBatch{Requests: batch}}})
	}
	if ask() != nil {
		return
	}
	for {
		f, err := stream.Recv()
		if err != nil {
			return
		}
		issued := f.GetIssued()
		if issued == nil {
			continue
		}
		for _, res := range issued.GetResults() {
			if chain := res.GetChain(); len(chain) > 0 {
				sum := sha256.Sum256(chain[0])
				p.mu.Lock()
				p.leaves[hex.EncodeToString(sum[:])] = true
				p.mu.Unlock()
			}
		}
		if ask() != nil {
			return
		}
	}
}

// check holds the restarted server against what was acknowledged: it is all
// there, and no document's change is recorded twice.
func (p *promised) check(t *testing.T, r *running) {
	t.Helper()
	there := map[string]bool{}
	for _, raw := range must(r.admin.Get(t.Context(), &wire.GetRequest{Namespace: "crash"})).GetDocuments() {
		_, rest, _ := bytes.Cut(raw, []byte(`"name":"`))
		name, _, _ := bytes.Cut(rest, []byte(`"`))
		there[string(name)] = true
	}
	for name := range p.documents {
		if !there[name] {
			t.Errorf("acknowledged document %s is missing", name)
		}
	}
	recorded, leaves := map[string]int{}, map[string]bool{}
	for e, err := range r.authorityLog.Entries(0) {
		if err != nil {
			t.Fatal(err)
		}
		switch e.Kind {
		case audit.KindDocumentApplied:
			recorded[strings.TrimPrefix(e.Document, "Registration crash/")]++
		case audit.KindIssuance:
			leaves[e.LeafSHA256] = true
		}
	}
	for name := range there {
		if recorded[name] != 1 {
			t.Errorf("document %s is recorded %d times", name, recorded[name])
		}
	}
	for leaf := range p.leaves {
		if !leaves[leaf] {
			t.Errorf("an acknowledged leaf is not in the log: %s", leaf)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(r.cfg.DataDir, ".tmp-*")); len(left) > 1 {
		t.Errorf("left behind: %v", left)
	}
}

// fixedAddr is a listener's address without the listener.
type fixedAddr string

func (a fixedAddr) Accept() (net.Conn, error) { return nil, errors.New("not a listener") }
func (a fixedAddr) Close() error              { return nil }
func (a fixedAddr) Addr() net.Addr            { return textAddr(a) }

type textAddr string

func (a textAddr) Network() string { return "tcp" }
func (a textAddr) String() string  { return string(a) }
