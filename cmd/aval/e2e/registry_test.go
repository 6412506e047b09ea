// This file holds the registry of endpoints as operators use it: two nodes,
// proxies without a single destination in their files, and curl.

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aval-id/aval/cmd/aval/avaltest"
	"github.com/aval-id/aval/proxy/intercept/netnstest"
)

// registered is a fleet of two nodes, web's here and api's there.
type registered struct {
	*avaltest.Fleet
	t           testing.TB
	here, there *netnstest.Machine
}

// node starts an agent with a socket of its own, whose path it returns.
func (s *registered) node(name string, attributes ...string) string {
	s.t.Helper()
	args := []string{}
	for _, a := range attributes {
		args = append(args, "--attribute", "address="+a)
	}
	token := s.NewToken(name, args...)
	socket := filepath.Join(s.Dir, name+".sock")
	s.Start("agent", "--server", s.Listen, "--data-dir", filepath.Join(s.Dir, "node-"+name), "--socket", socket,
		"--join-token", token.Token, "--bundle-hash", token.BundleHash)
	return socket
}

// proxy registers a uid on a node and starts its transparent proxy on a
// machine.
func (s *registered) proxy(m *netnstest.Machine, node, socket, name string, uid int, config string) *avaltest.Process {
	s.t.Helper()
	s.Apply(fmt.Sprintf("apiVersion: aval.dev/v1alpha1\nkind: Registration\nmetadata: {name: %[1]s, namespace: shop, labels: {app: %[1]s}}\n"+
		"spec: {id: /ns/shop/sa/%[1]s, node: {node.name: %[2]s}, workload: {unix.uid: %[3]d}}\n", name, node, uid))
	file, start := filepath.Join(s.Dir, name+".yaml"), filepath.Join(s.Dir, "start-"+name)
	avaltest.Must(s.t, os.WriteFile(file, fmt.Appendf(nil, "agent: unix://%s\nlimits: {drain: 1s}\n%s", socket, config), 0o644))
	script := fmt.Sprintf("#!/bin/sh\nexec nsenter --net=%s setpriv --reuid=%d --regid=%[2]d --clear-groups %s \"$@\"\n", m.Path, uid, s.Binary)
	avaltest.Must(s.t, os.WriteFile(start, []byte(script), 0o755))
	p := s.StartAs(start, nil, "proxy", "--config", file)
	s.Aval("proxy", "setup", "--netns", m.Name, "--config", file)
	return p
}

// listed is an item of get endpoints.
type listed struct {
	Node, Address, State, Reason, Evidence, Mode string
	SPIFFEID                                     string `json:"spiffe_id"`
	Except                                       []int
}

func (s *registered) endpoints() []listed {
	var out struct{ Items []listed }
	avaltest.Must(s.t, json.Unmarshal(s.Aval("get", "endpoints", "-o", "json"), &out))
	return out.Items
}

// has reports whether an address is accepted for api.
func (s *registered) has(address string) bool {
	for _, e := range s.endpoints() {
		if e.Address == address && e.State == "accepted" && e.SPIFFEID == "spiffe://example.org/ns/shop/sa/api" {
			return true
		}
	}
	return false
}

func (s *registered) curl(host string, port int) (string, error) {
	return s.here.Output(s.t, 1000, "curl", "-sS", "-m", "20", "--noproxy", "*", "http://"+net.JoinHostPort(host, fmt.Sprint(port))+"/")
}

// sides counts the records of connections to an address by transport, in mutual TLS only those
// between web and api that came from the registry.
func (s *registered) sides(to string) map[any]int {
	out := map[any]int{}
	for _, e := range s.Entries("connection") {
		detail, _ := e["detail"].(string)
		switch {
		case e["direction"] != "outbound" || e["destination"] != to:
		case e["transport"] == "mtls" && e["reason"] == "allowed" && e["server_id"] == "spiffe://example.org/ns/shop/sa/api" && detail == "identity by the registry of endpoints":
			out["mtls"]++
		default:
			out[e["transport"]]++
		}
	}
	return out
}

func TestProxiesFindEachOtherByTheRegistry(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	s := &registered{Fleet: avaltest.New(t), t: t}
	s.here, s.there = netnstest.Pair(t, "nft", "curl", "setpriv")
	s.StartServer()
	n1, n2 := s.node("n1", "10.77.0.1", "fd77::1"), s.node("n2", "10.77.0.2", "10.77.0.8/29", "fd77::2")
	for _, port := range []int{8080, 8081, 7070} {
		serve(t, s.there, port)
	}
	s.proxy(s.there, "n2", n2, "api", 15099, "transparent:\n  user: \"15099\"\n  inbound: {exclude: {ports: [7070]}}\n")
	// Web's proxy announces an address of the other node's, too.
	admin := filepath.Join(s.Dir, "web", "admin.sock")
	avaltest.Must(t, os.Mkdir(filepath.Dir(admin), 0o700))
	avaltest.Must(t, os.Chown(filepath.Dir(admin), 15098, 15098))
	s.proxy(s.here, "n1", n1, "web", 15098, "admin: "+admin+"\nannounce: {addresses: [10.77.0.2]}\ntransparent:\n  user: \"15098\"\n  inbound: {}\n  outbound: {}\n")
	s.Await("the registry knows api", func() bool { return s.has("10.77.0.2") && s.has("fd77::2") })
	s.Await("web's proxy is ready and has announced", func() bool {
		out, _, code := s.Run(nil, "proxy", "status", "--admin", admin)
		return code == 0 && strings.Contains(string(out), "3 endpoints")
	})

	// The mode is PERMISSIVE: only the registry makes it mutual TLS.
	for _, host := range s.there.Addresses() {
		if out, err := s.curl(host, 8080); err != nil || out != "hello\n" {
			t.Errorf("%s: %v: %s", host, err, out)
		}
		to := net.JoinHostPort(host, "8080")
		s.Await("the record of "+to, func() bool { return s.sides(to)["mtls"] == 1 })
	}
	// The excluded port is nobody's, and passes.
	if out, err := s.curl("10.77.0.2", 7070); err != nil || out != "hello\n" {
		t.Errorf("excluded port: %v: %s", err, out)
	}
	s.Await("the record of the excluded port", func() bool { return s.sides("10.77.0.2:7070")["plaintext"] == 1 })
	s.showsWhatIsRefused(admin)

	// The workload moves.
	for _, args := range [][]string{{"address", "delete", "10.77.0.2/24", "dev", "veth0"}, {"address", "add", "10.77.0.9/24", "dev", "veth0"}} {
		out, err := s.there.Output(t, 0, "ip", args...)
		if err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	s.Await("the registry follows", func() bool { return s.has("10.77.0.9") && !s.has("10.77.0.2") })
	s.Await("a connection to the new address is mutual TLS", func() bool {
		out, err := s.curl("10.77.0.9", 8080)
		return err == nil && out == "hello\n" && s.sides("10.77.0.9:8080")["mtls"] > 0
	})
	s.survives()

	s.Aval("node", "evict", "n2")
	if s.has("10.77.0.9") {
		t.Error("an evicted node is in the registry")
	}
}

// showsWhatIsRefused looks where an operator would.
func (s *registered) showsWhatIsRefused(admin string) {
	s.t.Helper()
	refused := 0
	for _, e := range s.endpoints() {
		if e.Node == "spiffe://example.org/aval/node/n1" && e.Address == "10.77.0.2" {
			refused++
			if e.State != "refused" || !strings.Contains(e.Reason, "nothing says that 10.77.0.2") {
				s.t.Errorf("claim of another's address: %+v", e)
			}
		}
		if e.Address == "fd77::2" && (e.Evidence != "attribute address=fd77::2/128" || fmt.Sprint(e.Except) != "[7070]" || e.Mode != "PERMISSIVE") {
			s.t.Errorf("accepted: %+v", e)
		}
	}
	if refused != 1 {
		s.t.Errorf("the refused claim is shown %d times", refused)
	}
	out, errs, _ := s.Run(nil, "check")
	if text := string(out) + string(errs); !strings.Contains(text, "nothing says that 10.77.0.2 is this node's") {
		s.t.Errorf("check says\n%s", text)
	}
	s.Await("the refusal is in the log", func() bool {
		for _, e := range s.Entries("refused") {
			if e["node"] == "spiffe://example.org/aval/node/n1" && strings.Contains(fmt.Sprint(e["detail"]), "10.77.0.2") {
				return true
			}
		}
		return false
	})
	if table := string(s.Aval("get", "endpoints", "-n", "shop")); !strings.Contains(table, "10.77.0.2:*") || !strings.Contains(table, "not 7070") {
		s.t.Errorf("table:\n%s", table)
	}
	status := string(s.Aval("proxy", "status", "--admin", admin))
	for _, want := range []string{"endpoints held", "10.77.0.2:8080", "registry", "10.77.0.2:7070", "unknown", "plaintext"} {
		if !strings.Contains(status, want) {
			s.t.Errorf("status lacks %q:\n%s", want, status)
		}
	}
}

// survives restarts the server, which then knows nothing, under load.
func (s *registered) survives() {
	s.t.Helper()
	s.Server.Stop()
	for range 3 {
		if out, err := s.curl("10.77.0.9", 8081); err != nil || out != "hello\n" {
			s.t.Errorf("without a server: %v: %s", err, out)
		}
	}
	s.StartServer()
	for range 3 {
		if out, err := s.curl("10.77.0.9", 8081); err != nil || out != "hello\n" {
			s.t.Errorf("beside a new server: %v: %s", err, out)
		}
	}
	s.Await("the nodes report again", func() bool { return s.has("10.77.0.9") })
	s.Await("all of it was mutual TLS", func() bool {
		sides := s.sides("10.77.0.9:8081")
		return sides["mtls"] == 6 && sides["plaintext"] == 0
	})
}

// serve says hello over HTTP on a port of a machine.
func serve(t testing.TB, m *netnstest.Machine, port int) {
	t.Helper()
	app := m.Listen(t, fmt.Sprintf(":%d", port))
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
}
