// This file holds the properties that every set of policies has.

package policy

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/aval-id/aval/identity/document"
	"pgregory.net/rapid"
)

func TestOrderNeverMatters(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		set, shuffled := w.compile(t, w.policies), w.compile(t, rapid.Permutation(w.policies).Draw(t, "order"))
		for _, r := range drawRequests(t) {
			a, b := set.DecideRequest(&r), shuffled.DecideRequest(&r)
			if fmt.Sprint(a) != fmt.Sprint(b) {
				t.Fatalf("%+v\n%+v", a, b)
			}
		}
	})
}

func TestAddingDenyNeverAllowsMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		set, more := w.compile(t, w.policies), w.compile(t, append(slices.Clone(w.policies), drawAuthorization(t, "deny", "DENY")))
		for _, r := range drawRequests(t) {
			if more.DecideRequest(&r).Allowed && !set.DecideRequest(&r).Allowed {
				t.Fatalf("%+v is allowed by another DENY", r)
			}
		}
	})
}

// narrowed is an ALLOW policy with one more demand, or with less that it
// takes.
func narrowed(t *rapid.T, p written) written {
	rules, _ := p.spec["rules"].([]object)
	i := rapid.IntRange(0, len(rules)-1).Draw(t, "narrowed rule")
	rules = slices.Clone(rules)
	rule := object{}
	maps.Copy(rule, rules[i])
	// A clause that names what only HTTP has drops the rule elsewhere, so that
	// taking it away is no narrowing.
	switch rapid.IntRange(0, map[bool]int{true: 1, false: 2}[mentionsHTTP(rule)]).Draw(t, "narrowing") {
	case 0:
		rules = slices.Delete(rules, i, i+1)
	case 1:
		when, _ := rule["when"].([]object)
		rule["when"] = append(slices.Clone(when), drawCondition(t))
		rules[i] = rule
	case 2:
		if from, _ := rule["from"].([]object); len(from) > 1 {
			rule["from"] = from[1:]
		}
		if to, _ := rule["to"].([]object); len(to) > 1 {
			rule["to"] = to[1:]
		}
		rules[i] = rule
	}
	spec := object{}
	maps.Copy(spec, p.spec)
	spec["rules"] = rules
	p.spec = spec
	return p
}

func TestNarrowingAllowNeverAllowsMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		broad := drawAuthorization(t, "broad", "ALLOW")
		for broad.spec["rules"] == nil {
			broad = drawAuthorization(t, "broad", "ALLOW")
		}
		set := w.compile(t, append(slices.Clone(w.policies), broad))
		less := w.compile(t, append(slices.Clone(w.policies), narrowed(t, broad)))
		for _, r := range drawRequests(t) {
			if less.DecideRequest(&r).Allowed && !set.DecideRequest(&r).Allowed {
				t.Fatalf("%+v is allowed by a narrower ALLOW", r)
			}
		}
	})
}

func TestAllowWithoutRulesAloneDeniesEverything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		policies := slices.DeleteFunc(w.policies, func(p written) bool { return p.spec["action"] == "ALLOW" })
		policies = append(policies, written{kind: document.AuthorizationPolicy, namespace: "shop", name: "none", spec: object{}})
		for _, r := range drawRequests(t) {
			if d := w.compile(t, policies).DecideRequest(&r); d.Allowed {
				t.Fatalf("%+v is allowed", r)
			}
		}
	})
}

// What takes in another rule matches whatever that one matches.
func TestTakesMeansMatches(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		action := rapid.SampledFrom([]string{"ALLOW", "DENY"}).Draw(t, "of")
		one := func(name string) AuthorizationPolicy {
			p := written{kind: document.AuthorizationPolicy, namespace: "shop", name: name,
				spec: object{"action": action, "rules": []object{drawSmallRule(t)}}}
			return apOf(t, p.document(t))
		}
		wide, narrow := one("wide"), one("narrow")
		if !wide.rules[0].takes(&narrow.rules[0], action == "ALLOW") {
			return
		}
		for _, r := range drawRequests(t) {
			all := Compile(requests, api, nil, []AuthorizationPolicy{wide, narrow}, 1).Matching(&r, false)
			if len(all) == 1 && all[0].Policy == "shop/narrow" {
				t.Fatalf("%+v matches the rule that is taken in alone", r)
			}
		}
	})
}

// Every rule that takes part in a decision is one that matches.
func TestTheDecidingRuleMatches(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		set := w.compile(t, w.policies)
		for _, r := range drawRequests(t) {
			d := set.DecideRequest(&r)
			found := slices.ContainsFunc(set.Matching(&r, false), func(m Match) bool { return m.Policy == d.Policy && m.Rule == d.Rule })
			if d.Policy != "" && !found {
				t.Fatalf("%+v is no match", d)
			}
		}
	})
}
