// This file holds the processes that are measured: the test binary started
// again as the floor or as a proxy, and what the kernel says they cost.

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
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/proxy"
)

// job is what a child is told, as JSON in its environment.
type job struct {
	Role  string // "floor", "reverse" or "proxy"
	App   string
	Agent string
	ID    string
	Chain [][]byte
	Key   []byte
	Roots [][]byte
	HTTP  bool // the proxy judges requests
}

const jobVariable = "AVAL_BENCH_JOB"

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
	if j.Role != "proxy" {
		return childFloor(ctx, j)
	}
	return childProxy(ctx, j)
}

func childFloor(ctx context.Context, j job) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	key, err := x509.ParsePKCS8PrivateKey(j.Key)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	for _, der := range j.Roots {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		pool.AddCert(c)
	}
	fmt.Println(l.Addr())
	serve := serveFloor
	if j.Role == "reverse" {
		serve = serveReverse
	}
	err = serve(l, tls.Certificate{Certificate: j.Chain, PrivateKey: key.(crypto.Signer)}, pool, j.App)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func childProxy(ctx context.Context, j job) error {
	debug.SetGCPercent(proxy.GCPercent)
	id, err := identity.ParseID(j.ID)
	if err != nil {
		return err
	}
	protocol := proxy.ProtocolAuto
	if j.HTTP {
		protocol = proxy.ProtocolHTTP
	}
	p, err := proxy.New(proxy.Config{Agent: j.Agent, Identity: id,
		Inbound: []proxy.Inbound{{Listen: "127.0.0.1:0", Forward: j.App, Protocol: protocol}},
		Limits:  proxy.Limits{Drain: time.Second}})
	if err != nil {
		return err
	}
	go func() {
		<-p.Started()
		fmt.Println(p.Status().Inbound[0])
	}()
	return p.Run(ctx)
}

// child is a running process.
type child struct {
	pid     int
	address string
}

func startChild(b *testing.B, j job) child {
	b.Helper()
	text, err := json.Marshal(j)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
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
		b.Fatalf("%s says no address: %v", j.Role, err)
	}
	return child{cmd.Process.Pid, strings.TrimSpace(line)}
}

// cpu returns the processor time that the process has used.
func (c child) cpu(b *testing.B) time.Duration {
	b.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", c.pid))
	if err != nil {
		b.Fatal(err)
	}
	var total time.Duration
	for _, t := range tasks {
		text, err := os.ReadFile(t)
		if err != nil {
			continue
		}
		ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		total += time.Duration(ns)
	}
	return total
}

// memory returns the process's own resident memory in KiB.
func (c child) memory(b *testing.B) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", c.pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "Rss:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib
		}
	}
	b.Fatal("no resident memory in smaps_rollup")
	return 0
}
