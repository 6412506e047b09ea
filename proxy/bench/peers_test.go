// This file holds Debian's nginx and HAProxy, set up to do what the proxy
// does: terminate TLS 1.3 with client certificates on one port, forward
// plaintext on another. All else is as their defaults have it. One of these is
// to issue session tickets, which cost nginx as much as a third of a handshake
// and which proxy and floor do without: a third port of nginx does too.

package bench

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aval-id/aval/cmd/aval/avaltest"
	"github.com/aval-id/aval/cmd/measure"
)

// streamModule is where Debian has nginx's streams; another nginx may have
// them built in.
const streamModule = "/usr/lib/nginx/modules/ngx_stream_module.so"

// foreign are the ports of foreign programs, as sides.
type foreign struct{ secure, noTickets, plain []side }

// startNginx adds nginx's ports.
func startNginx(b testing.TB, j job, f *foreign) {
	b.Helper()
	dir := scratch(b)
	secure, noTickets, plain := avaltest.FreeAddress(b), avaltest.FreeAddress(b), avaltest.FreeAddress(b)
	var module string
	if _, err := os.Stat(streamModule); err == nil {
		module = "load_module " + streamModule + ";\n"
	}
	config := fmt.Sprintf(`%sdaemon off;
worker_processes %d;
worker_rlimit_nofile 20000;
pid %s/pid;
error_log stderr error;
events { worker_connections 19900; }
stream {
	ssl_certificate %s;
	ssl_certificate_key %s;
	ssl_client_certificate %s;
	ssl_verify_client on;
	ssl_verify_depth 3;
	ssl_protocols TLSv1.3;
	ssl_ecdh_curve X25519;
	server { listen %s backlog=4096 ssl; proxy_pass %s; }
	server { listen %s ssl; proxy_pass %s; ssl_session_tickets off; }
	server { listen %s; proxy_pass %s; }
}
`, module, runtime.NumCPU(), dir, write(b, dir, "chain.pem", certificates(j.Chain)), write(b, dir, "key.pem", j.keyPEM()),
		write(b, dir, "roots.pem", certificates(j.Roots)), secure, j.App, noTickets, j.App, plain, j.App)
	pid := serve(b, secure, "nginx", "-p", dir, "-e", "stderr", "-c", write(b, dir, "nginx.conf", []byte(config)))
	var pids []int
	await(b, "nginx has its workers", func() bool {
		pids = append(measure.Children(b, pid), pid)
		return len(pids) > runtime.NumCPU()
	})
	f.secure = append(f.secure, side{"nginx", secure, pids})
	f.noTickets = append(f.noTickets, side{"nginx, no tickets", noTickets, pids})
	f.plain = append(f.plain, side{"nginx", plain, pids})
}

// startHAProxy adds HAProxy's ports.
func startHAProxy(b testing.TB, j job, f *foreign) {
	b.Helper()
	dir := scratch(b)
	secure, plain := avaltest.FreeAddress(b), avaltest.FreeAddress(b)
	config := fmt.Sprintf(`global
	nbthread %d
	maxconn 9500
	maxpipes 200
defaults
	mode tcp
	option splice-auto
	timeout connect 5s
	timeout client 10m
	timeout server 10m
	default_backend app
frontend secure
	bind %s backlog 4096 ssl crt %s ca-file %s verify required ssl-min-ver TLSv1.3 curves X25519
frontend plain
	bind %s
backend app
	server app %s
`, runtime.NumCPU(), secure, write(b, dir, "cert.pem", append(certificates(j.Chain), j.keyPEM()...)),
		write(b, dir, "roots.pem", certificates(j.Roots)), plain, j.App)
	pid := serve(b, secure, "haproxy", "-db", "-f", write(b, dir, "haproxy.cfg", []byte(config)))
	f.secure = append(f.secure, side{"HAProxy", secure, []int{pid}})
	f.plain = append(f.plain, side{"HAProxy", plain, []int{pid}})
}

// serve runs a server until the benchmark ends, and returns once it listens.
func serve(b testing.TB, address, name string, args ...string) (pid int) {
	b.Helper()
	var said bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	b.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	})
	await(b, name+" listens", func() bool {
		select {
		case err := <-ended:
			ended <- err
			b.Fatalf("%s ended: %v\n%s", name, err, &said)
		default:
		}
		c, err := net.Dial("tcp", address)
		return err == nil && c.Close() == nil
	})
	return cmd.Process.Pid
}

// await looks at a condition of another process until it holds.
func await(b testing.TB, what string, ok func() bool) {
	b.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(avaltest.Patience); !ok(); {
		select {
		case <-tick.C:
		case <-limit:
			b.Fatalf("%s: not within %v", what, avaltest.Patience)
		}
	}
}

func certificates(ders [][]byte) []byte {
	var out []byte
	for _, der := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

func (j job) keyPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: j.Key})
}

// peer is a foreign program.
type peer struct {
	program string
	start   func(testing.TB, job, *foreign)
}

var tellVersions sync.Once

// installed returns the peers that can be run, and says once what they are.
func installed() (all []peer) {
	versions := []string{runtime.Version()}
	for _, p := range []peer{{"nginx", startNginx}, {"haproxy", startHAProxy}} {
		out, err := exec.Command(p.program, "-v").CombinedOutput()
		if err != nil {
			versions = append(versions, fmt.Sprintf("%s cannot be run (%v): .ci/setup installs it", p.program, err))
			continue
		}
		first, _, _ := strings.Cut(string(out), "\n")
		versions = append(versions, strings.TrimSpace(first))
		all = append(all, p)
	}
	tellVersions.Do(func() { fmt.Printf("  %d cores; %s\n", runtime.NumCPU(), strings.Join(versions, "; ")) })
	return all
}

// startPeers starts what is installed.
func startPeers(b testing.TB, j job) (f foreign) {
	b.Helper()
	for _, p := range installed() {
		p.start(b, j, &f)
	}
	return f
}
