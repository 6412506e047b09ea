// This file holds the tests of replay on recorded requests.

package main

import (
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/policy"
)

const requestDocs = `
apiVersion: aval.dev/v1alpha1
kind: Registration
metadata: {name: api, namespace: shop, labels: {app: api}}
spec: {id: /ns/shop/sa/api, workload: {unix.uid: 1}}
---
apiVersion: aval.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: paths, namespace: shop}
spec: {action: ALLOW, rules: [RULES]}
`

func requestReplay(t *testing.T, rules string) *replay {
	t.Helper()
	docs, err := document.Parse("", []byte(strings.Replace(requestDocs, "RULES", rules, 1)))
	if err != nil {
		t.Fatal(err)
	}
	td, err := identity.ParseTrustDomain("example.org")
	if err != nil {
		t.Fatal(err)
	}
	r, err := newReplay(docs, policy.Settings{TrustDomain: td, Requests: true}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// requested is a record of requests of web's.
func requested(method, path string, count uint64, folded ...string) audit.Event {
	e := recorded(audit.TransportMTLS, "spiffe://example.org/ns/shop/sa/web", audit.VerdictAllowed, audit.ReasonAllowed)
	e.Kind, e.Method, e.Host, e.Path, e.Count, e.Folded = audit.KindRequest, method, "api.shop", path, count, folded
	return e
}

func TestReplayJudgesRequestsByWhatWasAskedFor(t *testing.T) {
	r := requestReplay(t, `{to: [{operation: {methods: [GET], paths: ["/shop/*"], hosts: ["api.shop"]}}]},
		{to: [{operation: {paths: ["/token/*"]}}], when: [{key: "request.headers[x-token]", values: [good]}]},
		{to: [{operation: {paths: ["/claim"]}}], when: [{key: "request.auth.claims[role]", values: [admin]}]}`)
	denied := requested("GET", "/shop/denied", 4)
	denied.Verdict, denied.Reason = audit.VerdictDenied, audit.ReasonPolicyDenied
	late := requested("GET", "/shop/1", 1)
	late.Verdict, late.Reason = audit.VerdictDenied, audit.ReasonPolicyChanged
	for _, e := range []audit.Event{
		requested("GET", "/shop/1", 100), requested("GET", "/admin", 7), requested("POST", "/shop/1", 3), requested("GET", "/token/x", 20),
		requested("GET", "/claim", 2), requested("GET", "", 1000, audit.FoldedPath), requested("", "", 300, audit.FoldedPath, audit.FoldedHost), denied, late,
	} {
		r.add(&e)
	}
	if want := (effects{Breaks: 10, Opens: 4, Stays: 100, Undecided: 1322}); r.requests != want || r.total != (effects{}) {
		t.Errorf("requests %+v, connections %+v", r.requests, r.total)
	}
	want := map[string]uint64{
		"shop/paths path, not told apart": 1300, "shop/paths host, not told apart": 300, "shop/paths method, not told apart": 300,
		"shop/paths header x-token, not recorded": 20, "shop/paths claim role, not recorded": 2,
	}
	for what, n := range want {
		if r.undecided[what] != n {
			t.Errorf("%s: %d, want %d", what, r.undecided[what], n)
		}
	}
	if len(r.undecided) != len(want) {
		t.Errorf("depends on %v", r.undecided)
	}
	out := r.result()
	if len(out.Changes) != 2 || out.Changes[0].Of != "request" || len(out.Changes[0].Requests) != 2 ||
		out.Changes[0].Requests[0] != (asked{"GET api.shop/admin", 7}) || out.Changes[0].WouldBe.decider() != "no ALLOW policy matched" {
		t.Errorf("changes: %+v", out.Changes)
	}
}

// TestReplayDoesNotGuessTheRequestsOfAConnection whose requests nobody judged.
func TestReplayDoesNotGuessTheRequestsOfAConnection(t *testing.T) {
	web := "spiffe://example.org/ns/shop/sa/web"
	http := recorded(audit.TransportPlaintext, "", audit.VerdictAllowed, audit.ReasonPlaintextAllowed)
	http.Protocol = audit.ProtocolHTTP
	other := http
	other.Protocol = audit.ProtocolOther
	byRequest := recorded(audit.TransportMTLS, web, audit.VerdictAllowed, audit.ReasonAllowed)
	byRequest.ByRequest = true
	secure := recorded(audit.TransportMTLS, web, audit.VerdictAllowed, audit.ReasonAllowed)
	stranger := recorded(audit.TransportMTLS, "spiffe://example.org/ns/shop/sa/other", audit.VerdictAllowed, audit.ReasonAllowed)
	const paths = `{from: [{source: {principals: ["example.org/ns/shop/sa/web"]}}], to: [{operation: {paths: ["/shop/*"]}}]}`
	for _, tt := range []struct {
		name, rules string
		e           audit.Event
		want        effects
	}{
		{"requests are judged by themselves", paths, byRequest, effects{Stays: 1}},
		{"mTLS that may be HTTP", paths, secure, effects{Undecided: 1}},
		{"plaintext HTTP that no rule may admit", paths, http, effects{Breaks: 1}},
		{"plaintext HTTP that a path may admit", `{to: [{operation: {paths: ["/shop/*"]}}]}`, http, effects{Undecided: 1}},
		{"what is not HTTP loses its fields", `{to: [{operation: {paths: ["/shop/*"]}}]}`, other, effects{Breaks: 1}},
		{"a peer that no rule admits", paths, stranger, effects{Breaks: 1}},
		{"a peer that a rule admits whatever it asks for", paths + `, {from: [{source: {principals: ["example.org/ns/shop/sa/web"]}}]}`, secure, effects{Stays: 1}},
	} {
		r := requestReplay(t, tt.rules)
		r.add(&tt.e)
		if r.total != tt.want {
			t.Errorf("%s: %+v, depends on %v", tt.name, r.total, r.undecided)
		}
	}
}
