// This file tests what is decided by request: one test for each sentence.

package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/aval-id/aval/identity/document"
)

func operationRule(s string) string { return "{to: [{operation: {" + s + "}}]}" }
func whenRule(s string) string      { return "{when: [{" + s + "}]}" }

// get is a request of web's, with a token and a header.
func get(t testing.TB, path string) Request {
	return Request{
		Connection: from(t, web),
		HTTP: &HTTP{Method: "GET", Host: "api.shop", Path: path, Header: func(name string) (string, bool) {
			v, ok := map[string]string{"x-team": "blue", "x-empty": ""}[name]
			return v, ok
		}},
		JWT: &JWT{Issuer: "https://issuer", Subject: "alice", Audiences: []string{"web", "api"}, Presenter: "cli", Claims: map[string]any{
			"iss": "https://issuer", "groups": []any{"staff", 7.0, "admin"}, "scope": "read", "level": 3.0, "realm": map[string]any{"roles": []any{"editor"}},
		}},
	}
}

func compileRequests(aps ...AuthorizationPolicy) *Set { return Compile(requests, api, nil, aps, 7) }

func TestRequestFieldsMatch(t *testing.T) {
	for _, c := range []struct {
		rule  string
		match bool
	}{
		{operationRule("methods: [GET]"), true},
		{operationRule("methods: [get]"), false},
		{operationRule("methods: [POST, 'G*']"), true},
		{operationRule("notMethods: [GET]"), false},
		{operationRule("hosts: [API.shop]"), true},
		{operationRule("hosts: ['api.shop:*']"), true},
		{operationRule("hosts: ['*.SHOP.']"), true},
		{operationRule("notHosts: ['*']"), false},
		{operationRule("paths: [/api/items/7]"), true},
		{operationRule("paths: [/api/items]"), false},
		{operationRule("paths: ['/api/*']"), true},
		{operationRule("paths: ['*/7']"), true},
		{operationRule("paths: ['/a%70i//items/./7']"), true},
		{operationRule("paths: ['/api/{*}/7']"), true},
		{operationRule("paths: ['/api/{*}']"), false},
		{operationRule("paths: ['/api/{**}']"), true},
		{operationRule("paths: ['/{**}/7']"), true},
		{operationRule("paths: ['/{*}/{**}/8']"), false},
		{operationRule("paths: ['/api/items/7/{**}']"), false},
		{operationRule("notPaths: ['/api/{*}/{*}']"), false},
		{operationRule("methods: [GET], paths: [/other]"), false},
		{"{to: [{operation: {paths: [/other]}}, {operation: {methods: [GET]}}]}", true},
		{sourceRule("requestPrincipals: ['https://issuer/alice']"), true},
		{sourceRule("requestPrincipals: ['https://issuer/*']"), true},
		{sourceRule("requestPrincipals: ['*/alice']"), true},
		{sourceRule("requestPrincipals: ['*/al']"), false},
		{sourceRule("notRequestPrincipals: ['*']"), false},
		{whenRule("key: request.auth.principal, values: ['*']"), true},
		{whenRule("key: request.auth.audiences, values: [api]"), true},
		{whenRule("key: request.auth.audiences, notValues: [web]"), false},
		{whenRule("key: request.auth.presenter, values: ['c*']"), true},
		{whenRule("key: 'request.auth.claims[groups]', values: [admin]"), true},
		{whenRule("key: 'request.auth.claims[groups]', values: ['7']"), false},
		{whenRule("key: 'request.auth.claims[scope]', values: [read]"), true},
		{whenRule("key: 'request.auth.claims[level]', values: ['3']"), false},
		{whenRule("key: 'request.auth.claims[realm][roles]', values: [editor]"), true},
		{whenRule("key: 'request.auth.claims[realm]', values: ['*']"), false},
		{whenRule("key: 'request.auth.claims[realm][none][deeper]', notValues: ['*']"), true},
		{whenRule("key: 'request.headers[X-Team]', values: [blue]"), true},
		{whenRule("key: 'request.headers[x-team]', values: [Blue]"), false},
		{whenRule("key: 'request.headers[x-empty]', values: ['*']"), false},
		{whenRule("key: 'request.headers[x-none]', notValues: ['*']"), true},
		{whenRule("key: 'request.headers[Host]', values: [api.shop]"), true},
		{whenRule("key: 'request.headers[:authority]', values: [api.shop]"), true},
		{whenRule("key: 'request.headers[:method]', values: [GET]"), true},
		{"{when: [{key: 'request.headers[x-team]', values: ['b*']}, {key: 'request.headers[x-team]', values: [red]}]}", false},
	} {
		r := get(t, "/api/items/7")
		if d := compileRequests(ap(t, "shop/p", allowRule(c.rule))).DecideRequest(&r); d.Allowed != c.match {
			t.Errorf("ALLOW %s: %+v", c.rule, d)
		}
		if d := compileRequests(ap(t, "shop/p", denyRule(c.rule))).DecideRequest(&r); d.Allowed == c.match {
			t.Errorf("DENY %s: %+v", c.rule, d)
		}
	}
}

func TestNoTokenMatchesOnlyNegatively(t *testing.T) {
	r := get(t, "/")
	r.JWT = nil
	for rule, want := range map[string]bool{
		sourceRule("requestPrincipals: ['*']"):                           false,
		sourceRule("notRequestPrincipals: ['*']"):                        true,
		whenRule("key: request.auth.audiences, values: ['*']"):           false,
		whenRule("key: 'request.auth.claims[a]', notValues: ['x', 'y']"): true,
	} {
		if d := compileRequests(ap(t, "shop/p", allowRule(rule))).DecideRequest(&r); d.Allowed != want {
			t.Errorf("%s: %+v", rule, d)
		}
	}
	r.JWT = &JWT{Issuer: "https://issuer"}
	if d := compileRequests(ap(t, "shop/p", allowRule(sourceRule("requestPrincipals: ['*']")))).DecideRequest(&r); d.Allowed {
		t.Error("a token without subject has a principal")
	}
}

// Fields that only HTTP has, on a connection that is not HTTP: in ALLOW the
// whole rule is dropped, in DENY and AUDIT only that field.
func TestRequestFieldsAreDroppedWithoutHTTP(t *testing.T) {
	for _, field := range []string{
		operationRule("ports: [8080], methods: [POST]"), operationRule("ports: [8080], notMethods: [GET]"), operationRule("hosts: [x]"), operationRule("paths: [/x]"),
		sourceRule("principals: ['*'], requestPrincipals: [a/b]"), whenRule("key: 'request.headers[a]', values: [b]"),
		whenRule("key: request.auth.presenter, notValues: [b]"),
		"{to: [{operation: {ports: [8080]}}, {operation: {methods: [GET]}}]}",
	} {
		set := compileRequests(ap(t, "shop/p", allowRule(field)))
		if d := set.Decide(from(t, web)); d.Allowed {
			t.Errorf("ALLOW %s: %+v", field, d)
		}
		if !set.NeedsHTTP(8080) || len(set.RequestFields(8080)) != 1 || !strings.HasPrefix(set.RequestFields(8080)[0], "shop/p spec.rules[0].") {
			t.Errorf("%s: %v", field, set.RequestFields(8080))
		}
		if d := compileRequests(ap(t, "shop/p", denyRule(field))).Decide(from(t, web)); d.Allowed {
			t.Errorf("DENY %s: %+v", field, d)
		}
		if d := compileRequests(ap(t, "shop/p", "action: AUDIT\nrules: ["+field+"]")).Decide(from(t, web)); d.Audit != "shop/p" {
			t.Errorf("AUDIT %s: %+v", field, d)
		}
	}
	if d := compileRequests(ap(t, "shop/p", denyRule(operationRule("ports: [9], methods: [GET]")))).Decide(from(t, web)); !d.Allowed {
		t.Errorf("the other fields of DENY were dropped too: %+v", d)
	}
}

func TestNeedsHTTPIsByPort(t *testing.T) {
	set := compileRequests(
		ap(t, "shop/a", allowRule(operationRule("ports: [8080], methods: [GET]"))),
		ap(t, "shop/b", denyRule("{to: [{operation: {paths: [/x]}}], when: [{key: destination.port, values: [9090]}]}")),
		ap(t, "shop/c", allowRule(operationRule("ports: [7070]"))),
		ap(t, "dark/d", allowRule(operationRule("methods: [GET]"))),
	)
	for port, want := range map[uint16]bool{8080: true, 9090: true, 7070: false, 1: false} {
		if set.NeedsHTTP(port) != want {
			t.Errorf("port %d: %v", port, !want)
		}
	}
	if got := set.Ports(); !slices.Equal(got, []uint16{7070, 8080, 9090}) {
		t.Error(got)
	}
	var none *Set
	if none.NeedsHTTP(1) || none.Ports() != nil || none.RequestFields(1) != nil || none.Matching(&Request{}, true) != nil {
		t.Error("a nil Set has fields")
	}
}

func TestRemoteAddressIsThatOfTheClient(t *testing.T) {
	set := compileRequests(ap(t, "shop/p", allowRule("{from: [{source: {remoteIpBlocks: [203.0.113.0/24], ipBlocks: [10.0.0.0/8]}}], when: [{key: remote.ip, notValues: [203.0.113.9]}]}")))
	for remote, want := range map[string]bool{"203.0.113.7": true, "::ffff:203.0.113.7": true, "203.0.113.9": false, "10.0.0.7": false, "": false} {
		r := Request{Connection: from(t, web)}
		if remote != "" {
			r.Remote = netip.MustParseAddr(remote)
		}
		if d := set.DecideRequest(&r); d.Allowed != want {
			t.Errorf("%q: %+v", remote, d)
		}
	}
	direct := compileRequests(ap(t, "shop/p", allowRule(sourceRule("remoteIpBlocks: [10.0.0.0/8]"))))
	if d := direct.Decide(from(t, web)); !d.Allowed {
		t.Errorf("the direct peer is not taken for the client: %+v", d)
	}
}

func dryRun(t *testing.T, path, spec string) AuthorizationPolicy {
	t.Helper()
	return apOf(t, doc(t, document.AuthorizationPolicy, path, spec, "aval.dev/dry-run: 'true'"))
}

func TestDryRunIsTriedAndNeverEnforced(t *testing.T) {
	deny, allow := dryRun(t, "shop/deny", denyRule(sourceRule("namespaces: [shop]"))), dryRun(t, "shop/allow", allowRule(sourceRule("namespaces: [dark]")))
	for _, c := range []struct {
		name    string
		aps     []AuthorizationPolicy
		peer    string
		allowed bool
		trial   Trial
	}{
		{"none", nil, web, true, Trial{}},
		{"another workload's", []AuthorizationPolicy{dryRun(t, "dark/x", denyRule("{}"))}, web, true, Trial{}},
		{"DENY would deny", []AuthorizationPolicy{deny}, web, true, Trial{Ran: true, Reason: ReasonPolicyDenied, Policy: "shop/deny", Mode: Permissive}},
		{"DENY would not match", []AuthorizationPolicy{deny}, intruder, true, Trial{Ran: true, Allowed: true, Reason: ReasonAllowed, Rule: -1, Mode: Permissive}},
		{"a first ALLOW would shut others out", []AuthorizationPolicy{allow}, web, true, Trial{Ran: true, Reason: ReasonPolicyDenied, Rule: -1, Mode: Permissive}},
		{"one verdict of both", []AuthorizationPolicy{deny, ap(t, "shop/none", "{}")}, web, false, Trial{Ran: true, Reason: ReasonPolicyDenied, Policy: "shop/deny", Mode: Permissive}},
		{"ALLOW would open", []AuthorizationPolicy{allow, ap(t, "shop/none", "{}")}, intruder, false, Trial{Ran: true, Allowed: true, Reason: ReasonAllowed, Policy: "shop/allow", Mode: Permissive}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := compileRequests(c.aps...).Decide(from(t, c.peer))
			if d.Allowed != c.allowed || d.Trial != c.trial {
				t.Errorf("%+v", d)
			}
			if slices.Contains(d.Consulted, "shop/deny") || slices.Contains(d.Consulted, "shop/allow") {
				t.Errorf("a policy on dry run counts as consulted: %v", d.Consulted)
			}
		})
	}
	if !deny.DryRun() || deny.Needs() != 2 || HasAllow(requests, api, []AuthorizationPolicy{allow}) || compileRequests(allow).HasAllow() {
		t.Error("a policy on dry run counts as one that is enforced")
	}
}

func TestDryRunOfModes(t *testing.T) {
	p, _, err := ParsePeerAuthentication(doc(t, document.PeerAuthentication, "shop/strict", backSelector+"mtls: {mode: STRICT}", "aval.dev/dry-run: 'true'"), requests)
	if err != nil || !p.DryRun() || p.Needs() != 2 {
		t.Fatal(err)
	}
	older := pa(t, "shop/older", 1, backSelector)
	set := Compile(requests, api, []PeerAuthentication{p}, nil, 1)
	d := set.Decide(from(t, ""))
	if !d.Allowed || d.Mode != Permissive || d.Trial != (Trial{Ran: true, Reason: ReasonPlaintextRefused, Rule: -1, Mode: Strict, ModeSource: "shop/strict"}) {
		t.Errorf("%+v", d)
	}
	if got := Conflicts([]PeerAuthentication{p, older}); len(got) != 1 || got[p.Key()] != older.Key() {
		t.Error(got)
	}
	young := pa(t, "shop/young", 0, backSelector)
	if got := Conflicts([]PeerAuthentication{p, young}); len(got) != 0 {
		t.Errorf("a policy on dry run takes the scope of another one: %v", got)
	}
}

func TestOldEvaluatorsAreNotGivenWhatTheyDoNotKnow(t *testing.T) {
	for rule, want := range map[string]int{
		"{}":                                       1,
		sourceRule("principals: [a/b]"):            1,
		operationRule("ports: [80]"):               1,
		operationRule("methods: [GET]"):            2,
		sourceRule("remoteIpBlocks: [10.0.0.1]"):   2,
		whenRule("key: remote.ip, values: ['::']"): 2,
	} {
		if got := ap(t, "shop/p", denyRule(rule)).Needs(); got != want {
			t.Errorf("%s needs %d, not %d", rule, got, want)
		}
	}
	if pa(t, "shop/m", 1, "mtls: {mode: STRICT}").Needs() != 1 {
		t.Error("a mode needs a new evaluator")
	}
}

// Rules of more clauses than a word has bits, and of more rows than a block
// has, match as short ones do.
func TestLongRulesAndManyRules(t *testing.T) {
	var sources, operations []string
	for i := range 150 {
		sources = append(sources, fmt.Sprintf("{source: {principals: [example.org/s%d]}}", i))
		operations = append(operations, fmt.Sprintf("{operation: {methods: [M%d]}}", i))
	}
	long := "{from: [" + strings.Join(sources, ",") + "], to: [" + strings.Join(operations, ",") + "]}"
	var rules []string
	for range 700 {
		rules = append(rules, "{from: [{source: {principals: [a/b]}}, {source: {principals: [a/c]}}]}")
	}
	set := compileRequests(ap(t, "shop/p", allowRule(strings.Join(append(rules, long), ","))))
	if n := len(set.enforced.allow.blocks); n < 2 {
		t.Fatalf("%d blocks", n)
	}
	for _, i := range []int{0, 63, 64, 127, 128, 149, 150} {
		for _, j := range []int{0, 63, 64, 128, 149, 150} {
			r := Request{Connection: from(t, fmt.Sprintf("example.org/s%d", i)), HTTP: &HTTP{Method: fmt.Sprintf("M%d", j), Path: "/"}}
			d := set.DecideRequest(&r)
			if want := i < 150 && j < 150; d.Allowed != want || want && d.Rule != 700 {
				t.Errorf("source %d, operation %d: %+v", i, j, d)
			}
			if all := set.Matching(&r, false); len(all) != min(1, len(all)) || d.Allowed && all[0].Rule != 700 {
				t.Error(all)
			}
		}
	}
}

func TestDecideRequestAllocatesNothing(t *testing.T) {
	rules := []string{
		operationRule("methods: [POST], hosts: ['*.SHOP'], paths: ['/a/*', '*.png', '/api/{*}/{**}']"),
		sourceRule("requestPrincipals: ['*/bob', 'https://issuer/x*'], remoteIpBlocks: [10.0.0.0/9], notRemoteIpBlocks: [10.0.0.0/30]"),
		whenRule("key: 'request.auth.claims[realm][roles]', values: [none]") + "," + whenRule("key: 'request.headers[x-team]', values: ['r*']"),
		whenRule("key: request.auth.audiences, values: [none, '*z']"),
	}
	spec := strings.Join(rules, ",")
	set := Compile(requests, api, nil, []AuthorizationPolicy{
		ap(t, "shop/d", denyRule(spec)), ap(t, "shop/a", allowRule(spec)), dryRun(t, "shop/t", denyRule(spec)), ap(t, "shop/u", "action: AUDIT\nrules: ["+spec+"]"),
	}, 1)
	r := get(t, "/api/items/7")
	if n := testing.AllocsPerRun(100, func() { set.DecideRequest(&r) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
