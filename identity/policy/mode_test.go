// This file tests PeerAuthentication: one test for each sentence about modes.

package policy

import (
	"strings"
	"testing"

	"github.com/aval-id/aval/identity/document"
)

const backSelector = "selector: {matchLabels: {tier: back}}\n"

func TestNarrowestModeWins(t *testing.T) {
	domain := func(mode string) PeerAuthentication {
		return pa(t, "aval-system/domain", 1, "mtls: {mode: "+mode+"}")
	}
	namespace := func(mode string) PeerAuthentication {
		return pa(t, "shop/namespace", 1, "selector: {matchLabels: {}}\nmtls: {mode: "+mode+"}")
	}
	workload := func(mode string) PeerAuthentication {
		return pa(t, "shop/workload", 1, backSelector+"mtls: {mode: "+mode+"}")
	}
	for _, c := range []struct {
		name   string
		pas    []PeerAuthentication
		mode   Mode
		source string
	}{
		{"none", nil, Permissive, ""},
		{"domain", []PeerAuthentication{domain("STRICT")}, Strict, "aval-system/domain"},
		{"namespace over domain", []PeerAuthentication{domain("STRICT"), namespace("PERMISSIVE")}, Permissive, "shop/namespace"},
		{"workload over namespace", []PeerAuthentication{domain("STRICT"), namespace("PERMISSIVE"), workload("DISABLE")}, Disable, "shop/workload"},
		{"unset namespace inherits", []PeerAuthentication{domain("STRICT"), namespace("UNSET")}, Strict, "aval-system/domain"},
		{"unset workload inherits", []PeerAuthentication{domain("STRICT"), namespace("DISABLE"), workload("UNSET")}, Disable, "shop/namespace"},
		{"all unset", []PeerAuthentication{domain("UNSET"), namespace("UNSET"), workload("UNSET")}, Permissive, ""},
		{"no mtls is unset", []PeerAuthentication{pa(t, "shop/empty", 1, "{}"), domain("STRICT")}, Strict, "aval-system/domain"},
		{"other namespace", []PeerAuthentication{pa(t, "dark/x", 1, "mtls: {mode: STRICT}")}, Permissive, ""},
		{"other labels", []PeerAuthentication{pa(t, "shop/x", 1, "selector: {matchLabels: {tier: front}}\nmtls: {mode: STRICT}")}, Permissive, ""},
		{"one of two labels", []PeerAuthentication{pa(t, "shop/x", 1, "selector: {matchLabels: {tier: back, app: x}}\nmtls: {mode: STRICT}")}, Permissive, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			mode, source := Compile(settings, api, c.pas, nil, 1).Mode(8080)
			if mode != c.mode || source != c.source {
				t.Errorf("%v by %q, not %v by %q", mode, source, c.mode, c.source)
			}
		})
	}
}

func TestPortsComeOnlyFromTheWinningWorkloadPolicy(t *testing.T) {
	older := pa(t, "shop/older", 1, backSelector+"mtls: {mode: STRICT}\nportLevelMtls: {8080: {mode: DISABLE}, 9090: {mode: UNSET}, 9091: {}}")
	younger := pa(t, "shop/younger", 2, "selector: {matchLabels: {app: api}}\nmtls: {mode: DISABLE}\nportLevelMtls: {7070: {mode: PERMISSIVE}}")
	s := Compile(settings, api, []PeerAuthentication{younger, older}, nil, 1)
	for port, want := range map[uint16]Mode{8080: Disable, 9090: Strict, 9091: Strict, 7070: Strict, 1: Strict} {
		if mode, source := s.Mode(port); mode != want || source != "shop/older" {
			t.Errorf("port %d is %v by %s, not %v", port, mode, source, want)
		}
	}
	// A port that is UNSET inherits the resolved mode of the workload.
	inherits := pa(t, "shop/inherits", 1, backSelector+"portLevelMtls: {8080: {mode: UNSET}}")
	s = Compile(settings, api, []PeerAuthentication{inherits, pa(t, "shop/ns", 1, "mtls: {mode: STRICT}")}, nil, 1)
	if mode, source := s.Mode(8080); mode != Strict || source != "shop/ns" {
		t.Errorf("%v by %s", mode, source)
	}
}

func TestOldestPolicyOfOneScopeWins(t *testing.T) {
	a1 := pa(t, "shop/a", 2, "mtls: {mode: STRICT}")
	b1 := pa(t, "shop/b", 1, "mtls: {mode: DISABLE}")
	c1 := pa(t, "shop/c", 1, "mtls: {mode: PERMISSIVE}")
	never := pa(t, "shop/aa", 0, "mtls: {mode: STRICT}")
	unset := pa(t, "shop/unset", 1, "mtls: {mode: UNSET}")
	for _, c := range []struct {
		pas  []PeerAuthentication
		want string
	}{
		{[]PeerAuthentication{a1, b1, c1, never}, "shop/b"},
		{[]PeerAuthentication{never, c1, b1, a1}, "shop/b"},
		{[]PeerAuthentication{a1, never}, "shop/a"},
		{[]PeerAuthentication{a1, unset}, ""}, // the winner is UNSET and inherits
	} {
		if _, source := Compile(settings, api, c.pas, nil, 1).Mode(1); source != c.want {
			t.Errorf("%s wins, not %s", source, c.want)
		}
	}
	sel := pa(t, "shop/sel", 3, backSelector)
	same := pa(t, "shop/same", 2, backSelector)
	got := Conflicts([]PeerAuthentication{a1, sel, b1, same, c1, pa(t, "dark/a", 9, "{}")})
	want := map[document.Key]document.Key{a1.Key(): b1.Key(), c1.Key(): b1.Key(), sel.Key(): same.Key()}
	if len(got) != len(want) {
		t.Error(got)
	}
	for ignored, winner := range want {
		if got[ignored] != winner {
			t.Errorf("%v loses against %v", ignored, got[ignored])
		}
	}
}

func TestPeerAuthenticationIsRefused(t *testing.T) {
	for _, c := range []struct{ path, spec, want string }{
		{"aval-system/x", backSelector + "mtls: {mode: STRICT}", "p.yaml:5: spec.selector: a selector in the root namespace aval-system is not allowed"},
		{"shop/x", "portLevelMtls: {8080: {mode: STRICT}}", "p.yaml:5: spec.portLevelMtls: ports need a selector"},
		{"shop/x", "selector: {}\nportLevelMtls: {8080: {mode: STRICT}}", "spec.portLevelMtls: ports need a selector"},
		{"shop/x", "mtls: {mode: strict}", `p.yaml:5: spec.mtls.mode: mode "strict" is not one of UNSET, DISABLE, PERMISSIVE, STRICT`},
		{"shop/x", "mtls: {mod: STRICT}", "spec.mtls.mod: unknown field"},
		{"shop/x", "mtls: {mode: 3}", "spec.mtls.mode: wrong type"},
		{"shop/x", "mtls:", "spec.mtls: has no value"},
		{"shop/x", backSelector + "portLevelMtls: {0: {mode: STRICT}}", `spec.portLevelMtls.0: is not a port; found "0"; allowed: a port from 1 to 65535`},
		{"shop/x", backSelector + "portLevelMtls: {65536: {mode: STRICT}}", "is not a port"},
		{"shop/x", backSelector + "portLevelMtls: {'080': {mode: STRICT}}", "is not a port"},
		{"shop/x", "selector: {matchLabels: {app: 'a*'}}", "spec.selector.matchLabels.app: label value has '*'"},
		{"shop/x", "selector: {matchExpressions: []}", "unknown field"},
	} {
		_, _, err := ParsePeerAuthentication(doc(t, document.PeerAuthentication, c.path, c.spec), settings)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\n got %v\nwant %s", c.spec, err, c.want)
		}
	}
	if _, _, err := ParsePeerAuthentication(doc(t, document.AuthorizationPolicy, "shop/x", "{}"), settings); err == nil {
		t.Error("another kind was taken")
	}
	if _, _, err := ParsePeerAuthentication(doc(t, document.PeerAuthentication, "shop/x", "{}", "aval.dev/dry-run: 'true'"), settings); err == nil {
		t.Error("a dry-run was taken and would be enforced")
	}
	other := Settings{TrustDomain: own, RootNamespace: "shop"}
	if _, _, err := ParsePeerAuthentication(doc(t, document.PeerAuthentication, "shop/x", backSelector), other); err == nil {
		t.Error("a selector in the root namespace was taken")
	}
}

func TestStrictRefusesOnlyPlaintext(t *testing.T) {
	for _, c := range []struct {
		mode, peer, reason string
		allowed            bool
	}{
		{"STRICT", "", ReasonPlaintextRefused, false},
		{"STRICT", web, ReasonAllowed, true},
		{"PERMISSIVE", "", ReasonPlaintextAllowed, true},
		{"PERMISSIVE", web, ReasonAllowed, true},
		{"DISABLE", "", ReasonPlaintextAllowed, true},
	} {
		s := Compile(settings, api, []PeerAuthentication{pa(t, "shop/m", 1, "mtls: {mode: "+c.mode+"}")}, nil, 3)
		d := s.Decide(from(t, c.peer))
		if d.Allowed != c.allowed || d.Reason != c.reason || d.Mode.String() != c.mode || d.ModeSource != "shop/m" || d.Rule != -1 || d.Generation != 3 {
			t.Errorf("%s %q: %+v", c.mode, c.peer, d)
		}
	}
}

// Every value of every enum that is not known ends in a refusal.
func TestUnknownValuesDeny(t *testing.T) {
	for m := range 256 {
		s := &Set{domain: own, enforced: ruling{whole: resolved{mode: Mode(m)}, open: true}}
		want := Mode(m) == Disable || Mode(m) == Permissive
		if d := s.Decide(from(t, "")); d.Allowed != want {
			t.Errorf("plaintext in %v: %+v", Mode(m), d)
		}
	}
	for a := range 256 {
		p := AuthorizationPolicy{key: document.Key{Namespace: "shop", Name: "x"}, path: "shop/x", action: Action(a), needs: EvaluatorVersion, rules: []rule{{}}}
		want := Action(a) == Allow || Action(a) == Audit
		if d := compile(p).Decide(from(t, web)); d.Allowed != want {
			t.Errorf("action %v: %+v", Action(a), d)
		}
	}
	c := from(t, web)
	c.SNI = "x"
	for a := range 256 {
		for _, not := range []bool{false, true} {
			unknown := term{attribute: attribute(a), not: not}
			if attribute(a) >= attrPrincipal && attribute(a) <= lastAttribute {
				continue
			}
			for _, r := range []rule{{when: clause{unknown}}, {to: []clause{{unknown}}}, {from: []clause{{unknown}}}} {
				for _, action := range []Action{Allow, Deny} {
					p := AuthorizationPolicy{key: document.Key{Namespace: "shop", Name: "x"}, action: action, needs: EvaluatorVersion, rules: []rule{r}}
					if d := compile(p).Decide(c); d.Allowed {
						t.Errorf("attribute %d in %v allows", a, action)
					}
				}
			}
		}
	}
	for _, s := range []*Set{nil, {}} {
		for _, peer := range []string{"", web} {
			if d := s.Decide(from(t, peer)); d.Allowed {
				t.Errorf("%+v", d)
			}
		}
	}
}

func TestModesPrintAndParse(t *testing.T) {
	for m := Unset; m <= Strict; m++ {
		text, err := m.MarshalText()
		var back Mode
		if err != nil || back.UnmarshalText(text) != nil || back != m {
			t.Errorf("%v %v", m, err)
		}
	}
	if _, err := Mode(9).MarshalText(); err == nil {
		t.Error("a mode that does not exist was printed")
	}
}
