// This file holds the tests of plaintext exceptions.

package policy

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/identity/document"
)

func exception(t testing.TB, path, spec string) PlaintextException {
	t.Helper()
	x, _, err := ParsePlaintextException(doc(t, document.PlaintextException, path, spec), settings)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestAnExceptionMakesStrictPermissiveForItsClientsUntilItEnds(t *testing.T) {
	end := time.Date(2030, 1, 31, 0, 0, 0, 0, time.UTC)
	xs := []PlaintextException{exception(t, "shop/legacy", `
selector: {matchLabels: {app: api}}
ports: [8080]
from: [10.1.0.0/16, "2001:db8::1"]
reason: the batch host moves in January
until: 2030-01-31T00:00:00Z`)}
	pas := []PeerAuthentication{pa(t, "shop/strict", 1, "mtls: {mode: STRICT}")}
	deny := []AuthorizationPolicy{ap(t, "shop/no", `
action: DENY
rules: [{from: [{source: {ipBlocks: [10.1.2.0/24]}}]}]`)}
	set := Compile(settings, api, pas, deny, 7)
	exempt := CompileExemptions(settings, api, xs, deny, 7)
	before, after := end.Add(-time.Nanosecond), end
	for _, c := range []struct {
		name   string
		conn   Connection
		now    time.Time
		reason string
	}{
		{"covered", Connection{Source: netip.MustParseAddr("10.1.9.9"), Port: 8080}, before, ReasonPlaintextAllowed},
		{"covered as IPv4 in IPv6", Connection{Source: netip.MustParseAddr("::ffff:10.1.9.9"), Port: 8080}, before, ReasonPlaintextAllowed},
		{"covered address", Connection{Source: netip.MustParseAddr("2001:db8::1"), Port: 8080}, before, ReasonPlaintextAllowed},
		{"refused by a policy", Connection{Source: netip.MustParseAddr("10.1.2.3"), Port: 8080}, before, ReasonPolicyDenied},
		{"another address", Connection{Source: netip.MustParseAddr("10.2.0.1"), Port: 8080}, before, ReasonPlaintextRefused},
		{"no address", Connection{Port: 8080}, before, ReasonPlaintextRefused},
		{"another port", Connection{Source: netip.MustParseAddr("10.1.9.9"), Port: 8081}, before, ReasonPlaintextRefused},
		{"ended", Connection{Source: netip.MustParseAddr("10.1.9.9"), Port: 8080}, after, ReasonPlaintextRefused},
	} {
		d, by := exempt.Decide(set.Decide(c.conn), c.conn, c.now)
		if d.Reason != c.reason || d.Allowed != (by == "shop/legacy") || d.Mode != Strict || d.ModeSource != "shop/strict" || d.Generation != 7 {
			t.Errorf("%s: %+v by %q", c.name, d, by)
		}
	}
	if !exempt.EndedBetween(before, after) || exempt.EndedBetween(after, after.Add(time.Hour)) || exempt.EndedBetween(before.Add(-time.Hour), before) {
		t.Error("the end is not where it is")
	}
	if CompileExemptions(settings, Workload{Namespace: "shop"}, xs, deny, 7) != nil || CompileExemptions(settings, Workload{Namespace: "bank", Labels: api.Labels}, xs, deny, 7) != nil {
		t.Error("it applies to other workloads")
	}
	var none *Exemptions
	if d, by := none.Decide(set.Decide(Connection{}), Connection{}, before); d.Allowed || by != "" || none.EndedBetween(before, after) {
		t.Error("no exceptions exempt somebody")
	}
}

func TestAnExceptionNeedsSourcesAReasonAndAnEnd(t *testing.T) {
	const good = "from: [10.0.0.0/8]\nreason: r\nuntil: 2030-01-31T00:00:00Z"
	for spec, want := range map[string]string{
		"reason: r\nuntil: 2030-01-31T00:00:00Z":                                  "spec.from",
		"from: [10.0.0.0/8]\nuntil: 2030-01-31T00:00:00Z":                         "spec.reason",
		"from: [10.0.0.0/8]\nreason: r":                                           "spec.until",
		"from: [10.0.0.1/8]\nreason: r\nuntil: 2030-01-31T00:00:00Z":              "the block is 10.0.0.0/8",
		"from: [nowhere]\nreason: r\nuntil: 2030-01-31T00:00:00Z":                 "spec.from[0]",
		"from: [\"::ffff:10.0.0.0/104\"]\nreason: r\nuntil: 2030-01-31T00:00:00Z": "write it as IPv4",
		good + "\nports: [0]":                                                     "spec.ports[0]",
		good + "\nports: [70000]":                                                 "spec.ports[0]",
		good + "\nport: [80]":                                                     "spec.port",
	} {
		_, _, err := ParsePlaintextException(doc(t, document.PlaintextException, "shop/x", spec), settings)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", spec, err)
		}
	}
	if _, _, err := ParsePlaintextException(doc(t, document.PlaintextException, "aval-system/x", good), settings); err == nil {
		t.Error("one for the whole trust domain is accepted")
	}
	_, warnings, err := ParsePlaintextException(doc(t, document.PlaintextException, "shop/x", strings.Replace(good, "10.0.0.0/8", "0.0.0.0/0", 1)), settings)
	if err != nil || len(warnings) != 1 {
		t.Errorf("every address: %v %v", warnings, err)
	}
}

func FuzzExceptionSource(f *testing.F) {
	for _, s := range []string{"10.0.0.0/8", "192.0.2.1", "2001:db8::/32", "::ffff:10.0.0.1", "fe80::1%eth0", "", "/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parseSource(s)
		if err != nil {
			return
		}
		if again, err := parseSource(p.String()); err != nil || again != p {
			t.Errorf("%q: %s is read as %s, %v", s, p, again, err)
		}
	})
}
