// This file holds the trial of a policy about paths on requests that were
// recorded before.

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aval-id/aval/cmd/aval/avaltest"
)

func TestAPathPolicyIsSimulatedOnRecordedRequests(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	f := avaltest.New(t)
	f.StartServer()
	f.StartAgent("n1")
	app := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(app.Close)
	in, out := avaltest.FreeAddress(t), avaltest.FreeAddress(t)
	f.Proxy("api", fmt.Sprintf("records: {every: 1s}\ninbound: [{listen: %q, forward: %q, port: 8080, protocol: http}]\n", in, app.Listener.Addr()))
	f.Proxy("web", fmt.Sprintf("outbound: [{listen: %q, dial: %q, id: spiffe://example.org/ns/shop/sa/api, alpn: [h2, http/1.1]}]\n", out, in))
	f.Reachable(in)
	f.Reachable(out)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	ask := func(address, path string) int {
		res, err := http.Get("http://" + address + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode
	}
	for range 10 {
		for _, path := range []string{"/stock", "/stock?secret=1", "/admin", "/tokens"} {
			if code := ask(out, path); code != 200 {
				t.Fatalf("%s: %d", path, code)
			}
		}
	}
	ask(in, "/stock")
	f.Await("every request is in the record", func() bool {
		n := 0.0
		for _, e := range f.Entries("request") {
			count, _ := e["count"].(float64)
			n += max(1, count)
		}
		return n == 41
	})
	for _, e := range f.Entries("request") {
		if text := fmt.Sprint(e); strings.Contains(text, "secret") {
			t.Errorf("the query is in the record: %s", text)
		}
	}

	table, _, _ := f.Run(nil, "explain", "strict", "shop/api", "--window", "1h")
	if text := string(table); !strings.Contains(text, fmt.Sprintf("      uid=%d", os.Getuid())) || !strings.Contains(text, "asks for GET 127.0.0.1/stock (1 request of this address)") {
		t.Errorf("explain strict does not name the plaintext client:\n%s", text)
	}

	policy := `apiVersion: aval.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: paths, namespace: shop}
spec:
  selector: {matchLabels: {app: api}}
  action: ALLOW
  rules:
  - from: [{source: {principals: [example.org/ns/shop/sa/web]}}]
    to: [{operation: {methods: [GET], paths: [/stock]}}]
  - to: [{operation: {paths: [/tokens]}}]
    when: [{key: "request.headers[x-token]", values: [good]}]
`
	file := filepath.Join(f.Dir, "paths.yaml")
	avaltest.Must(t, os.WriteFile(file, []byte(policy), 0o644))
	text, stderr, code := f.Run(nil, "policy", "simulate", "-f", file, "--since", "1h", "-o", "json")
	var sim struct {
		Requests struct{ Breaks, Opens, Stays, Undecided int }
		Depends  map[string]int `json:"depends_on"`
		Changes  []struct {
			Effect, Of, Client string
			Count              int
			Requests           []struct {
				Target string
				Count  int
			}
		}
	}
	if err := json.Unmarshal(text, &sim); err != nil || code != 1 {
		t.Fatalf("simulate: exit %d, %v\n%s%s", code, err, text, stderr)
	}
	if r := sim.Requests; r.Breaks != 11 || r.Opens != 0 || r.Stays != 20 || r.Undecided != 10 || sim.Depends["shop/paths header x-token, not recorded"] != 10 {
		t.Errorf("simulate: %s", text)
	}
	who := map[string]int{}
	for _, c := range sim.Changes {
		if c.Of == "request" && c.Effect == "breaks" && len(c.Requests) == 1 {
			who[c.Client+" "+strings.Replace(c.Requests[0].Target, in, "", 1)] += c.Count
		}
	}
	host, _, _ := strings.Cut(out, ":")
	if who["spiffe://example.org/ns/shop/sa/web GET "+host+"/admin"] != 10 || who["plaintext from 127.0.0.1 GET "+host+"/stock"] != 1 {
		t.Errorf("what breaks: %v\n%s", who, text)
	}
	table, _, _ = f.Run(nil, "policy", "simulate", "-f", file)
	if !strings.Contains(string(table), "requests: 11 would break, 0 would open, 20 stay, 10 undecided") || !strings.Contains(string(table), "GET "+host+"/admin: 10") {
		t.Errorf("table:\n%s", table)
	}

	// What was foretold is what happens.
	f.Apply(policy)
	f.Await("the policy is in force", func() bool { return ask(out, "/admin") == 403 })
	if code := ask(out, "/stock"); code != 200 {
		t.Errorf("/stock: %d", code)
	}
	if code := ask(in, "/stock"); code != 403 {
		t.Errorf("/stock in plaintext: %d", code)
	}
	f.Await("what was refused is shown", func() bool {
		tail := string(f.Aval("audit", "tail", "--kind", "request", "-n", "50"))
		return strings.Contains(tail, "GET "+host+"/admin") && strings.Contains(tail, "denied")
	})
}
