// This file tests what Review finds and what Relaxed keeps.

package policy

import (
	"strings"
	"testing"

	"github.com/aval-id/aval/identity"
)

func review(t *testing.T, aps ...AuthorizationPolicy) string {
	t.Helper()
	var ids []identity.ID
	for _, s := range []string{web, intruder, "example.org/ns/shop/sa/api"} {
		ids = append(ids, from(t, s).Peer)
	}
	var lines []string
	for _, f := range Review(requests, aps, ids) {
		lines = append(lines, f.Kind+" "+f.Policy.Path()+" "+f.Field+" "+f.Message)
	}
	return strings.Join(lines, "\n")
}

func TestReviewFindsWhatDoesNothing(t *testing.T) {
	all := sourceRule("namespaces: [shop]")
	one := sourceRule("namespaces: [shop], ipBlocks: [10.0.0.0/8]")
	for _, c := range []struct {
		name string
		aps  []AuthorizationPolicy
		want []string // beginnings of lines
	}{
		{"wider rule of one policy", []AuthorizationPolicy{ap(t, "shop/a", allowRule(one+","+all))}, []string{"shadowed shop/a spec.rules[0] is needless: shop/a spec.rules[1]"}},
		{"equal rules: the later one", []AuthorizationPolicy{ap(t, "shop/a", allowRule(one+","+one))}, []string{"shadowed shop/a spec.rules[1] is needless: shop/a spec.rules[0]"}},
		{"wider policy", []AuthorizationPolicy{ap(t, "shop/a", backSelector+allowRule(one)), ap(t, "aval-system/b", allowRule(all))}, []string{"shadowed shop/a spec.rules[0] is needless: aval-system/b"}},
		{"other workloads", []AuthorizationPolicy{ap(t, "shop/a", allowRule(one)), ap(t, "shop/b", backSelector+allowRule(all)), ap(t, "dark/c", allowRule(all))}, nil},
		{"void by DENY", []AuthorizationPolicy{ap(t, "shop/a", allowRule(one)), ap(t, "shop/b", denyRule(all))}, []string{"shadowed shop/a spec.rules[0] never allows: shop/b"}},
		{"DENY is not void by ALLOW", []AuthorizationPolicy{ap(t, "shop/a", allowRule(all)), ap(t, "shop/b", denyRule(one))}, nil},
		{"everything does not admit foreign peers", []AuthorizationPolicy{ap(t, "shop/a", allowRule("{},"+sourceRule("trustDomains: [partner.org]")))}, nil},
		{"DENY without rules", []AuthorizationPolicy{ap(t, "shop/a", "action: DENY")}, []string{"empty shop/a spec.rules"}},
		{"nobody", []AuthorizationPolicy{ap(t, "shop/a", allowRule(sourceRule("namespaces: [nowhere]")))}, []string{"unmatched shop/a spec.rules[0] no registered identity matches"}},
		{"nobody by condition", []AuthorizationPolicy{ap(t, "shop/a", allowRule(whenRule("key: source.principal, values: [example.org/no]")))}, []string{"unmatched shop/a spec.rules[0]"}},
		{"one of two is nobody", []AuthorizationPolicy{ap(t, "shop/a", allowRule(sourceRule("principals: ["+web+", example.org/ns/shop/sa/ap]")))}, []string{"unmatched shop/a spec.rules[0].from[0].source.principals no registration gives example.org/ns/shop/sa/ap; did you mean example.org/ns/shop/sa/api?"}},
		{"plaintext and foreign peers are nobody's registration", []AuthorizationPolicy{ap(t, "shop/a", denyRule(sourceRule("notPrincipals: ['*']"))), ap(t, "shop/b", allowRule(sourceRule("principals: [partner.org/x]")))}, nil},
		{"on dry run", []AuthorizationPolicy{ap(t, "shop/a", allowRule(one)), dryRun(t, "shop/b", allowRule(all))}, nil},
		{"addresses", []AuthorizationPolicy{ap(t, "shop/a", denyRule(sourceRule("ipBlocks: [10.0.0.0/8]")+","+sourceRule("ipBlocks: [10.1.0.0/16]")))}, []string{"shadowed shop/a spec.rules[1]"}},
		{"not", []AuthorizationPolicy{ap(t, "shop/a", denyRule(operationRule("notPorts: [1, 2]")+","+operationRule("notPorts: [1]")))}, []string{"shadowed shop/a spec.rules[0]"}},
		{"templates", []AuthorizationPolicy{ap(t, "shop/a", denyRule(operationRule("paths: ['/api/*']")+","+operationRule("paths: ['/api/{*}/x', /api/y]")))}, []string{"shadowed shop/a spec.rules[1]"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := review(t, c.aps...)
			lines := strings.Split(got, "\n")
			if got == "" {
				lines = nil
			}
			if len(lines) != len(c.want) {
				t.Fatalf("found %q", got)
			}
			for i, want := range c.want {
				if !strings.HasPrefix(lines[i], want) {
					t.Errorf("%s\nis not %s", lines[i], want)
				}
			}
		})
	}
}

func TestRelaxedSaysWhoMayDoAnythingAtAll(t *testing.T) {
	aps := []AuthorizationPolicy{
		ap(t, "shop/a", allowRule("{from: [{source: {namespaces: [shop], ipBlocks: [192.168.0.0/16]}}], to: [{operation: {methods: [GET], ports: [8080]}}]}")),
		ap(t, "shop/b", denyRule("{from: [{source: {principals: ["+web+"]}}], to: [{operation: {paths: [/admin]}}]},"+sourceRule("principals: [example.org/ns/shop/sa/bad]"))),
	}
	set := Compile(requests, api, nil, Relaxed(aps), 1)
	for peer, want := range map[string]bool{web: true, intruder: false, "example.org/ns/shop/sa/bad": false} {
		if d := set.Decide(from(t, peer)); d.Allowed != want {
			t.Errorf("%s: %+v", peer, d)
		}
	}
	c := from(t, web)
	c.Port = 9
	if d := set.Decide(c); d.Allowed {
		t.Errorf("another port: %+v", d)
	}
}
