// This file holds the processes that are the test binary started again: the
// floor, the proxy, the application.

package bench

import (
	"bufio"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aval-id/aval/cmd/measure"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/proxy"
)

// job is what a child is told, as JSON in its environment.
type job struct {
	Role  string // one of the roles below
	App   string // the application's address
	Agent string // the agent's socket
	ID    string
	Chain [][]byte
	Key   []byte
	Roots [][]byte
	HTTP  bool // the proxy judges requests
	Cores int  // how many it may use; zero is all
}

// roles are what a child can be. Each serves the listener until it is closed.
var roles = map[string]func(net.Listener, job) error{
	"floor":       childFloor,
	"plain floor": func(l net.Listener, j job) error { return servePlainFloor(l, j.App) },
	"reverse":     childReverse,
	"app":         func(l net.Listener, _ job) error { return serveApp(l) },
	"web":         func(l net.Listener, _ job) error { return serveWeb(l) },
}

const (
	jobVariable     = "AVAL_BENCH_JOB"
	profileVariable = "AVAL_BENCH_PROFILE"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(jobVariable); text != "" {
		if err := runChild(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// runChild serves until its standard input ends, and says its address first.
func runChild(text string) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		bufio.NewReader(os.Stdin).ReadString('\n')
		cancel()
		time.AfterFunc(5*time.Second, func() { os.Exit(3) })
	}()
	if j.Role == "proxy" {
		return profiled(func() error { return childProxy(ctx, j) })
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	fmt.Println(l.Addr())
	err = roles[j.Role](l, j)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func childFloor(l net.Listener, j job) error {
	config, err := j.tls()
	if err != nil {
		return err
	}
	return serveFloor(l, config, j.App)
}

func childReverse(l net.Listener, j job) error {
	config, err := j.tls()
	if err != nil {
		return err
	}
	return serveReverse(l, config, j.App)
}

// tls is what a server without Aval has: the same certificates, and the
// standard library's verification.
func (j job) tls() (*tls.Config, error) {
	key, err := x509.ParsePKCS8PrivateKey(j.Key)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, der := range j.Roots {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		pool.AddCert(c)
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{{Certificate: j.Chain, PrivateKey: key.(crypto.Signer)}},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              pool,
		SessionTicketsDisabled: true,
	}, nil
}

func childProxy(ctx context.Context, j job) error {
	id, err := identity.ParseID(j.ID)
	if err != nil {
		return err
	}
	protocol := proxy.ProtocolAuto
	if j.HTTP {
		protocol = proxy.ProtocolHTTP
	}
	p, err := proxy.New(proxy.Config{Agent: j.Agent, Identity: id,
		Inbound:       []proxy.Inbound{{Listen: "127.0.0.1:0", Forward: j.App, Protocol: protocol}},
		PaceCollector: true, Limits: proxy.Limits{Drain: time.Second}})
	if err != nil {
		return err
	}
	go func() {
		<-p.Started()
		fmt.Println(p.Status().Inbound[0])
	}()
	return p.Run(ctx)
}

// profiled runs f under the CPU profiler where a directory for profiles is
// named.
func profiled(f func() error) error {
	dir := os.Getenv(profileVariable)
	if dir == "" {
		return f()
	}
	file, err := os.CreateTemp(dir, "proxy-*.pprof")
	if err != nil {
		return err
	}
	defer file.Close()
	if err := pprof.StartCPUProfile(file); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	return f()
}

// side is one of those that are measured: where it listens, and the processes
// whose cost counts.
type side struct {
	name, address string
	pids          []int
}

// cpu returns the processor time that the side has used.
func (s side) cpu(b testing.TB) (total time.Duration) {
	b.Helper()
	for _, pid := range s.pids {
		total += measure.CPU(b, pid)
	}
	return total
}

// memory returns the side's resident memory in KiB.
func (s side) memory(b testing.TB) (total float64) {
	b.Helper()
	for _, pid := range s.pids {
		total += measure.Resident(b, pid)
	}
	return total
}

// startChild runs the job under a name until the benchmark ends.
func startChild(b testing.TB, name string, j job) side {
	b.Helper()
	text, err := json.Marshal(j)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	if j.Cores > 0 {
		cmd = exec.Command("taskset", "-c", fmt.Sprintf("0-%d", j.Cores-1), os.Args[0])
	}
	cmd.Env = append(os.Environ(), jobVariable+"="+string(text))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
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
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatalf("%s says no address: %v", name, err)
	}
	return side{name: name, address: strings.TrimSpace(line), pids: []int{cmd.Process.Pid}}
}

// scratch makes a directory with a short name, for sockets.
func scratch(b testing.TB) string {
	b.Helper()
	dir, err := os.MkdirTemp("", "aval-bench")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func write(b testing.TB, dir, name string, text []byte) string {
	b.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		b.Fatal(err)
	}
	return path
}
