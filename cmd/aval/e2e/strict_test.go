// This file holds the way of a workload from permissive to strict on the
// evidence of its recorded connections.

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/cmd/aval/avaltest"
)

// say sends a text to an echoing service and returns what comes back.
func say(t *testing.T, addr, text string) string {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, avaltest.Patience)
	avaltest.Must(t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(avaltest.Patience))
	if _, err := io.WriteString(c, text); err != nil {
		return ""
	}
	c.(*net.TCPConn).CloseWrite()
	back, _ := io.ReadAll(c)
	return string(back)
}

func echoService(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	avaltest.Must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

type strictAnswer struct {
	Ready     bool
	Workloads []struct {
		Registration string
		Missing      []string
		Connections  int
		Ports        []struct {
			Clients []struct {
				Cause, Source, Fix, Protocol string
				SPIFFEID                     string `json:"spiffe_id"`
				Breaks                       bool
				Count                        int
			}
		}
	}
}

func explainStrict(t *testing.T, f *avaltest.Fleet, window string) strictAnswer {
	t.Helper()
	out, stderr, code := f.Run(nil, "explain", "strict", "shop/api", "--window", window, "-o", "json")
	var a strictAnswer
	if err := json.Unmarshal(out, &a); err != nil || a.Ready != (code == 0) || code > 1 {
		t.Fatalf("explain strict: exit %d, %v\n%s%s", code, err, out, stderr)
	}
	return a
}

func TestAWorkloadBecomesStrictOnEvidence(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	f := avaltest.New(t)
	f.StartServer()
	f.StartAgent("n1")
	in, out := avaltest.FreeAddress(t), avaltest.FreeAddress(t)
	f.Proxy("api", fmt.Sprintf("inbound: [{listen: %q, forward: %q, port: 8080}]\n", in, echoService(t)))
	f.Proxy("web", fmt.Sprintf("outbound: [{listen: %q, dial: %q, id: spiffe://example.org/ns/shop/sa/api}]\n", out, in))
	f.Reachable(in)
	f.Reachable(out)
	if got := say(t, out, "by the proxies"); got != "by the proxies" {
		t.Fatalf("mTLS: %q", got)
	}
	const request = "GET /healthz HTTP/1.1\r\nUser-Agent: kube-probe/1.33\r\n\r\n"
	for range 3 {
		if got := say(t, in, request); got != request {
			t.Fatalf("plaintext: %q", got)
		}
	}
	var a strictAnswer
	f.Await("the ledger names the plaintext client", func() bool {
		a = explainStrict(t, f, "1h")
		return len(a.Workloads[0].Ports) > 0 && a.Workloads[0].Ports[0].Clients[0].Count == 3
	})
	c := a.Workloads[0].Ports[0].Clients[0]
	if a.Ready || !c.Breaks || c.Cause != "plaintext" || c.Source != "127.0.0.1" || c.Protocol != "health_probe" || !strings.Contains(c.Fix, "probe") {
		t.Errorf("client: %+v", c)
	}

	// The same record says beforehand what a strict mode would break.
	strict := "apiVersion: aval.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n"
	file := filepath.Join(f.Dir, "strict.yaml")
	avaltest.Must(t, os.WriteFile(file, []byte(strict), 0o644))
	text, stderr, code := f.Run(nil, "policy", "simulate", "-f", file, "--since", "1h", "-o", "json")
	var sim struct {
		Breaks, Opens, Stays int
		Changes              []struct {
			Effect, Client, Workload string
			Count                    int
		}
	}
	if err := json.Unmarshal(text, &sim); err != nil || code != 1 || sim.Breaks != 3 || sim.Opens != 0 || sim.Stays < 1 ||
		len(sim.Changes) != 1 || sim.Changes[0].Client != "plaintext from 127.0.0.1" || sim.Changes[0].Workload != "shop/api" {
		t.Errorf("simulate: exit %d, %v\n%s%s", code, err, text, stderr)
	}

	// The record of the end has the bytes.
	f.Await("the ends are recorded", func() bool { return len(f.Entries("connection_closed")) >= 5 })
	total := map[string]float64{}
	for _, e := range f.Entries("connection_closed") {
		n, _ := e["bytes_in"].(float64)
		total[e["direction"].(string)+" "+e["transport"].(string)] += n
	}
	if total["inbound plaintext"] != float64(3*len(request)) || total["inbound mtls"] != 14 || total["outbound mtls"] != 14 {
		t.Errorf("bytes: %v", total)
	}

	// Once the window is clean, and mTLS was seen in it, it is ready.
	f.Await("it is ready", func() bool {
		say(t, out, "still here")
		return explainStrict(t, f, "2s").Ready
	})
	if a := explainStrict(t, f, "1h"); a.Ready {
		t.Error("an hour is clean after seconds")
	}
	f.Apply(strict)
	f.Await("plaintext is refused", func() bool { return say(t, in, "x") == "" })
	if got := say(t, out, "by the proxies"); got != "by the proxies" {
		t.Errorf("mTLS in strict mode: %q", got)
	}
	if out, stderr, code := f.Run(nil, "explain", "strict", "shop/api", "--window", "1h"); code != 1 ||
		!bytes.Contains(out, []byte("127.0.0.1")) || !bytes.Contains(out, []byte("STRICT by shop/strict")) {
		t.Errorf("for a person: exit %d\n%s%s", code, out, stderr)
	}
	if _, stderr, code := f.Run(nil, "explain", "strict", "nowhere/none"); code != 1 {
		t.Errorf("a workload that is not there: exit %d\n%s", code, stderr)
	}
	if _, stderr, code := f.Run(nil, "policy", "simulate", "-f", "-", "--since", "1h"); code != 2 {
		t.Errorf("no document: exit %d\n%s", code, stderr)
	}
}
