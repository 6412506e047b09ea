// This file holds the tests of what proxies get and send, and of processes
// that become others.

package agent

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/identitytest"
	"github.com/aval-id/aval/identity/wire"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func policyDoc(namespace, name string) string {
	return fmt.Sprintf("---\napiVersion: aval.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: %s, namespace: %s}\nspec: {mtls: {mode: STRICT}}\n", name, namespace)
}

func policyNames(s *wire.Snapshot) []string {
	var out []string
	for _, p := range s.GetPolicies() {
		out = append(out, p.GetKey().GetNamespace()+"/"+p.GetKey().GetName())
	}
	return out
}

func TestAProxyGetsWholeSnapshotsOfItsOwnNamespace(t *testing.T) {
	td := identitytest.New(t, "example.org")
	s := newFakeServer(t, td)
	s.apply(registration("web", "/ns/shop/sa/web") + policyDoc("shop", "own") + policyDoc("other", "foreign") + policyDoc("aval-system", "root"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	st, err := wire.NewProxyClient(a.dial(t)).Watch(t.Context(), &wire.WatchRequest{Evaluator: 1})
	if err != nil {
		t.Fatal(err)
	}
	snap, err := st.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if snap.GetSpiffeId() != web || snap.GetWorkloadNamespace() != "shop" || snap.GetWorkloadLabels()["app"] != "web" ||
		snap.GetNodeId() != "spiffe://example.org/aval/node/n1" || snap.GetSettings().GetRootNamespace() != "aval-system" {
		t.Fatal(snap)
	}
	if got := policyNames(snap); !slices.Equal(got, []string{"aval-system/root", "shop/own"}) {
		t.Fatal(got)
	}
	chain, err := identity.ParseChain(snap.GetChain())
	if err != nil {
		t.Fatal(err)
	}
	if b, err := wire.ToBundle(snap.GetBundles()[0]); err != nil || !b.Equal(td.Bundle) || len(chain) != 2 {
		t.Fatal(b, err)
	}
	// What concerns others is no news; the next snapshot is the one of "late".
	s.apply(policyDoc("other", "foreign2"))
	s.apply(policyDoc("shop", "late"))
	began := time.Now()
	if snap, err = st.Recv(); err != nil || !slices.Equal(policyNames(snap), []string{"aval-system/root", "shop/late", "shop/own"}) {
		t.Fatal(policyNames(snap), err)
	}
	t.Logf("policy after %v", time.Since(began))
	s.apply("", document.Key{Kind: document.PeerAuthentication, Namespace: "shop", Name: "own"})
	if snap, err = st.Recv(); err != nil || !slices.Equal(policyNames(snap), []string{"aval-system/root", "shop/late"}) {
		t.Fatal(policyNames(snap), err)
	}
	s.apply(strings.Replace(registration("web", "/ns/shop/sa/web"), "app: web", "app: next", 1))
	serial := snap.GetChain()[0]
	if snap, err = st.Recv(); err != nil || snap.GetWorkloadLabels()["app"] != "next" || string(snap.GetChain()[0]) != string(serial) {
		t.Fatal(snap.GetWorkloadLabels(), err)
	}
	s.apply("", regKey("web"))
	if _, err = st.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Fatalf("after the registration went: %v", err)
	}
}

func TestAProxyNamesItsIdentityWhereItHasSeveral(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.apply(registration("web", "/ns/shop/sa/web") + registration("api", "/ns/shop/sa/api"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	c := wire.NewProxyClient(a.dial(t))
	for _, wanted := range []string{"", "spiffe://example.org/other"} {
		st, err := c.Watch(t.Context(), &wire.WatchRequest{Identity: wanted})
		if err == nil {
			_, err = st.Recv()
		}
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), api+", "+web) {
			t.Fatalf("identity %q: %v", wanted, err)
		}
	}
	st, err := c.Watch(t.Context(), &wire.WatchRequest{Identity: api})
	if err != nil {
		t.Fatal(err)
	}
	if snap, err := st.Recv(); err != nil || snap.GetSpiffeId() != api {
		t.Fatal(snap, err)
	}
}

const record = `{"time":"2026-01-02T03:04:05Z","kind":"connection","verdict":"allowed","reason":"allowed","reporter":"spiffe://example.org/forged","client_id":"spiffe://example.org/c"}`

func report(t *testing.T, a *testAgent, batches ...*wire.RecordBatch) {
	t.Helper()
	st, err := wire.NewProxyClient(a.dial(t)).Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range batches {
		if err := st.Send(b); err != nil {
			t.Fatal(err)
		}
		ack, err := st.Recv()
		if err != nil || ack.GetSequence() != b.GetSequence() {
			t.Fatal(ack, err)
		}
	}
	st.CloseSend()
	st.Recv()
}

func TestRecordsAreStampedShippedAndTheBadOnesCounted(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.apply(registration("web", "/ns/shop/sa/web"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	began := time.Now()
	report(t, a, &wire.RecordBatch{Sequence: 7, Lost: 2, Events: [][]byte{
		[]byte(record), []byte("{"), []byte(`{"kind":"issuance","time":"2026-01-02T03:04:05Z"}`), []byte(record + record),
		[]byte(strings.Replace(record, `"client_id"`, `"unknown"`, 1)), []byte(strings.Replace(record, `"reason":"allowed"`, `"reason":"because"`, 1)),
	}}, &wire.RecordBatch{Sequence: 8, Events: [][]byte{[]byte(record)}})
	eventually(t, "records at the server", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.records) == 2 && s.lost == 7
	})
	if took := time.Since(began); took > time.Second && os.Getenv("CI") == "" {
		t.Logf("shipping took %v", took)
	}
	for _, r := range s.records {
		if r["reporter"] != web || r["node"] != "spiffe://example.org/aval/node/n1" || r["workload"] != "shop/web" || r["client_id"] != "spiffe://example.org/c" {
			t.Fatal(r)
		}
	}
}

func TestRecordsOutliveServerAndAgent(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.apply(registration("web", "/ns/shop/sa/web"))
	s.muteAcks = true
	cfg := testConfig(t, s)
	a := start(t, cfg)
	a.ready(t)
	report(t, a, &wire.RecordBatch{Sequence: 1, Events: [][]byte{[]byte(record), []byte(record)}})
	a.stop(t)
	s.mu.Lock()
	s.records, s.muteAcks = nil, false
	s.mu.Unlock()
	b := start(t, cfg)
	b.ready(t)
	eventually(t, "the unacknowledged records again", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.records) == 2
	})
	eventually(t, "an empty spool", func() bool { n, _ := b.spool.Stats(); return n == 0 })
}

func TestAStrangerCannotReport(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	st, err := wire.NewProxyClient(a.dial(t)).Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(&wire.RecordBatch{Sequence: 1, Events: [][]byte{[]byte(record)}}); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Fatalf("got %v", err)
	}
}

// execChild makes the test binary connect to the socket that is its value,
// hand the connection to its parent, and become another program.
const execChild = "AVAL_TEST_EXEC"

func runExecChild() int {
	conn, err := net.Dial("unix", os.Getenv(execChild))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	f, err := conn.(*net.UnixConn).File()
	if err == nil {
		err = unix.Sendmsg(3, []byte{1}, unix.UnixRights(int(f.Fd())), nil, 0)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		switch in.Text() {
		case "exec":
			sleep, err := exec.LookPath("sleep")
			if err == nil {
				err = syscall.Exec(sleep, []string{"sleep", "100"}, nil)
			}
			fmt.Println(err)
			return 1
		}
	}
	return 0
}

// stranger is a child process whose connection this process drives.
func stranger(t *testing.T, socket string) (grpc.ClientConnInterface, *exec.Cmd, func(string)) {
	t.Helper()
	return strangerOf(t, exec.Command(os.Args[0]), socket)
}

// strangerOf is stranger for a command that runs this test binary in its own
// way.
func strangerOf(t *testing.T, cmd *exec.Cmd, socket string) (grpc.ClientConnInterface, *exec.Cmd, func(string)) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "pair")
	defer theirs.Close()
	defer unix.Close(pair[0])
	cmd.Env = append(cmd.Environ(), execChild+"="+socket)
	cmd.ExtraFiles = []*os.File{theirs}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	buf, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[0], buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		t.Fatal(msgs, err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "conn")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	c, err := grpc.NewClient("passthrough:///child", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return conn, nil }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, cmd, func(line string) {
		if _, err := fmt.Fprintln(in, line); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAnExecIsNoticedThoughNothingIsPushed(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s.apply(registration("web", "/ns/shop/sa/web", fmt.Sprintf("{unix.path: %q}", self)))
	cfg := testConfig(t, s)
	cfg.LookEvery = 20 * time.Millisecond
	a := start(t, cfg)
	a.ready(t)
	conn, _, tell := stranger(t, a.cfg.Socket)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true")
	st, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := st.Recv(); err != nil || !slices.Equal(ids(m), []string{web}) {
		t.Fatal(m, err)
	}
	tell("exec")
	if m, err := st.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Fatal(ids(m), err)
	}
}

func TestAnExecThatChangesTheProcessEndsItsStream(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s.apply(registration("web", "/ns/shop/sa/web", fmt.Sprintf("{unix.path: %q}", self)))
	a := start(t, testConfig(t, s))
	a.ready(t)
	conn, cmd, tell := stranger(t, a.cfg.Socket)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true")
	st, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := st.Recv(); err != nil || !slices.Equal(ids(m), []string{web}) {
		t.Fatal(m, err)
	}
	tell("exec")
	eventually(t, "exec", func() bool {
		now, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", cmd.Process.Pid))
		return err == nil && now != self
	})
	// Something to push: the process is looked at again before that.
	s.apply(registration("api", "/ns/shop/sa/api", fmt.Sprintf("{unix.path: %q}", self)))
	if m, err := st.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Fatal(ids(m), err)
	}
	// A new call on the old connection is of the new program.
	again, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err == nil {
		_, err = again.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Fatal(err)
	}
}

func TestAProcessThatEndedGetsNothingByItsConnection(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.apply(registration("web", "/ns/shop/sa/web"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	conn, cmd, _ := stranger(t, a.cfg.Socket)
	c := wire.NewProxyClient(conn)
	st, err := c.Watch(t.Context(), &wire.WatchRequest{})
	if err == nil {
		_, err = st.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	again, err := c.Watch(t.Context(), &wire.WatchRequest{})
	if err == nil {
		_, err = again.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Fatal(err)
	}
}

func TestADigestIsReadOnceARegistrationAsksForIt(t *testing.T) {
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.apply(registration("web", "/ns/shop/sa/web"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	st := a.stream(t)
	if _, err := st.Recv(); err != nil {
		t.Fatal(err)
	}
	s.apply(registration("api", "/ns/shop/sa/api", "{unix.sha256: "+ownDigest(t)+"}"))
	if m, err := st.Recv(); err != nil || !slices.Equal(ids(m), []string{api, web}) {
		t.Fatal(ids(m), err)
	}
	s.apply("", regKey("api"))
	if m, err := st.Recv(); err != nil || !slices.Equal(ids(m), []string{web}) {
		t.Fatal(ids(m), err)
	}
	s.apply("", regKey("web"))
	if _, err := st.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Fatal(err)
	}
}
