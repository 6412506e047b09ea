// Package bench measures the evaluator beside a literal one, which asks rule
// after rule, in the same run. Both decide 1,000 rules of which only the last
// matches. It stands beside identity/policy so that the baseline is no part
// of it.
package bench

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/cmd/measure"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/policy"
)

// shape is one way to write many rules.
type shape struct {
	name string
	rule func(i int) rule
}

// rule is the part of the language that the baseline knows.
type rule struct {
	Principals, Methods, Paths []string
}

var shapes = []shape{
	{"principals", func(i int) rule {
		return rule{Principals: []string{fmt.Sprintf("example.org/ns/shop/sa/w%d", i)}}
	}},
	{"prefixes", func(i int) rule {
		return rule{Principals: []string{fmt.Sprintf("example.org/ns/shop/sa/w%d/*", i)}, Methods: []string{"GET", "HEAD"}, Paths: []string{fmt.Sprintf("/api/v%d/*", i)}}
	}},
	{"same principal", func(i int) rule {
		return rule{Principals: []string{"example.org/*"}, Methods: []string{"GET"}, Paths: []string{fmt.Sprintf("/api/v%d/items", i)}}
	}},
	{"suffixes", func(i int) rule {
		return rule{Principals: []string{fmt.Sprintf("*/w%d", i)}, Paths: []string{fmt.Sprintf("*/v%d/items", i)}}
	}},
	{"templates", func(i int) rule {
		return rule{Principals: []string{"*"}, Methods: []string{"*"}, Paths: []string{fmt.Sprintf("/api/{*}/v%d/{**}", i)}}
	}},
}

// request is the one that the last of n rules takes.
func (s shape) request(n int) policy.Request {
	peer, path := fmt.Sprintf("spiffe://example.org/ns/shop/sa/w%d", n-1), fmt.Sprintf("/api/v%d/items", n-1)
	switch s.name {
	case "prefixes":
		peer += "/x"
	case "templates":
		path = fmt.Sprintf("/api/x/v%d/items", n-1)
	}
	id, err := identity.ParseID(peer)
	if err != nil {
		panic(err)
	}
	return policy.Request{
		Connection: policy.Connection{Peer: id, Source: netip.MustParseAddr("10.0.0.7"), Port: 8080},
		HTTP:       &policy.HTTP{Method: "GET", Host: "api.shop", Path: path},
	}
}

type object = map[string]any

// rulesPerPolicy keeps each document below its limit.
const rulesPerPolicy = 2500

var settings = func() policy.Settings {
	domain, err := identity.ParseTrustDomain("example.org")
	if err != nil {
		panic(err)
	}
	return policy.Settings{TrustDomain: domain, Requests: true}
}()

func (s shape) policies(t testing.TB, rules int) []policy.AuthorizationPolicy {
	t.Helper()
	var out []policy.AuthorizationPolicy
	for first := 0; first < rules; first += rulesPerPolicy {
		var all []object
		for i := first; i < min(rules, first+rulesPerPolicy); i++ {
			r := s.rule(i)
			one := object{"from": []object{{"source": object{"principals": r.Principals}}}}
			if r.Paths != nil {
				operation := object{"paths": r.Paths}
				if r.Methods != nil {
					operation["methods"] = r.Methods
				}
				one["to"] = []object{{"operation": operation}}
			}
			all = append(all, one)
		}
		j, err := json.Marshal(object{"apiVersion": document.APIVersion, "kind": document.AuthorizationPolicy,
			"metadata": object{"name": fmt.Sprintf("p%06d", first), "namespace": "shop"}, "spec": object{"rules": all}})
		if err != nil {
			t.Fatal(err)
		}
		d, err := document.FromJSON(j)
		if err != nil {
			t.Fatal(err)
		}
		p, _, err := policy.ParseAuthorizationPolicy(d, settings)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

func (s shape) set(t testing.TB, rules int) *policy.Set {
	return policy.Compile(settings, policy.Workload{Namespace: "shop"}, nil, s.policies(t, rules), 1)
}

// naive asks one rule after the other, and each value of each of its lists.
type naive []rule

func (n naive) decide(r *policy.Request) int {
	id := strings.TrimPrefix(r.Peer.String(), "spiffe://")
	return slices.IndexFunc(n, func(one rule) bool {
		return takes(one.Principals, id) && takes(one.Methods, r.HTTP.Method) && takes(one.Paths, r.HTTP.Path)
	})
}

func takes(patterns []string, s string) bool {
	return patterns == nil || slices.ContainsFunc(patterns, func(p string) bool {
		switch {
		case strings.Contains(p, "{"):
			return takesSegments(strings.Split(p, "/"), strings.Split(s, "/"))
		case strings.HasSuffix(p, "*"):
			return strings.HasPrefix(s, p[:len(p)-1])
		case strings.HasPrefix(p, "*"):
			return strings.HasSuffix(s, p[1:])
		}
		return p == s
	})
}

func takesSegments(template, segments []string) bool {
	for i, t := range template {
		switch {
		case t == "{**}":
			return true
		case i >= len(segments), t != "{*}" && t != segments[i]:
			return false
		}
	}
	return len(template) == len(segments)
}

func (s shape) naive(rules int) naive {
	var n naive
	for i := range rules {
		n = append(n, s.rule(i))
	}
	return n
}

// BenchmarkDecide is one decision by the last of many rules, beside the
// literal evaluator on as many.
func BenchmarkDecide(b *testing.B) {
	for _, s := range shapes {
		for _, rules := range []int{1, 100, 1000, 10000} {
			b.Run(fmt.Sprintf("%s/%d", strings.ReplaceAll(s.name, " ", "-"), rules), func(b *testing.B) {
				set, n, r := s.set(b, rules), s.naive(rules), s.request(rules)
				if d := set.DecideRequest(&r); !d.Allowed || d.Rule != (rules-1)%rulesPerPolicy || n.decide(&r) != rules-1 {
					b.Fatalf("%+v", d)
				}
				for b.Loop() {
					most := 0.0
					if rules == 1000 {
						most = 1000
					}
					index, literal := both(func() { set.DecideRequest(&r) }, func() { n.decide(&r) })
					what := fmt.Sprintf("decision, %d rules of %s", rules, s.name)
					measure.Figure{What: what, Unit: "ns", Ours: index, Beside: "literal", Baseline: literal}.Tell(b)
					if most > 0 {
						measure.Figure{What: what, Unit: "ns", Ours: index, Most: most}.Tell(b)
					}
				}
			})
		}
	}
}

// BenchmarkPolicies is the cost of a workload's policies, one rule each: of a
// connection's decision by the last of them, and of compiling all. The
// baseline is one policy.
func BenchmarkPolicies(b *testing.B) {
	counts := []int{1, 100, 10_000}
	for b.Loop() {
		var decisions, compilations []func() float64
		for _, n := range counts {
			parsed := connectionPolicies(b, n)
			compile := func() *policy.Set {
				return policy.Compile(settings, policy.Workload{Namespace: "shop"}, nil, parsed, 1)
			}
			set, conn := compile(), shapes[0].request(n).Connection
			if d := set.Decide(conn); !d.Allowed {
				b.Fatalf("%d policies: %+v", n, d)
			}
			decisions = append(decisions, func() float64 { return nanoseconds(calls, func() { set.Decide(conn) }) })
			compilations = append(compilations, func() float64 { return nanoseconds(1, func() { compile() }) / 1e3 })
		}
		for _, f := range []struct {
			what, unit string
			turns      []func() float64
		}{{"decision", "ns", decisions}, {"compilation", "µs", compilations}} {
			medians := measure.Interleave(rounds, f.turns...)
			for i := 1; i < len(counts); i++ {
				measure.Figure{What: fmt.Sprintf("%s, %d policies", f.what, counts[i]), Unit: f.unit, Ours: medians[i], Beside: "1 policy:", Baseline: medians[0]}.Tell(b)
			}
		}
	}
}

// connectionPolicies are n policies of one rule, each for another principal.
func connectionPolicies(t testing.TB, n int) []policy.AuthorizationPolicy {
	t.Helper()
	var all []policy.AuthorizationPolicy
	for i := range n {
		d, err := document.FromJSON(fmt.Appendf(nil, `{"apiVersion":%q,"kind":%q,"metadata":{"name":"p%05d","namespace":"shop"},`+
			`"spec":{"rules":[{"from":[{"source":{"principals":["example.org/ns/shop/sa/w%d"]}}]}]}}`, document.APIVersion, document.AuthorizationPolicy, i, i))
		if err != nil {
			t.Fatal(err)
		}
		p, _, err := policy.ParseAuthorizationPolicy(d, settings)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

const rounds, calls = 9, 200

// nanoseconds returns the time of one of n calls.
func nanoseconds(n int, f func()) float64 {
	start := time.Now()
	for range n {
		f()
	}
	return float64(time.Since(start).Nanoseconds()) / float64(n)
}

// both returns the median times of one call of either.
func both(index, literal func()) (i, l float64) {
	medians := measure.Interleave(rounds, func() float64 { return nanoseconds(calls, index) }, func() float64 { return nanoseconds(calls, literal) })
	return medians[0], medians[1]
}

// The index decides by the last of 1,000 rules as by the first: without
// allocating, and far ahead of the literal evaluator on the same machine at
// the same moment.
func TestTheLastOfThousandRulesCostsLittle(t *testing.T) {
	if testing.Short() {
		t.Skip("measures time; -short leaves it out")
	}
	for _, s := range shapes {
		set, n, r := s.set(t, 1000), s.naive(1000), s.request(1000)
		if d := set.DecideRequest(&r); !d.Allowed || d.Rule != 999 || n.decide(&r) != 999 {
			t.Fatalf("%s: %+v", s.name, d)
		}
		if allocs := testing.AllocsPerRun(100, func() { set.DecideRequest(&r) }); allocs != 0 {
			t.Errorf("%s: %v allocations", s.name, allocs)
		}
		index, literal := both(func() { set.DecideRequest(&r) }, func() { n.decide(&r) })
		t.Logf("%-15s index %.0f ns, literal %.0f ns", s.name, index, literal)
		if index*2 > literal {
			t.Errorf("%s: the index takes %.0f ns, the literal evaluator %.0f ns", s.name, index, literal)
		}
	}
}
