// Package avaltest runs fleets for tests and benchmarks: a server, agents and
// proxies as real processes of the real binary, on loopback and Unix sockets
// in a directory of their own. It must not be imported outside tests.
package avaltest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/aval-id/aval/identity/wire"
)

// Patience bounds each wait of a fleet. It is generous: a wait that ends is
// never slow because of it.
const Patience = 30 * time.Second

// Fleet is one trust domain of processes. Everything it starts ends with its
// test, whose failure shows the processes' logs.
type Fleet struct {
	t testing.TB

	Dir    string
	Binary string
	Listen string // the server's address for nodes
	HTTP   string // the server's address for health and metrics
	Admin  string // the server's admin socket
	Socket string // the agent's socket

	ServerDir string
	Server    *Process
	Agent     *Process
	Ready     time.Duration // from the server's start to /readyz
}

// Process is a running part of a fleet.
type Process struct {
	*exec.Cmd
	log  string
	done chan struct{}
}

// built are the directories of binaries, which Tests removes.
var built struct {
	sync.Mutex
	dirs []string
}

// standard builds the static binary once for a test process.
var standard = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "avalbin")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	return compile(dir)
})

// compile builds the binary in a directory that is removed with it.
func compile(dir string, flags ...string) (string, error) {
	built.Lock()
	built.dirs = append(built.dirs, dir)
	built.Unlock()
	path := filepath.Join(dir, "aval")
	cmd := exec.Command("go", slices.Concat([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", path}, flags, []string{"github.com/aval-id/aval/cmd/aval"})...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return path, nil
}

// Tests are a package's tests, which remove the binary that they built. A
// package that makes fleets runs them from its TestMain.
type Tests struct{ M *testing.M }

// Run runs the tests and returns the exit code.
func (t Tests) Run() int {
	code := t.M.Run()
	for _, dir := range built.dirs {
		os.RemoveAll(dir)
	}
	return code
}

// New makes a fleet with a directory and addresses, and starts nothing.
func New(t testing.TB) *Fleet {
	t.Helper()
	path, err := standard()
	Must(t, err)
	dir, err := os.MkdirTemp("", "aval") // short: socket paths have 108 bytes
	Must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	Must(t, os.Chmod(dir, 0o755))
	return &Fleet{t: t, Dir: dir, Binary: path, Listen: FreeAddress(t), HTTP: FreeAddress(t),
		Admin: filepath.Join(dir, "admin.sock"), Socket: filepath.Join(dir, "agent", "workload.sock"),
		ServerDir: filepath.Join(dir, "server")}
}

// StartServer starts the server, waits until it is ready, and adds args to
// its command line.
func (f *Fleet) StartServer(args ...string) {
	f.t.Helper()
	began := time.Now()
	f.Server = f.Start("server", append([]string{"--trust-domain", "example.org", "--data-dir", f.ServerDir,
		"--listen", f.Listen, "--http-listen", f.HTTP, "--admin-socket", f.Admin}, args...)...)
	f.Await("the server is ready", func() bool {
		resp, err := http.Get("http://" + f.HTTP + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	f.Ready = time.Since(began)
}

// Token is what `token create -o json` prints.
type Token struct {
	Token      string `json:"token"`
	Server     string `json:"server"`
	BundleHash string `json:"bundle_hash"`
	Command    string `json:"command"`
}

// NewToken makes a join token for a node.
func (f *Fleet) NewToken(node string, args ...string) Token {
	f.t.Helper()
	var t Token
	out := f.Aval(append([]string{"token", "create", "--ttl", "10m", "--node", node, "-o", "json"}, args...)...)
	Must(f.t, json.Unmarshal(out, &t))
	return t
}

// StartAgent joins a new node and returns when its agent was started.
func (f *Fleet) StartAgent(node string) time.Time {
	f.t.Helper()
	token := f.NewToken(node)
	began := time.Now()
	f.StartAgentWith(node, token)
	return began
}

// StartAgentWith starts the agent of a node with this token, which may be the
// zero Token for a node that has joined before.
func (f *Fleet) StartAgentWith(node string, token Token, args ...string) {
	f.t.Helper()
	line := append([]string{"--server", f.Listen, "--data-dir", filepath.Join(f.Dir, "node-"+node), "--socket", f.Socket}, args...)
	if token.Token != "" {
		line = append(line, "--join-token", token.Token, "--bundle-hash", token.BundleHash)
	}
	f.Agent = f.Start("agent", line...)
}

// Start runs a part of the fleet.
func (f *Fleet) Start(part string, args ...string) *Process {
	f.t.Helper()
	return f.StartAs(f.Binary, nil, part, args...)
}

// StartAs runs a part from a copy of the binary, and as another user where
// cred is set.
func (f *Fleet) StartAs(binary string, cred *syscall.Credential, part string, args ...string) *Process {
	f.t.Helper()
	log, err := os.CreateTemp(f.Dir, part+"-*.log")
	Must(f.t, err)
	defer log.Close()
	p := &Process{Cmd: exec.Command(binary, append([]string{part}, args...)...), log: log.Name(), done: make(chan struct{})}
	p.Stdout, p.Stderr = log, log
	p.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	Must(f.t, p.Cmd.Start())
	go func() {
		p.Cmd.Wait()
		close(p.done)
	}()
	f.t.Cleanup(func() {
		p.Stop()
		if f.t.Failed() {
			f.t.Logf("%s:\n%s", part, p.Log())
		}
	})
	return p
}

// Stop asks the process to end and waits; it kills what doesn't end.
func (p *Process) Stop() {
	p.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(Patience):
		p.Kill()
	}
}

// Kill ends the process with SIGKILL and waits.
func (p *Process) Kill() {
	p.Process.Kill()
	<-p.done
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Log returns what the process has printed so far.
func (p *Process) Log() string {
	text, _ := os.ReadFile(p.log)
	return string(text)
}

// Command prepares an operator's command against the fleet's server.
func (f *Fleet) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(f.Binary, args...)
	cmd.Env = append(os.Environ(), "AVAL_ADMIN_SOCKET="+f.Admin, "NO_COLOR=1")
	return cmd
}

// Aval runs a command that must succeed and returns its standard output.
func (f *Fleet) Aval(args ...string) []byte {
	f.t.Helper()
	out, stderr, code := f.Run(nil, args...)
	if code != 0 {
		f.t.Fatalf("aval %s: exit %d\n%s%s", strings.Join(args, " "), code, out, stderr)
	}
	return out
}

// Run runs a command with standard input and returns both outputs and the
// exit code.
func (f *Fleet) Run(stdin []byte, args ...string) (stdout, stderr []byte, code int) {
	f.t.Helper()
	cmd := f.Command(args...)
	var errout bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(stdin), &errout
	out, err := cmd.Output()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		f.t.Fatalf("aval %s: %v", strings.Join(args, " "), err)
	}
	return out, errout.Bytes(), cmd.ProcessState.ExitCode()
}

// Apply applies documents given as YAML.
func (f *Fleet) Apply(yaml string) {
	f.t.Helper()
	out, stderr, code := f.Run([]byte(yaml), "apply", "-f", "-")
	if code != 0 {
		f.t.Fatalf("apply: exit %d\n%s%s", code, out, stderr)
	}
}

// Operator returns a client of the admin socket.
func (f *Fleet) Operator() wire.AdminClient {
	f.t.Helper()
	return wire.NewAdminClient(dial(f.t, f.Admin))
}

// Stream opens the Workload API as this process and returns the messages.
// A refused stream is opened again: an identity may not be there yet.
func (f *Fleet) Stream() <-chan *workload.X509SVIDResponse {
	f.t.Helper()
	conn := dial(f.t, f.Socket)
	ctx := metadata.AppendToOutgoingContext(f.t.Context(), "workload.spiffe.io", "true")
	messages := make(chan *workload.X509SVIDResponse, 64)
	go func() {
		for ctx.Err() == nil {
			s, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{}, grpc.WaitForReady(true))
			for err == nil {
				var m *workload.X509SVIDResponse
				if m, err = s.Recv(); err == nil {
					messages <- m
				}
			}
		}
	}()
	return messages
}

// Until reads messages until one satisfies ok.
func Until[M any](t testing.TB, what string, messages <-chan M, ok func(M) bool) M {
	t.Helper()
	limit := time.After(Patience)
	for {
		select {
		case m := <-messages:
			if ok(m) {
				return m
			}
		case <-limit:
			t.Fatalf("%s: not within %v", what, Patience)
		}
	}
}

// Await looks at a condition of another process until it holds.
func (f *Fleet) Await(what string, ok func() bool) {
	f.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(Patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			f.t.Fatalf("%s: not within %v", what, Patience)
		}
	}
}

// Copy makes a copy of the binary, which unix.path tells apart from others.
func (f *Fleet) Copy(name string) string {
	f.t.Helper()
	text, err := os.ReadFile(f.Binary)
	Must(f.t, err)
	path := filepath.Join(f.Dir, name)
	Must(f.t, os.WriteFile(path, text, 0o755))
	return path
}

// Proxy starts a proxy from a copy of the binary, registered for the ID
// /ns/shop/sa/NAME. Config is the rest of its configuration file.
func (f *Fleet) Proxy(name, config string) *Process {
	f.t.Helper()
	path := f.Copy(name)
	f.Apply(fmt.Sprintf("apiVersion: aval.dev/v1alpha1\nkind: Registration\nmetadata: {name: %s, namespace: shop, labels: {app: %s}}\n"+
		"spec: {id: /ns/shop/sa/%s, workload: {unix.path: %s}}\n", name, name, name, path))
	file := filepath.Join(f.Dir, name+".yaml")
	Must(f.t, os.WriteFile(file, fmt.Appendf(nil, "agent: unix://%s\n%s", f.Socket, config), 0o644))
	return f.StartAs(path, nil, "proxy", "--config", file)
}

// Reachable waits until a listener accepts.
func (f *Fleet) Reachable(addr string) {
	f.t.Helper()
	f.Await(addr+" accepts", func() bool {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		return c.Close() == nil
	})
}

// Entries exports the log entries of some kinds as decoded JSON.
func (f *Fleet) Entries(kinds ...string) []map[string]any {
	f.t.Helper()
	args := []string{"audit", "export", "-o", "jsonl"}
	for _, k := range kinds {
		args = append(args, "--kind", k)
	}
	var all []map[string]any
	for line := range bytes.Lines(f.Aval(args...)) {
		var e map[string]any
		Must(f.t, json.Unmarshal(line, &e))
		all = append(all, e)
	}
	return all
}

// IDs returns the SPIFFE IDs of a Workload API message.
func IDs(m *workload.X509SVIDResponse) []string {
	var ids []string
	for _, s := range m.GetSvids() {
		ids = append(ids, s.GetSpiffeId())
	}
	return ids
}

// Registration is a JSON document for processes of this process's uid.
func Registration(namespace, name string) []byte {
	return fmt.Appendf(nil, `{"apiVersion":"aval.dev/v1alpha1","kind":"Registration","metadata":{"name":%q,"namespace":%q},`+
		`"spec":{"id":"/ns/%s/sa/%s","workload":{"unix.uid":"%d"}}}`, name, namespace, namespace, name, os.Getuid())
}

// FreeAddress returns a loopback address that nobody listens on.
func FreeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	Must(t, err)
	defer l.Close()
	return l.Addr().String()
}

// Must ends the test at an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func dial(t testing.TB, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(wire.MaxMessageBytes)),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second,
			Backoff: backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1, MaxDelay: 20 * time.Millisecond}}))
	Must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}
