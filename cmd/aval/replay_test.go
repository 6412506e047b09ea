// This file holds the tests of replay.

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

const replayDocs = `
apiVersion: aval.dev/v1alpha1
kind: Registration
metadata: {name: api, namespace: shop, labels: {app: api}}
spec: {id: /ns/shop/sa/api, workload: {unix.uid: 1}}
---
apiVersion: aval.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: mode, namespace: shop}
spec: {mtls: {mode: MODE}}
---
apiVersion: aval.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: shop}
spec: {action: DENY, rules: [{from: [{source: {principals: [example.org/ns/shop/sa/bad]}}]}]}
`

func replayOf(t *testing.T, yaml string) *replay {
	t.Helper()
	docs, err := document.Parse("", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	td, err := identity.ParseTrustDomain("example.org")
	if err != nil {
		t.Fatal(err)
	}
	r, err := newReplay(docs, policy.Settings{TrustDomain: td}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func recorded(transport, client string, verdict audit.Verdict, reason string) audit.Event {
	const api = "spiffe://example.org/ns/shop/sa/api"
	return audit.Event{Time: time.Now(), Kind: audit.KindConnection, Direction: audit.DirectionInbound, Transport: transport, ClientID: client,
		ServerID: api, Reporter: api, Workload: "shop/api", Port: 8080, Source: "192.0.2.1:99", Verdict: verdict, Reason: reason, Mode: "PERMISSIVE"}
}

func withMode(mode string) string { return strings.Replace(replayDocs, "MODE", mode, 1) }

func TestReplaySaysWhatBreaksOpensAndStays(t *testing.T) {
	const web, bad = "spiffe://example.org/ns/shop/sa/web", "spiffe://example.org/ns/shop/sa/bad"
	mtls, plaintext := audit.TransportMTLS, audit.TransportPlaintext
	strict := recorded(plaintext, "", audit.VerdictDenied, audit.ReasonPlaintextRefused)
	strict.Mode = "STRICT"
	many := recorded(plaintext, "", audit.VerdictAllowed, audit.ReasonPlaintextAllowed)
	many.Count = 40
	for _, c := range []struct {
		name, mode, effect string
		e                  audit.Event
		decider            string
	}{
		{"plaintext breaks in strict", "STRICT", effectBreaks, many, "mode STRICT by shop/mode"},
		{"plaintext stays in permissive", "PERMISSIVE", effectStays, many, "no ALLOW policy applies"},
		{"passed-through TLS breaks in strict", "STRICT", effectBreaks, recorded(audit.TransportTLSPassthrough, "", audit.VerdictAllowed, audit.ReasonPlaintextAllowed), "mode STRICT by shop/mode"},
		{"refused plaintext opens in permissive", "PERMISSIVE", effectOpens, strict, "no ALLOW policy applies"},
		{"mTLS stays in strict", "STRICT", effectStays, recorded(mtls, web, audit.VerdictAllowed, audit.ReasonAllowed), "no ALLOW policy applies"},
		{"mTLS breaks where TLS is not offered", "DISABLE", effectBreaks, recorded(mtls, web, audit.VerdictAllowed, audit.ReasonAllowed), "mode DISABLE by shop/mode"},
		{"a denied caller breaks", "STRICT", effectBreaks, recorded(mtls, bad, audit.VerdictAllowed, audit.ReasonAllowed), "shop/callers"},
		{"a caller that is not denied any more opens", "STRICT", effectOpens, recorded(mtls, web, audit.VerdictDenied, audit.ReasonPolicyDenied), "no ALLOW policy applies"},
		{"an unreachable application was let in", "STRICT", effectStays, recorded(mtls, web, audit.VerdictFailed, audit.ReasonUpstreamUnreachable), "no ALLOW policy applies"},
		{"a foreign caller stays refused", "STRICT", effectStays, recorded(mtls, "spiffe://other.org/x", audit.VerdictDenied, audit.ReasonWrongTrustDomain), "foreign trust domain"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := replayOf(t, withMode(c.mode))
			r.add(&c.e)
			n := max(1, c.e.Count)
			var want effects
			want.add(c.effect, n)
			if r.total != want || r.policies[effectKey{c.decider, "connection"}] == nil {
				t.Fatalf("%+v, by %v", r.total, sortedEffects(r.policies))
			}
			out := r.result()
			if (c.effect != effectStays) != (len(out.Changes) == 1) || len(out.Clients) != 1 {
				t.Errorf("result: %+v", out)
			}
			if len(out.Changes) == 1 && (out.Changes[0].Count != n || out.Changes[0].Workload != "shop/api") {
				t.Errorf("change: %+v", out.Changes[0])
			}
		})
	}
}

func TestReplayKnowsExceptionsThatHold(t *testing.T) {
	const exception = "---\napiVersion: aval.dev/v1alpha1\nkind: PlaintextException\nmetadata: {name: x, namespace: shop}\n" +
		"spec: {from: [192.0.2.1], reason: because, until: UNTIL}\n"
	for until, want := range map[string]effects{"2001-01-01T00:00:00Z": {Breaks: 1}, "9000-01-01T00:00:00Z": {Stays: 1}} {
		r := replayOf(t, withMode("STRICT")+strings.Replace(exception, "UNTIL", until, 1))
		e := recorded(audit.TransportPlaintext, "", audit.VerdictAllowed, audit.ReasonPlaintextAllowed)
		r.add(&e)
		if r.total != want {
			t.Errorf("until %s: %+v", until, r.total)
		}
	}
}

func TestReplayCountsNothingTwiceAndGuessesNothing(t *testing.T) {
	r := replayOf(t, withMode("STRICT"))
	outbound := recorded(audit.TransportMTLS, "x", audit.VerdictAllowed, audit.ReasonAllowed)
	outbound.Direction = audit.DirectionOutbound
	forged := recorded(audit.TransportMTLS, "x", audit.VerdictAllowed, audit.ReasonAllowed)
	forged.Reporter = "spiffe://example.org/ns/shop/sa/web"
	closed := recorded(audit.TransportMTLS, "x", audit.VerdictDone, audit.ReasonClosed)
	closed.Kind = audit.KindConnectionClosed
	cut := recorded(audit.TransportMTLS, "x", audit.VerdictDenied, audit.ReasonPolicyChanged)
	for _, e := range []audit.Event{outbound, forged, closed, cut} {
		r.add(&e)
	}
	if r.total != (effects{}) || len(r.unjudged) != 0 {
		t.Errorf("%+v %v", r.total, r.unjudged)
	}
	gone := recorded(audit.TransportMTLS, "x", audit.VerdictAllowed, audit.ReasonAllowed)
	gone.ServerID, gone.Reporter = "spiffe://example.org/gone", "spiffe://example.org/gone"
	tlsOnly := recorded(audit.TransportPlaintext, "", audit.VerdictDenied, audit.ReasonPlaintextRefused)
	expired := recorded(audit.TransportMTLS, "x", audit.VerdictDenied, audit.ReasonExpired)
	for _, e := range []audit.Event{gone, tlsOnly, expired, {Kind: audit.KindLoss, Lost: 9}} {
		r.add(&e)
	}
	if r.total != (effects{}) || r.unjudged["not_registered"] != 1 || r.unjudged["tls_only_port"] != 1 || r.unjudged["expired"] != 1 || r.lost != 9 {
		t.Errorf("%+v %v %d", r.total, r.unjudged, r.lost)
	}
}

func TestReplayedDocumentsReplaceTheServersAsAnApplyWould(t *testing.T) {
	parse := func(yaml string) []document.Document {
		docs, err := document.Parse("", []byte(yaml))
		if err != nil {
			t.Fatal(err)
		}
		return docs
	}
	then := time.Now().Add(-time.Hour).UTC()
	held := parse(withMode("PERMISSIVE"))
	for i := range held {
		held[i] = held[i].WithCreationTimestamp(then)
	}
	files := parse("apiVersion: aval.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: mode, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n---\n" +
		"apiVersion: aval.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: new, namespace: shop, creationTimestamp: 2001-01-01T00:00:00Z}\nspec: {mtls: {mode: DISABLE}}\n")
	all := replaced(held, files, false)
	if len(all) != 4 {
		t.Fatalf("%d documents", len(all))
	}
	for _, d := range all {
		created := d.Metadata().CreationTimestamp
		if d.Metadata().Name == "new" != created.IsZero() {
			t.Errorf("%s was created at %v", d.Key(), created)
		}
	}
	if only := replaced(held, files, true); len(only) != 3 {
		t.Errorf("with only: %d documents", len(only))
	}
}

func FuzzRecordedAddr(f *testing.F) {
	for _, s := range []string{"192.0.2.1:80", "[2001:db8::1]:1", "::ffff:192.0.2.1", "", "x:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if a := recordedAddr(s); a.Is4In6() {
			t.Errorf("%q: %s", s, a)
		}
	})
}
