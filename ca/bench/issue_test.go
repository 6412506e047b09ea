// This file holds the issuance benchmark. The benchmark's process is the
// server; the nodes are a child process, so that the server's CPU time is
// that of the process.

package bench

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/aval-id/aval/ca/server"
	"github.com/aval-id/aval/cmd/measure"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/wire"
)

const (
	connections = 4
	perRound    = 2000 // SVIDs
	distinct    = 200  // CSRs that a node has ready
)

func TestMain(m *testing.M) {
	if os.Getenv("AVAL_BENCH_NODES") != "" {
		if err := nodes(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "nodes:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// BenchmarkIssue is the server's CPU for each SVID at batches of 50 and of 1,
// beside the floor: parse a CSR, check its signature, sign with
// x509.CreateCertificate; and how many it issues a second, with the nodes on
// the same cores. Rounds are interleaved, medians are told.
func BenchmarkIssue(b *testing.B) {
	s := startServer(b, nil)
	floor := newFloor(b)
	sides := []struct {
		what string
		run  func()
	}{
		{"floor", func() { floor.sign(b, perRound) }},
		{"an SVID, in batches of 50", func() { s.order(b, 50, perRound) }},
		{"an SVID, one at a time", func() { s.order(b, 1, perRound) }},
	}
	for b.Loop() {
		s.order(b, 50, 400) // warm
		rates := make([][]float64, len(sides))
		var turns []func() float64
		for i, side := range sides {
			turns = append(turns, func() float64 {
				before, began := measure.OwnCPU(b), time.Now()
				side.run()
				rates[i] = append(rates[i], perRound/time.Since(began).Seconds())
				return float64((measure.OwnCPU(b) - before).Microseconds()) / perRound
			})
		}
		costs := measure.Interleave(measure.Rounds, turns...)
		for i := 1; i < len(sides); i++ {
			measure.Figure{What: sides[i].what, Unit: "µs of CPU", Ours: costs[i], Beside: "floor", Baseline: costs[0]}.Tell(b)
			measure.Figure{What: sides[i].what, Unit: "per second", Ours: measure.Median(rates[i]), Beside: "floor", Baseline: measure.Median(rates[0])}.Tell(b)
		}
	}
}

// floor is the least that issuing costs.
type floor struct {
	csr    []byte
	parent *x509.Certificate
	key    *ecdsa.PrivateKey
}

func newFloor(b *testing.B) *floor {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	parent := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), SubjectKeyId: make([]byte, 20)}
	der, err := x509.CreateCertificate(rand.Reader, parent, parent, key.Public(), key)
	if err != nil {
		b.Fatal(err)
	}
	if parent, err = x509.ParseCertificate(der); err != nil {
		b.Fatal(err)
	}
	leaf, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, leaf)
	if err != nil {
		b.Fatal(err)
	}
	return &floor{csr, parent, key}
}

func (f *floor) sign(b *testing.B, n int) {
	for range n {
		csr, err := x509.ParseCertificateRequest(f.csr)
		if err != nil {
			b.Fatal(err)
		}
		if err := csr.CheckSignature(); err != nil {
			b.Fatal(err)
		}
		now := time.Now()
		if _, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(now.UnixNano()), NotBefore: now, NotAfter: now.Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			URIs:        []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/web"}}, BasicConstraintsValid: true,
		}, f.parent, csr.PublicKey, f.key); err != nil {
			b.Fatal(err)
		}
	}
}

// bench is a running server and its nodes.
type benchServer struct {
	in  io.Writer
	out *bufio.Scanner
}

// startServer starts a server, with what change makes of its configuration.
func startServer(b *testing.B, change func(*server.Config)) *benchServer {
	b.Helper()
	dir, err := os.MkdirTemp("", "aval")
	if err != nil {
		b.Fatal(err)
	}
	td, err := identity.ParseTrustDomain("example.org")
	if err != nil {
		b.Fatal(err)
	}
	cfg := server.Config{TrustDomain: td, DataDir: filepath.Join(dir, "data"), Listen: "127.0.0.1:0", AuthorityReserve: -1}
	if change != nil {
		change(&cfg)
	}
	s, err := server.New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
		os.RemoveAll(dir)
	})
	tokens := prepare(b, s)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "AVAL_BENCH_NODES=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	bs := &benchServer{in: in, out: bufio.NewScanner(out)}
	fmt.Fprintln(in, s.Addr(), strings.Join(tokens, " "))
	bs.wait(b, "ready")
	return bs
}

// prepare applies a registration and makes the nodes' tokens.
func prepare(b *testing.B, s *server.Server) []string {
	conn, err := grpc.NewClient("unix://"+s.AdminSocket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	admin := wire.NewAdminClient(conn)
	doc := `{"apiVersion":"aval.dev/v1alpha1","kind":"Registration","metadata":{"name":"web","namespace":"shop"},"spec":{"id":"/ns/shop/sa/web","workload":{"unix.uid":"1000"}}}`
	if _, err := admin.Apply(b.Context(), &wire.ApplyRequest{Documents: [][]byte{[]byte(doc)}}, grpc.WaitForReady(true)); err != nil {
		b.Fatal(err)
	}
	var tokens []string
	for range connections {
		t, err := admin.CreateToken(b.Context(), &wire.CreateTokenRequest{Ttl: 60_000})
		if err != nil {
			b.Fatal(err)
		}
		tokens = append(tokens, t.GetToken())
	}
	return tokens
}

func (s *benchServer) wait(b *testing.B, word string) {
	b.Helper()
	if !s.out.Scan() || s.out.Text() != word {
		b.Fatalf("nodes said %q: %v", s.out.Text(), s.out.Err())
	}
}

// order has the nodes fetch n SVIDs in batches of a size.
func (s *benchServer) order(b *testing.B, batch, n int) {
	b.Helper()
	fmt.Fprintln(s.in, batch, n/connections)
	s.wait(b, "done")
}

// nodes is the child process: it joins with each token and then does as told,
// line by line.
func nodes(in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	lines.Scan()
	words := strings.Fields(lines.Text())
	var streams []*node
	for _, token := range words[1:] {
		n, err := join(words[0], token)
		if err != nil {
			return err
		}
		streams = append(streams, n)
	}
	fmt.Fprintln(out, "ready")
	for lines.Scan() {
		batch, count, _ := strings.Cut(lines.Text(), " ")
		size, err := strconv.Atoi(batch)
		if err != nil {
			return err
		}
		total, err := strconv.Atoi(count)
		if err != nil {
			return err
		}
		var wg sync.WaitGroup
		errs := make(chan error, len(streams))
		for _, n := range streams {
			wg.Go(func() { errs <- n.fetch(size, total) })
		}
		wg.Wait()
		for range streams {
			if err := <-errs; err != nil {
				return err
			}
		}
		fmt.Fprintln(out, "done")
	}
	return nil
}

type node struct {
	stream   wire.Node_SyncClient
	requests []*wire.IssueRequest
}

func join(address, token string) (*node, error) {
	ctx := context.Background()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: []string{"h2"}}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	resp, err := wire.NewNodeClient(conn).Attest(ctx, &wire.AttestRequest{Token: token, Csr: csr})
	if err != nil {
		return nil, err
	}
	own := cfg.Clone()
	own.Certificates = []tls.Certificate{{Certificate: resp.GetChain(), PrivateKey: key}}
	conn2, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(own)),
		grpc.WithStaticStreamWindowSize(1<<20), grpc.WithStaticConnWindowSize(4<<20))
	if err != nil {
		return nil, err
	}
	n := &node{}
	if n.stream, err = wire.NewNodeClient(conn2).Sync(ctx); err != nil {
		return nil, err
	}
	if err := n.stream.Send(&wire.NodeFrame{Frame: &wire.NodeFrame_Hello{Hello: &wire.Hello{}}}); err != nil {
		return nil, err
	}
	for i := range distinct {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
		if err != nil {
			return nil, err
		}
		n.requests = append(n.requests, &wire.IssueRequest{Request: uint64(i), Registration: "shop/web", SpiffeId: "spiffe://example.org/ns/shop/sa/web", Csr: der})
	}
	return n, nil
}

// fetch asks for total SVIDs in batches of a size, one batch at a time.
func (n *node) fetch(size, total int) error {
	for at := 0; total > 0; total -= size {
		batch := make([]*wire.IssueRequest, 0, size)
		for range min(size, total) {
			batch = append(batch, n.requests[at%distinct])
			at++
		}
		if err := n.stream.Send(&wire.NodeFrame{Frame: &wire.NodeFrame_Issue{Issue: &wire.IssueBatch{Requests: batch}}}); err != nil {
			return err
		}
		for {
			f, err := n.stream.Recv()
			if err != nil {
				return err
			}
			if issued := f.GetIssued(); issued != nil {
				for _, r := range issued.GetResults() {
					if len(r.GetChain()) == 0 {
						return fmt.Errorf("result: %s", r.GetError())
					}
				}
				break
			}
		}
	}
	return nil
}
