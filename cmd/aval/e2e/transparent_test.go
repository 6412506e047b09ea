// This file holds transparent mode as an operator uses it: the commands that
// intercept, real agents and proxies, and curl on two machines that are
// network namespaces.

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aval-id/aval/cmd/aval/avaltest"
	"github.com/aval-id/aval/proxy/intercept/netnstest"
)

// intercepted is a fleet whose proxies stand on machines of their own.
type intercepted struct {
	*avaltest.Fleet
	t testing.TB
}

// proxy registers a uid as a workload and starts its transparent proxy on the
// machine. It returns the path of its configuration.
func (s *intercepted) proxy(m *netnstest.Machine, name string, uid int, transparent string) string {
	s.t.Helper()
	s.Apply(fmt.Sprintf("apiVersion: aval.dev/v1alpha1\nkind: Registration\nmetadata: {name: %[1]s, namespace: shop, labels: {app: %[1]s}}\n"+
		"spec: {id: /ns/shop/sa/%[1]s, workload: {unix.uid: %[2]d}}\n", name, uid))
	file, start := filepath.Join(s.Dir, name+".yaml"), filepath.Join(s.Dir, "start-"+name)
	avaltest.Must(s.t, os.WriteFile(file, fmt.Appendf(nil, "agent: unix://%s\nlimits: {drain: 1s}\ntransparent:\n  user: \"%d\"\n%s", s.Socket, uid, transparent), 0o644))
	script := fmt.Sprintf("#!/bin/sh\nexec nsenter --net=%s setpriv --reuid=%d --regid=%[2]d --clear-groups %s \"$@\"\n", m.Path, uid, s.Binary)
	avaltest.Must(s.t, os.WriteFile(start, []byte(script), 0o755))
	s.StartAs(start, nil, "proxy", "--config", file)
	return file
}

// ruleset is what nft holds for the machine.
func ruleset(t testing.TB, m *netnstest.Machine) string {
	t.Helper()
	out, err := m.Command(context.WithoutCancel(t.Context()), "nft", "list", "ruleset").Output()
	avaltest.Must(t, err)
	return string(out)
}

func TestOperatorInterceptsChecksAndCleansUp(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	here, there := netnstest.Pair(t, "nft", "curl", "setpriv")
	s := &intercepted{avaltest.New(t), t}
	s.StartServer()
	s.StartAgent("n1")
	before := ruleset(t, there)

	app := there.Listen(t, ":8080")
	go func() {
		for {
			c, err := app.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.Read(make([]byte, 4096))
				fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n")
			}()
		}
	}()
	call := func() (string, error) {
		return here.Output(t, 1000, "curl", "-sS", "-m", "5", "--noproxy", "*", "http://10.77.0.2:8080/")
	}
	check := func(m *netnstest.Machine, config string) (string, int) {
		out, errs, code := s.Run(nil, "proxy", "check", "--netns", m.Name, "--config", config)
		return string(out) + string(errs), code
	}

	api := s.proxy(there, "api", 15099, "  inbound: {}\n")
	if out, code := check(there, api); code != 1 || !strings.Contains(out, "nothing is intercepted") || !strings.Contains(out, "aval proxy setup") {
		t.Errorf("check before setup: exit %d\n%s", code, out)
	}
	web := s.proxy(here, "web", 15098, "  outbound:\n    destinations: [{address: 10.77.0.0/24, id: \"spiffe://example.org/ns/shop/sa/api\"}]\n")
	s.Aval("proxy", "setup", "--netns", here.Name, "--config", web)
	for range 2 {
		s.Aval("proxy", "setup", "--netns", there.Name, "--config", api)
	}
	for m, config := range map[*netnstest.Machine]string{here: web, there: api} {
		s.Await("check finds everything in place", func() bool { _, code := check(m, config); return code == 0 })
	}
	s.Apply("apiVersion: aval.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n")
	s.Await("curl reaches the application through both proxies", func() bool { out, err := call(); return err == nil && out == "hello\n" })
	s.Await("both sides recorded it", func() bool {
		sides := map[any]bool{}
		for _, e := range s.Entries("connection") {
			if e["reason"] == "allowed" && e["client_id"] == "spiffe://example.org/ns/shop/sa/web" &&
				e["server_id"] == "spiffe://example.org/ns/shop/sa/api" && e["destination"] == "10.77.0.2:8080" {
				sides[e["direction"]] = true
			}
		}
		return len(sides) == 2
	})

	// Without the client's proxy, strict means no.
	if out := s.Aval("proxy", "cleanup", "--netns", here.Name); !bytes.Contains(out, []byte("rules of nft are removed")) {
		t.Errorf("cleanup: %s", out)
	}
	s.Await("plaintext is refused", func() bool { _, err := call(); return err != nil })

	// Without any, it is as it was.
	s.Aval("proxy", "cleanup", "--netns", there.Name)
	if after := ruleset(t, there); after != before {
		t.Errorf("ruleset before:\n%s\nafter:\n%s", before, after)
	}
	if out, err := call(); err != nil || out != "hello\n" {
		t.Errorf("without interception: %v: %s", err, out)
	}
	if out := s.Aval("proxy", "cleanup", "--netns", there.Name); !bytes.Contains(out, []byte("nothing was intercepted")) {
		t.Errorf("second cleanup: %s", out)
	}
}
