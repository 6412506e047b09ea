// This file holds the tests of what workloads get, with real sockets, TLS and
// the released go-spiffe client.

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aval-id/aval/identity/identitytest"
	"github.com/aval-id/aval/identity/wire"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

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
