// This file holds Review: what a set of policies says that its authors
// probably did not mean.

package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
)

// The kinds of a Finding.
const (
	FindingShadowed  = "shadowed"  // a rule that another one makes needless or void
	FindingUnmatched = "unmatched" // a rule or a principal that no registered identity matches
	FindingEmpty     = "empty"     // a policy that never matches
)

// Finding is what is probably not meant.
type Finding struct {
	Kind    string       // one of the Finding constants
	Policy  document.Key // whose
	Field   string       // path such as spec.rules[0]
	Message string
}

// placed is a rule and where it stands.
type placed struct {
	policy *AuthorizationPolicy
	index  int
}

func (p placed) rule() *rule   { return &p.policy.rules[p.index] }
func (p placed) field() string { return fmt.Sprintf("spec.rules[%d]", p.index) }

// Review looks at policies beside each other and beside the registered
// identities. What it says is certain to be so, whatever requests come; it
// does not find everything.
func Review(s Settings, aps []AuthorizationPolicy, registered []identity.ID) []Finding {
	var out []Finding
	var rules []placed
	sorted := slices.SortedFunc(slices.Values(aps), func(a, b AuthorizationPolicy) int { return a.key.Compare(b.key) })
	for i := range sorted {
		p := &sorted[i]
		if !p.readable() {
			continue
		}
		if len(p.rules) == 0 && p.action != Allow {
			out = append(out, Finding{FindingEmpty, p.key, "spec.rules", "a " + p.action.String() + " policy without rules never matches"})
		}
		for n := range p.rules {
			rules = append(rules, placed{p, n})
		}
	}
	for i, r := range rules {
		out = append(out, shadowed(s, rules, i)...)
		out = append(out, r.unmatched(s, registered)...)
	}
	slices.SortStableFunc(out, func(a, b Finding) int {
		return cmp.Or(a.Policy.Compare(b.Policy), cmp.Compare(a.Field, b.Field))
	})
	return out
}

// shadowed says which rule makes rule i void, or else needless.
func shadowed(s Settings, rules []placed, i int) []Finding {
	r := rules[i]
	if r.policy.dryRun {
		return nil
	}
	finding := func(format string, q placed) []Finding {
		return []Finding{{FindingShadowed, r.policy.key, r.field(), fmt.Sprintf(format, q.policy.path, q.field())}}
	}
	allow := r.policy.action == Allow
	for _, q := range rules {
		if allow && q.policy.action == Deny && q.covers(s, r, false) {
			return finding("never allows: %s %s denies all that it matches", q)
		}
	}
	for j, q := range rules {
		// Of two rules that say the same, the later one is needless.
		if i != j && q.policy.action == r.policy.action && q.covers(s, r, allow) && (j < i || !r.covers(s, q, allow)) {
			return finding("is needless: %s %s matches all that it matches", q)
		}
	}
	return nil
}

// covers reports whether q is enforced, applies wherever r does, and matches
// whatever r matches.
func (q placed) covers(s Settings, r placed, allow bool) bool {
	return !q.policy.dryRun && q.policy.reaches(s, r.policy) && q.rule().takes(r.rule(), allow)
}

// reaches reports whether p applies wherever q does.
func (p *AuthorizationPolicy) reaches(s Settings, q *AuthorizationPolicy) bool {
	if p.key.Namespace != q.key.Namespace && p.key.Namespace != s.root() {
		return false
	}
	for key, value := range p.selector {
		if got, ok := q.selector[key]; !ok || got != value {
			return false
		}
	}
	return true
}

// unmatched says that no registered identity satisfies the rule, or else
// which of its principals is none.
func (p placed) unmatched(s Settings, registered []identity.ID) []Finding {
	only := p.rule().identities()
	if len(registered) == 0 || len(only.from) == 0 && len(only.when) == 0 {
		return nil
	}
	var x index
	x.add(place{}, only)
	set := Set{domain: s.TrustDomain}
	matches := func(id identity.ID) bool {
		f := set.facts(&Request{Connection: Connection{Peer: id}}, true)
		_, ok := x.first(&f)
		return ok
	}
	if matches(identity.ID{}) {
		return nil // it is about plaintext
	}
	if !slices.ContainsFunc(registered, matches) {
		for _, c := range only.from {
			if slices.ContainsFunc(c.domains(), func(d string) bool { return d != s.TrustDomain.String() }) {
				return nil // it is about foreign peers, whom nobody registers here
			}
		}
		return []Finding{{FindingUnmatched, p.policy.key, p.field(), "no registered identity matches"}}
	}
	var out []Finding
	for i, c := range p.rule().from {
		for j := range c {
			t := &c[j]
			if t.attribute != attrPrincipal || t.not {
				continue
			}
			for _, text := range t.text.exact {
				id, err := identity.ParseID(spiffeScheme + text)
				if err == nil && id.TrustDomain() == s.TrustDomain && !slices.Contains(registered, id) {
					out = append(out, Finding{FindingUnmatched, p.policy.key, fmt.Sprintf("%s.from[%d].source.principals", p.field(), i),
						fmt.Sprintf("no registration gives %s%s", text, nearestID(text, registered))})
				}
			}
		}
	}
	return out
}

func nearestID(text string, registered []identity.ID) string {
	var all []string
	for _, id := range registered {
		all = append(all, strings.TrimPrefix(id.String(), spiffeScheme))
	}
	if near := document.Nearest(text, all); near != "" {
		return "; did you mean " + near + "?"
	}
	return ""
}

// identities is what the rule says of the peer's identity alone.
func (r *rule) identities() *rule {
	out := &rule{when: r.when.about(attribute.identifies)}
	for _, c := range r.from {
		out.from = append(out.from, c.about(attribute.identifies))
	}
	return out
}

// about returns the terms about some attributes.
func (c clause) about(which func(attribute) bool) clause {
	return slices.DeleteFunc(slices.Clone(c), func(t term) bool { return !which(t.attribute) })
}

// Relaxed returns policies that say who may do anything at all: of ALLOW
// rules only what they say of identities and ports is kept, and of DENY rules
// only those that say nothing else. What they deny is denied for every
// request; what they allow may be allowed for some only.
func Relaxed(aps []AuthorizationPolicy) []AuthorizationPolicy {
	kept := func(a attribute) bool { return a.identifies() || a == attrDestinationPort }
	relax := func(r rule) rule {
		out := rule{when: r.when.about(kept)}
		for _, c := range r.from {
			out.from = append(out.from, c.about(kept))
		}
		for _, c := range r.to {
			out.to = append(out.to, c.about(kept))
		}
		return out
	}
	out := slices.Clone(aps)
	for i := range out {
		p := &out[i]
		var rules []rule
		for _, r := range p.rules {
			relaxed := relax(r)
			if p.action != Allow && relaxed.terms() != r.terms() {
				// Left out as a rule that never matches, so that the others keep
				// their numbers.
				relaxed = rule{when: clause{{attribute: attrDestinationPort}}}
			}
			rules = append(rules, relaxed)
		}
		p.rules = rules
	}
	return out
}

func (r *rule) terms() int {
	n := len(r.when)
	for _, c := range slices.Concat(r.from, r.to) {
		n += len(c)
	}
	return n
}

// Ports returns the ports that the policies of the Set name, in order.
func (s *Set) Ports() []uint16 {
	if s == nil {
		return nil
	}
	seen := map[uint16]bool{}
	for port := range s.enforced.ports {
		seen[port] = true
	}
	for _, x := range []*index{&s.enforced.deny, &s.enforced.allow, &s.enforced.audit} {
		for _, b := range x.blocks {
			for _, c := range slices.Concat(b.operations.columns, b.conditions.columns) {
				for port := range c.ports {
					seen[port] = true
				}
			}
		}
	}
	return sortedKeys(seen)
}
