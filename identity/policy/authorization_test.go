// This file tests AuthorizationPolicy: one test for each sentence about what
// it means.

package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/aval-id/aval/identity/document"
)

func allowRule(rule string) string { return "action: ALLOW\nrules: [" + rule + "]" }
func denyRule(rule string) string  { return "action: DENY\nrules: [" + rule + "]" }
func sourceRule(s string) string   { return "{from: [{source: {" + s + "}}]}" }

func TestActionsInOrder(t *testing.T) {
	everything, nothing := "rules: [{}]", "{}"
	allowAll, allowNone := ap(t, "shop/allow-all", everything), ap(t, "shop/allow-none", nothing)
	denyAll, denyNone := ap(t, "shop/deny-all", "action: DENY\n"+everything), ap(t, "shop/deny-none", "action: DENY\nrules: []")
	audit := ap(t, "shop/audit", "action: AUDIT\n"+everything)
	for _, c := range []struct {
		name    string
		aps     []AuthorizationPolicy
		allowed bool
		policy  string
	}{
		{"no policy allows", nil, true, ""},
		{"a DENY match denies", []AuthorizationPolicy{denyAll}, false, "shop/deny-all"},
		{"DENY comes before ALLOW", []AuthorizationPolicy{allowAll, denyAll}, false, "shop/deny-all"},
		{"an ALLOW match allows", []AuthorizationPolicy{allowNone, allowAll}, true, "shop/allow-all"},
		{"ALLOW without rules denies everything", []AuthorizationPolicy{allowNone}, false, ""},
		{"DENY without rules never matches", []AuthorizationPolicy{denyNone}, true, ""},
		{"AUDIT never decides", []AuthorizationPolicy{audit}, true, ""},
		{"AUDIT never decides against", []AuthorizationPolicy{audit, allowNone}, false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := compile(c.aps...).Decide(from(t, web))
			if d.Allowed != c.allowed || d.Policy != c.policy || (d.Rule == 0) != (c.policy != "") {
				t.Errorf("%+v", d)
			}
			if !c.allowed && d.Reason != ReasonPolicyDenied {
				t.Errorf("reason %s", d.Reason)
			}
			if (d.Audit == "shop/audit") != slices.ContainsFunc(c.aps, func(p AuthorizationPolicy) bool { return p.Action() == Audit }) {
				t.Errorf("audit %q", d.Audit)
			}
		})
	}
	d := compile(audit, allowAll, denyNone, allowNone).Decide(from(t, web))
	if !slices.Equal(d.Consulted, []string{"shop/deny-none", "shop/allow-all", "shop/allow-none", "shop/audit"}) || d.Generation != 7 {
		t.Errorf("%+v", d)
	}
}

func TestDefaultDenyHoldsWithoutAllowPolicies(t *testing.T) {
	s := settings
	s.DefaultDeny = true
	if d := Compile(s, api, nil, nil, 1).Decide(from(t, web)); d.Allowed || d.Reason != ReasonPolicyDenied || d.Policy != "" || d.Rule != -1 {
		t.Errorf("%+v", d)
	}
	set := Compile(s, api, nil, []AuthorizationPolicy{ap(t, "shop/a", "rules: [{}]")}, 1)
	if d := set.Decide(from(t, web)); !d.Allowed || !set.HasAllow() {
		t.Errorf("%+v", d)
	}
}

func TestAttachment(t *testing.T) {
	const deny = "action: DENY\nrules: [{}]\n"
	for _, c := range []struct {
		path, spec string
		w          Workload
		applies    bool
	}{
		{"shop/p", deny, api, true},
		{"shop/p", deny + backSelector, api, true},
		{"shop/p", deny + "selector: {matchLabels: {tier: front}}", api, false},
		{"shop/p", deny + "selector: {matchLabels: {zone: ''}}", api, false},
		{"shop/p", deny + backSelector, Workload{Namespace: "shop"}, false},
		{"shop/p", deny, Workload{Namespace: "shop"}, true},
		{"dark/p", deny, api, false},
		{"aval-system/p", deny, api, true},
		{"aval-system/p", deny + backSelector, api, true},
		{"aval-system/p", deny + backSelector, Workload{Namespace: "shop"}, false},
	} {
		d := Compile(settings, c.w, nil, []AuthorizationPolicy{ap(t, c.path, c.spec)}, 1).Decide(from(t, web))
		if d.Allowed == c.applies || (len(d.Consulted) == 1) != c.applies {
			t.Errorf("%s %s on %v: %+v", c.path, c.spec, c.w, d)
		}
	}
}

// Each rule is asked as ALLOW and as DENY about each peer.
func TestRulesMatch(t *testing.T) {
	const long = "example.org/ns/ab/sa/web"
	for _, c := range []struct {
		rule string
		yes  []string
		no   []string
	}{
		// fields are ANDed, values ORed, sources ORed
		{sourceRule("principals: [" + web + ", " + intruder + "]"), []string{web, intruder}, []string{"", long}},
		{sourceRule("principals: [" + web + "], trustDomains: [other.org]"), nil, []string{web, ""}},
		{"{from: [{source: {principals: [" + web + "]}}, {source: {namespaces: [dark]}}]}", []string{web, intruder}, []string{long, ""}},
		{"{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: [9]}}]}", nil, []string{web}},
		{"{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: [9]}}, {operation: {ports: ['8080']}}]}", []string{web}, []string{intruder}},
		{"{from: [{source: {namespaces: [shop]}}], when: [{key: destination.port, values: [8080]}, {key: source.ip, values: [10.0.0.0/8]}]}", []string{web}, []string{intruder}},
		{"{from: [{source: {namespaces: [shop]}}], when: [{key: destination.port, values: [8080]}, {key: source.ip, values: [11.0.0.0/8]}]}", nil, []string{web}},
		// notX is NOT of the OR
		{sourceRule("principals: ['*'], notPrincipals: [" + web + ", " + long + "]"), []string{intruder}, []string{web, long, ""}},
		{sourceRule("principals: ['*'], notNamespaces: [shop, ab]"), []string{intruder}, []string{web, long}},
		{"{to: [{operation: {notPorts: [8080, 9]}}]}", nil, []string{web, ""}},
		{"{to: [{operation: {ports: [8080], notPorts: [9]}}]}", []string{web, ""}, nil},
		// string match
		{sourceRule("principals: ['*']"), []string{web, intruder}, []string{""}},
		{sourceRule("principals: ['example.org/ns/*']"), []string{web, intruder}, []string{"example.org/nsx", ""}},
		{sourceRule("principals: ['example.org/ns/a*']"), []string{long, "example.org/ns/a"}, []string{web}},
		{sourceRule("principals: ['exam*']"), []string{web}, []string{""}},
		{sourceRule("principals: ['*/sa/web']"), []string{web, long}, []string{intruder, ""}},
		{sourceRule("principals: ['*.org/ns/shop/sa/web']"), []string{web}, []string{long}},
		{sourceRule("principals: ['*eb']"), []string{web, long}, []string{intruder}},
		// with and without the scheme
		{sourceRule("principals: ['spiffe://" + web + "']"), []string{web}, []string{intruder}},
		{sourceRule("principals: ['spiffe://*']"), []string{web}, []string{""}},
		// any shape of ID
		{sourceRule("principals: [example.org/a/b.c_D]"), []string{"example.org/a/b.c_D"}, []string{"example.org/a/b.c_d", "example.org/a"}},
		// namespace and account from exactly one run of segments
		{sourceRule("namespaces: [shop]"), []string{web, "example.org/x/ns/shop/sa/a/y"}, []string{"example.org/ns/shop/sa/a/ns/shop/sa/b", "example.org/ns/shop", "example.org/shop", ""}},
		{sourceRule("namespaces: ['sh*', '*rk']"), []string{web, intruder}, []string{long}},
		{sourceRule("namespaces: ['*']"), []string{web, intruder}, []string{"example.org/web", ""}},
		{sourceRule("serviceAccounts: [shop/web]"), []string{web}, []string{intruder, "example.org/ns/dark/sa/web", ""}},
		{sourceRule("serviceAccounts: [web]"), []string{web}, []string{intruder, "example.org/ns/dark/sa/web", ""}},
		{sourceRule("trustDomains: [example.org], notServiceAccounts: [web]"), []string{intruder, "example.org/x"}, []string{web, ""}},
		{sourceRule("trustDomains: [example.org]"), []string{web, "example.org/x"}, []string{""}},
		{sourceRule("trustDomains: ['*.org']"), []string{web}, []string{""}},
		{sourceRule("principals: ['*'], notTrustDomains: [partner.org]"), []string{web}, []string{""}},
		// conditions
		{"{when: [{key: source.principal, values: [" + web + "]}]}", []string{web}, []string{intruder, ""}},
		{"{when: [{key: source.namespace, values: [shop], notValues: [dark]}]}", []string{web}, []string{intruder, ""}},
		{"{when: [{key: source.serviceAccount, values: [dark/intruder]}]}", []string{intruder}, []string{web}},
		{"{when: [{key: source.trustDomain, values: [example.org]}]}", []string{web}, []string{""}},
		{"{when: [{key: destination.ip, values: [10.0.0.9]}]}", []string{web, ""}, nil},
		{"{when: [{key: destination.ip, notValues: [10.0.0.9]}]}", nil, []string{web, ""}},
		{"{when: [{key: destination.port, notValues: [9]}]}", []string{web, ""}, nil},
		// negative identity matches are true of plaintext
		{sourceRule("notPrincipals: [" + intruder + "]"), []string{web, ""}, []string{intruder}},
		{sourceRule("notPrincipals: ['*']"), []string{""}, []string{web, intruder}},
		{sourceRule("notNamespaces: [dark]"), []string{web, ""}, []string{intruder}},
		{sourceRule("notServiceAccounts: [dark/intruder]"), []string{web, ""}, []string{intruder}},
		{sourceRule("notTrustDomains: [example.org]"), []string{""}, []string{web}},
		{"{when: [{key: source.principal, notValues: [" + web + "]}]}", []string{intruder, ""}, []string{web}},
		// direct peer addresses
		{sourceRule("ipBlocks: [10.0.0.0/24]"), []string{web, ""}, nil},
		{sourceRule("ipBlocks: [10.0.0.7]"), []string{web, ""}, nil},
		{sourceRule("ipBlocks: ['::ffff:10.0.0.7']"), []string{web}, nil},
		{sourceRule("ipBlocks: ['::ffff:10.0.0.0/120']"), []string{web}, nil},
		{sourceRule("ipBlocks: [10.0.0.5/24]"), []string{web}, nil},
		{sourceRule("ipBlocks: ['::/0', 10.0.1.0/24]"), nil, []string{web}},
		{sourceRule("notIpBlocks: [10.0.0.0/24]"), nil, []string{web, ""}},
	} {
		for _, peer := range slices.Concat(c.yes, c.no) {
			want := slices.Contains(c.yes, peer)
			if d := compile(ap(t, "shop/p", allowRule(c.rule))).Decide(from(t, peer)); d.Allowed != want {
				t.Errorf("ALLOW %s for %q: %+v", c.rule, peer, d)
			}
			if d := compile(ap(t, "shop/p", denyRule(c.rule))).Decide(from(t, peer)); d.Allowed == want {
				t.Errorf("DENY %s for %q: %+v", c.rule, peer, d)
			}
		}
	}
}

func TestDecisionNamesTheRule(t *testing.T) {
	p := ap(t, "shop/p", allowRule(sourceRule("namespaces: [x]")+","+sourceRule("principals: ["+web+"]")))
	if d := compile(p).Decide(from(t, web)); d.Policy != "shop/p" || d.Rule != 1 {
		t.Errorf("%+v", d)
	}
}

func TestShortServiceAccountIsOfThePolicysNamespace(t *testing.T) {
	p := ap(t, "aval-system/p", allowRule(sourceRule("serviceAccounts: [web]")))
	if d := compile(p).Decide(from(t, web)); d.Allowed {
		t.Errorf("%+v", d)
	}
	if d := compile(p).Decide(from(t, "example.org/ns/aval-system/sa/web")); !d.Allowed {
		t.Errorf("%+v", d)
	}
}

func TestNamespacesAreOfTheOwnTrustDomainOnly(t *testing.T) {
	for _, field := range []string{"namespaces: [shop]", "serviceAccounts: [shop/web]"} {
		if d := compile(ap(t, "shop/p", denyRule(sourceRule(field)))).Decide(from(t, foreign)); d.Reason == ReasonPolicyDenied {
			t.Errorf("%s matches a foreign peer", field)
		}
		with := field + ", trustDomains: [partner.org]"
		if d := compile(ap(t, "shop/p", allowRule(sourceRule(with)))).Decide(from(t, foreign)); d.Allowed {
			t.Errorf("%s matches a foreign peer", with)
		}
	}
	for _, key := range []string{"source.namespace, values: [shop]", "source.serviceAccount, values: [shop/web]"} {
		if d := compile(ap(t, "shop/p", denyRule("{when: [{key: "+key+"}]}"))).Decide(from(t, foreign)); d.Reason == ReasonPolicyDenied {
			t.Errorf("%s matches a foreign peer", key)
		}
	}
}

func TestForeignPeersNeedTheirDomainWrittenOut(t *testing.T) {
	if d := compile().Decide(from(t, foreign)); d.Allowed || d.Reason != ReasonWrongTrustDomain {
		t.Errorf("no policy: %+v", d)
	}
	for rule, want := range map[string]bool{
		"{}":                                                                                 false,
		sourceRule("principals: ['*']"):                                                      false,
		sourceRule("notPrincipals: [x/y]"):                                                   false,
		sourceRule("ipBlocks: [0.0.0.0/0]"):                                                  false,
		sourceRule("principals: ['*/sa/web']"):                                               false,
		sourceRule("principals: ['partner*']"):                                               false,
		sourceRule("principals: ['partner.org*']"):                                           false,
		sourceRule("trustDomains: ['*']"):                                                    false,
		sourceRule("trustDomains: ['partner*']"):                                             false,
		sourceRule("trustDomains: ['*.org']"):                                                false,
		sourceRule("notTrustDomains: [example.org]"):                                         false,
		"{when: [{key: source.trustDomain, values: [partner.org]}]}":                         false,
		"{when: [{key: source.principal, values: [" + foreign + "]}]}":                       false,
		sourceRule("principals: ['*', partner.org/other]"):                                   true,
		sourceRule("principals: ['*', partner.org]"):                                         true,
		sourceRule("principals: ['*/sa/db', partner.org/other]"):                             false,
		sourceRule("principals: [" + foreign + "]"):                                          true,
		sourceRule("principals: ['spiffe://" + foreign + "']"):                               true,
		sourceRule("principals: ['partner.org/*']"):                                          true,
		sourceRule("principals: ['*', partner.org/ns/s*]"):                                   true,
		sourceRule("trustDomains: [partner.org]"):                                            true,
		sourceRule("trustDomains: [partner.org], principals: ['*/sa/web']"):                  true,
		sourceRule("trustDomains: [partner.org], principals: ['*/sa/db']"):                   false,
		sourceRule("trustDomains: [partner.org], ipBlocks: [11.0.0.0/8]"):                    false,
		"{from: [{source: {trustDomains: [partner.org]}}], to: [{operation: {ports: [9]}}]}": false,
		"{from: [{source: {principals: ['*']}}, {source: {trustDomains: [partner.org], ipBlocks: [11.0.0.0/8]}}]}": false,
	} {
		d := compile(ap(t, "shop/p", allowRule(rule))).Decide(from(t, foreign))
		if d.Allowed != want || !want && d.Reason != ReasonWrongTrustDomain || want && d.Reason != ReasonAllowed {
			t.Errorf("%s: %+v", rule, d)
		}
	}
	// DENY matches them like anyone.
	for _, rule := range []string{"{}", sourceRule("principals: ['*/sa/web']"), sourceRule("notNamespaces: [shop]")} {
		d := compile(ap(t, "shop/a", allowRule(sourceRule("trustDomains: [partner.org]"))), ap(t, "shop/p", denyRule(rule))).Decide(from(t, foreign))
		if d.Allowed || d.Reason != ReasonPolicyDenied || d.Policy != "shop/p" {
			t.Errorf("DENY %s: %+v", rule, d)
		}
	}
}

func TestAddressesAreUnmappedAndWithoutZone(t *testing.T) {
	v4, v6 := ap(t, "shop/v4", denyRule(sourceRule("ipBlocks: [10.0.0.0/24]"))), ap(t, "shop/v6", denyRule(sourceRule("ipBlocks: ['fe80::/10']")))
	for _, addr := range []string{"10.0.0.7", "::ffff:10.0.0.7", "fe80::1", "fe80::1%eth0"} {
		c := from(t, web)
		c.Source = netip.MustParseAddr(addr)
		if d := compile(v4, v6).Decide(c); d.Allowed {
			t.Errorf("%s slips through", addr)
		}
	}
}

func TestMissingAddressFailsClosed(t *testing.T) {
	c := from(t, web)
	c.Source = netip.Addr{}
	for _, field := range []string{"ipBlocks: [10.0.0.0/8]", "notIpBlocks: [10.0.0.0/8]"} {
		for _, spec := range []string{allowRule(sourceRule(field)), denyRule(sourceRule(field))} {
			if d := compile(ap(t, "shop/p", spec)).Decide(c); d.Allowed {
				t.Errorf("%s allows an unknown address", spec)
			}
		}
	}
}

func TestServerNamesMatchWithoutCase(t *testing.T) {
	for _, value := range []string{"api.shop.example", "API.shop.EXAMPLE.", "api.*", "*.Example", "*"} {
		p := ap(t, "shop/p", denyRule("{when: [{key: connection.sni, values: ['"+value+"']}]}"))
		for sni, want := range map[string]bool{"api.shop.example": true, "Api.Shop.Example": true, "api.shop.example.": true, "": false, "x.org": value == "*"} {
			c := from(t, web)
			c.SNI = sni
			if d := compile(p).Decide(c); d.Allowed == want {
				t.Errorf("%s for %q: %+v", value, sni, d)
			}
		}
	}
}

func TestUnreadablePolicyDeniesWhateverItsAction(t *testing.T) {
	allowAll := ap(t, "shop/a", "rules: [{}]")
	for _, kind := range []document.Kind{document.AuthorizationPolicy, document.PeerAuthentication} {
		u := Unreadable(document.Key{Kind: kind, Namespace: "shop", Name: "new"}, EvaluatorVersion+1)
		d := compile(allowAll, u).Decide(from(t, web))
		if d.Allowed || d.Reason != ReasonPolicyDenied || d.Policy != "shop/new" || !slices.Contains(d.Consulted, "shop/new") || u.Needs() != EvaluatorVersion+1 {
			t.Errorf("%+v", d)
		}
	}
	for _, key := range []document.Key{{Namespace: "aval-system", Name: "x"}, {}} {
		if d := compile(Unreadable(key, 0)).Decide(from(t, web)); d.Allowed {
			t.Errorf("%+v", d)
		}
	}
	if d := compile(Unreadable(document.Key{Namespace: "dark", Name: "x"}, 2)).Decide(from(t, web)); !d.Allowed {
		t.Errorf("%+v", d)
	}
	for _, action := range []Action{Allow, Deny, Audit} {
		p := allowAll
		p.action, p.needs = action, EvaluatorVersion+1
		if d := compile(p).Decide(from(t, web)); d.Allowed {
			t.Errorf("%v: %+v", action, d)
		}
	}
}

func TestLoadMakesUnreadableOfWhatItCannotParse(t *testing.T) {
	docs := []document.Document{
		doc(t, document.PeerAuthentication, "shop/m", "mtls: {mode: STRICT}"),
		doc(t, document.AuthorizationPolicy, "shop/good", "rules: [{}]"),
		doc(t, document.Registration, "shop/web", "{}"),
	}
	pas, aps, err := Load(docs, settings)
	if err != nil || len(pas) != 1 || len(aps) != 1 {
		t.Fatal(pas, aps, err)
	}
	for _, bad := range []document.Document{
		doc(t, document.AuthorizationPolicy, "shop/new", "rules: [{}]\nmood: good"),
		doc(t, document.PeerAuthentication, "shop/new", "mood: good"),
	} {
		pas, aps, err = Load(append(docs, bad), settings)
		if err == nil || !strings.Contains(err.Error(), "spec.mood: unknown field") {
			t.Error(err)
		}
		if d := Compile(settings, api, pas, aps, 1).Decide(from(t, web)); d.Allowed || d.Policy != "shop/new" {
			t.Errorf("%+v", d)
		}
	}
}

func TestDecideAllocatesNothing(t *testing.T) {
	rules := []string{
		sourceRule("namespaces: ['x*'], notNamespaces: [y], principals: ['a/*', '*/q', a/b]"),
		sourceRule("serviceAccounts: [a/b], notIpBlocks: [192.168.0.0/16]"),
		"{to: [{operation: {ports: [1], notPorts: [2]}}], when: [{key: connection.sni, values: ['*.X', y]}, {key: destination.ip, values: [10.0.0.0/8]}]}",
		sourceRule("trustDomains: ['*.com', partner.org]"),
	}
	set := Compile(settings, api,
		[]PeerAuthentication{pa(t, "shop/m", 1, backSelector+"portLevelMtls: {8080: {mode: PERMISSIVE}}")},
		[]AuthorizationPolicy{
			ap(t, "shop/d", denyRule(strings.Join(rules[:3], ","))),
			ap(t, "shop/a", allowRule(strings.Join(rules, ","))),
			ap(t, "shop/u", "action: AUDIT\nrules: ["+strings.Join(rules, ",")+"]"),
		}, 1)
	for _, peer := range []string{"", web, foreign} {
		c := from(t, peer)
		c.SNI = "some.name."
		var d Decision
		if n := testing.AllocsPerRun(100, func() { d = set.Decide(c) }); n != 0 {
			t.Errorf("%v allocations for %q", n, peer)
		}
		if d.Mode != Permissive {
			t.Errorf("%+v", d)
		}
	}
}
