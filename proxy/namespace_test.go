// This file holds the tests of namespaces that are not as usual: without IPv6,
// and with two transparent proxies.

package proxy

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/proxy/intercept"
	"github.com/aval-id/aval/proxy/intercept/netnstest"
)

func TestTransparentModeWorksWithoutIPv6(t *testing.T) {
	for _, tool := range []intercept.Tool{intercept.NFT, intercept.IPTables} {
		t.Run(string(tool), func(t *testing.T) {
			w := newWired(t, "nft", "iptables-restore", "curl", "sysctl")
			for _, m := range []*netnstest.Machine{w.here, w.there} {
				for _, which := range []string{"all", "default", "lo"} {
					if out, err := m.Command(t.Context(), "sysctl", "-qw", "net.ipv6.conf."+which+".disable_ipv6=1").CombinedOutput(); err != nil {
						t.Fatalf("%v: %s", err, out)
					}
				}
			}
			w.publish(t, mode("STRICT"))
			serveHTTP(t, w.there, "0.0.0.0:8080")
			for m, id := range map[*netnstest.Machine]fmt.Stringer{w.here: w.web.ID, w.there: w.api.ID} {
				rules := w.proxy(t, m, id, bothDirections)
				h := intercept.Host{Namespace: m.Name, Tool: tool}
				if _, err := h.Setup(t.Context(), rules); err != nil {
					t.Fatal(err)
				}
				found, err := h.Check(t.Context(), rules)
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range found {
					if !f.OK {
						t.Errorf("%s: %+v", m.Name, f)
					}
				}
			}
			if out, err := curl(t, w.here, appUID, "10.77.0.2", 8080); err != nil {
				t.Errorf("%v: %s", err, out)
			}
			w.agent.waitFor(1, reason(audit.DirectionInbound, audit.ReasonAllowed))
		})
	}
}

func TestASecondTransparentProxyOfANamespaceIsToldSo(t *testing.T) {
	w := newWired(t, "nft", "curl")
	w.publish(t, mode("STRICT"))
	serveHTTP(t, w.there, ":8080")
	rules := w.proxy(t, w.there, w.api.ID, "  inbound: {}\n")
	setup(t, w.there, rules)
	setup(t, w.here, w.proxy(t, w.here, w.web.ID, bothDirections))
	// On the ports of the first it ends, and says why.
	file := filepath.Join(t.TempDir(), "second.yaml")
	text := fmt.Sprintf("agent: %s\nidentity: %s\ntransparent:\n  user: \"%d\"\n  inbound: {}\n", w.agent.socket, w.web.ID, proxyUID)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := redirected(t, w.there, file)
	if _, err := cmd.StdinPipe(); err != nil { // open, so that it would run on
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "perhaps another proxy, listens on") {
		t.Errorf("on the ports of the first: %v: %s", err, out)
	}
	if out, err := curl(t, w.here, appUID, "10.77.0.2", 8080); err != nil {
		t.Errorf("the first: %v: %s", err, out)
	}
	// On ports of its own it runs; whose rules are in force is one's alone,
	// and the other's check says so.
	second := w.proxy(t, w.there, w.web.ID, "  inbound: {port: 15106}\n")
	setup(t, w.there, second)
	for name, c := range map[string]struct {
		rules intercept.Rules
		ok    bool
	}{"first": {rules, false}, "second": {second, true}} {
		found, err := intercept.Host{Namespace: w.there.Name}.Check(t.Context(), c.rules)
		if err != nil {
			t.Fatal(err)
		}
		if found[0].Check != "rules" || found[0].OK != c.ok {
			t.Errorf("%s: %+v", name, found[0])
		}
	}
	// What it shows is another identity than the client expects of that
	// address, which is refused.
	if out, err := curl(t, w.here, appUID, "10.77.0.2", 8080); err == nil {
		t.Errorf("the second answers for the first: %s", out)
	}
	w.agent.waitFor(1, reason(audit.DirectionOutbound, audit.ReasonIDMismatch))
}
