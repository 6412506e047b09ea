// This file holds the tests with other people's software on both sides of the
// proxy: PostgreSQL, Redis, nginx and MariaDB from Debian behind it, their
// clients and curl in front.

package proxy

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
)

const nobody = 65534

// program finds a binary or skips the test and says what to install.
func program(t *testing.T, name, debianPackage string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("real servers are started in the long tests only")
	}
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, pattern := range []string{"/usr/sbin/" + name, "/usr/lib/postgresql/*/bin/" + name} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[len(found)-1]
		}
	}
	t.Skipf("%s is missing: apt-get install %s", name, debianPackage)
	return ""
}

// privateDir makes a directory that a server run by nobody can use.
func privateDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "aval-peer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if os.Getuid() == 0 {
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// unprivileged prepares a command that never runs as root and never outlives
// the test.
func unprivileged(ctx context.Context, dir, name string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	out := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, out
	return cmd, out
}

// serve runs a server until the test ends and waits until it takes
// connections.
func serve(t *testing.T, dir, address, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
	cmd, out := unprivileged(ctx, dir, name, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cancel()
		<-ended
		if t.Failed() {
			t.Logf("%s said:\n%s", name, out)
		}
	})
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(30 * time.Second)
	for {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("%s does not listen on %s", name, address)
		}
	}
}

// must runs a command to its end and returns what it said.
func must(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd, out := unprivileged(ctx, dir, name, args...)
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(out.String())
}

// ways runs a client over each way to the server: through both proxies, which
// is mutual TLS, and in plaintext at the permissive port.
func ways(t *testing.T, s *scene, server string, protocol Protocol, client func(t *testing.T, host, port string)) {
	t.Helper()
	_, in := s.inbound(t, server, func(c *Config) { c.Inbound[0].Protocol = protocol })
	_, out := s.outbound(t, in, s.api.ID)
	for name, address := range map[string]string{"MutualTLS": out, "Plaintext": in} {
		t.Run(name, func(t *testing.T) {
			host, port, err := net.SplitHostPort(address)
			if err != nil {
				t.Fatal(err)
			}
			client(t, host, port)
		})
	}
	s.agent.waitFor(1, func(e audit.Event) bool { return e.Direction == "inbound" && e.ClientID == s.web.ID.String() })
	s.agent.waitFor(1, reason("inbound", audit.ReasonPlaintextAllowed))
}

// pems writes web's SVID and the bundle as files for OpenSSL's users.
func pems(t *testing.T, s *scene) (cert, key, roots string) {
	t.Helper()
	dir := privateDir(t)
	pem, err := identity.EncodeKey(s.web.Key)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"cert.pem":  identity.EncodeCertificates(s.web.Chain),
		"key.pem":   pem,
		"roots.pem": identity.EncodeCertificates(s.td.Bundle.Roots()),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "roots.pem")
}

func TestPostgreSQLBehindTheProxy(t *testing.T) {
	t.Parallel()
	initdb, postgres := program(t, "initdb", "postgresql"), program(t, "postgres", "postgresql")
	psql := program(t, "psql", "postgresql-client")
	s := newScene(t)
	s.publish(t, "")
	dir, address := privateDir(t), freePort(t)
	data := filepath.Join(dir, "data")
	must(t, dir, initdb, "-D", data, "-U", "aval", "-A", "trust", "--no-sync")
	_, port, _ := net.SplitHostPort(address)
	serve(t, dir, address, postgres, "-D", data, "-h", "127.0.0.1", "-p", port, "-k", dir, "-F")
	ways(t, s, address, ProtocolAuto, func(t *testing.T, host, port string) {
		got := must(t, dir, psql, "host="+host+" port="+port+" user=aval dbname=postgres sslmode=prefer", "-XAtc",
			"select count(*), sum(length(repeat('x', 1000))) from generate_series(1, 20000)")
		if got != "20000|20000000" {
			t.Errorf("psql: %s", got)
		}
	})
}

func TestRedisBehindTheProxy(t *testing.T) {
	t.Parallel()
	server, cli := program(t, "redis-server", "redis-server"), program(t, "redis-cli", "redis-tools")
	s := newScene(t)
	s.publish(t, "")
	dir, address := privateDir(t), freePort(t)
	_, port, _ := net.SplitHostPort(address)
	serve(t, dir, address, server, "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", dir)
	ways(t, s, address, ProtocolAuto, func(t *testing.T, host, port string) {
		if got := must(t, dir, cli, "-h", host, "-p", port, "-n", "0", "set", "k", strings.Repeat("v", 100_000)); got != "OK" {
			t.Errorf("set: %s", got)
		}
		if got := must(t, dir, cli, "-h", host, "-p", port, "strlen", "k"); got != "100000" {
			t.Errorf("strlen: %s", got)
		}
	})
	t.Run("OwnTLS", func(t *testing.T) {
		// OpenSSL as the mutual TLS client, without a proxy of its own.
		_, in := s.inbound(t, address, nil)
		cert, key, roots := pems(t, s)
		host, port, _ := net.SplitHostPort(in)
		got := must(t, dir, cli, "-h", host, "-p", port, "--tls", "--sni", "api.shop", "--cert", cert, "--key", key, "--cacert", roots, "ping")
		if got != "PONG" {
			t.Errorf("ping: %s", got)
		}
	})
}

func TestNginxBehindTheProxy(t *testing.T) {
	t.Parallel()
	nginx, curl := program(t, "nginx", "nginx"), program(t, "curl", "curl")
	s := newScene(t)
	s.publish(t, "")
	dir, address := privateDir(t), freePort(t)
	page := strings.Repeat("aval ", 200_000)
	if err := os.WriteFile(filepath.Join(dir, "page"), []byte(page), 0o644); err != nil {
		t.Fatal(err)
	}
	config := strings.NewReplacer("DIR", dir, "ADDRESS", address).Replace(`
daemon off; pid DIR/pid; error_log DIR/error.log; worker_processes 1;
events {}
http {
  access_log off; client_body_temp_path DIR/b; proxy_temp_path DIR/p; fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/s;
  server { listen ADDRESS; root DIR; }
}`)
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	serve(t, dir, address, nginx, "-p", dir, "-c", filepath.Join(dir, "nginx.conf"), "-e", filepath.Join(dir, "error.log"))
	ways(t, s, address, ProtocolAuto, func(t *testing.T, host, port string) {
		got := must(t, dir, curl, "-sS", "--max-time", "20", "http://"+net.JoinHostPort(host, port)+"/page")
		if got != strings.TrimSpace(page) {
			t.Errorf("curl: %d bytes of %d", len(got), len(page))
		}
	})
	t.Run("OwnTLS", func(t *testing.T) {
		_, in := s.inbound(t, address, nil)
		cert, key, roots := pems(t, s)
		_, port, _ := net.SplitHostPort(in)
		base := []string{"-sS", "--max-time", "20", "--resolve", "api.shop:" + port + ":127.0.0.1", "--cacert", roots}
		got := must(t, dir, curl, append(base, "--cert", cert, "--key", key, "https://api.shop:"+port+"/page")...)
		if got != strings.TrimSpace(page) {
			t.Errorf("curl: %d bytes of %d", len(got), len(page))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		cmd, out := unprivileged(ctx, dir, curl, append(base, "https://api.shop:"+port+"/page")...)
		if cmd.Run() == nil {
			t.Errorf("curl without a certificate was served: %d bytes", out.Len())
		}
		s.agent.waitFor(1, reason("inbound", audit.ReasonNoClientCertificate))
	})
}

// MariaDB speaks first: its client says nothing until it has been greeted.
func TestMariaDBBehindTheProxy(t *testing.T) {
	t.Parallel()
	install, server := program(t, "mariadb-install-db", "mariadb-server"), program(t, "mariadbd", "mariadb-server")
	client := program(t, "mariadb", "mariadb-client")
	s := newScene(t)
	s.publish(t, "")
	dir, address := privateDir(t), freePort(t)
	_, port, _ := net.SplitHostPort(address)
	data := filepath.Join(dir, "data")
	must(t, dir, install, "--no-defaults", "--datadir="+data, "--auth-root-authentication-method=normal", "--skip-test-db")
	serve(t, dir, address, server, "--no-defaults", "--datadir="+data, "--bind-address=127.0.0.1", "--port="+port,
		"--socket="+filepath.Join(dir, "m.sock"), "--pid-file="+filepath.Join(dir, "m.pid"), "--skip-grant-tables", "--skip-networking=0")
	ways(t, s, address, ProtocolServerFirst, func(t *testing.T, host, port string) {
		got := must(t, dir, client, "--no-defaults", "--protocol=tcp", "-h", host, "-P", port, "-u", "root", "-N", "-e", "select 6*7")
		if got != "42" {
			t.Errorf("mariadb: %s", got)
		}
	})
}
