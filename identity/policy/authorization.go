// This file holds AuthorizationPolicy: its rules, and how a rule matches.

package policy

import (
	"errors"
	"fmt"

	"github.com/aval-id/aval/identity/document"
)

// Action is what an AuthorizationPolicy does with what its rules match. The
// zero value is invalid.
type Action uint8

// The actions that this version covers.
const (
	Allow Action = iota + 1 // let it through, unless a DENY matches
	Deny                    // refuse it
	Audit                   // mark the record, decide nothing
)

// String returns the name that documents use.
func (a Action) String() string {
	switch a {
	case Allow:
		return "ALLOW"
	case Deny:
		return "DENY"
	case Audit:
		return "AUDIT"
	}
	return fmt.Sprintf("Action(%d)", uint8(a))
}

// AuthorizationPolicy says who may connect to some workloads. It is
// immutable; the zero value is invalid and denies.
type AuthorizationPolicy struct {
	key      document.Key
	path     string // "ns/name"
	action   Action
	selector selector
	rules    []rule
	needs    int // version of the evaluator
}

// Key returns which document this is.
func (p AuthorizationPolicy) Key() document.Key { return p.key }

// Action returns what the policy does.
func (p AuthorizationPolicy) Action() Action { return p.action }

// Needs returns the EvaluatorVersion that understands the policy.
func (p AuthorizationPolicy) Needs() int { return p.needs }

// Unreadable stands for a policy of either kind that this evaluator cannot
// read, because its document has something unknown or because needs, the
// version its sender demands, is above EvaluatorVersion. Wherever it may
// apply, which is its whole namespace or, from the root namespace, every
// workload, everything is denied: half a policy is never applied.
func Unreadable(key document.Key, needs int) AuthorizationPolicy {
	return AuthorizationPolicy{key: key, path: key.Path(), needs: max(needs, EvaluatorVersion+1)}
}

// Load parses the policies among docs for a point of enforcement: what cannot
// be read becomes Unreadable, so that it denies, and its error is in the
// joined error for the log. Documents of other kinds are left out. The
// policies are usable with an error too.
func Load(docs []document.Document, s Settings) ([]PeerAuthentication, []AuthorizationPolicy, error) {
	var pas []PeerAuthentication
	var aps []AuthorizationPolicy
	var errs []error
	for _, d := range docs {
		var err error
		switch d.Kind() {
		case document.PeerAuthentication:
			var p PeerAuthentication
			if p, _, err = ParsePeerAuthentication(d, s); err == nil {
				pas = append(pas, p)
			}
		case document.AuthorizationPolicy:
			var p AuthorizationPolicy
			if p, _, err = ParseAuthorizationPolicy(d, s); err == nil {
				aps = append(aps, p)
			}
		}
		if err != nil {
			aps = append(aps, Unreadable(d.Key(), EvaluatorVersion+1))
			errs = append(errs, fmt.Errorf("%s: %w", d.Key(), err))
		}
	}
	return pas, aps, errors.Join(errs...)
}

// appliesTo reports whether the policy is attached to w.
// One without a namespace, which no parser makes, is attached to all.
func (p *AuthorizationPolicy) appliesTo(s Settings, w Workload) bool {
	if p.key.Namespace == "" {
		return true
	}
	if p.key.Namespace != w.Namespace && p.key.Namespace != s.root() {
		return false
	}
	return p.selector.matches(w.Labels)
}

// readable reports whether this evaluator knows all that p means.
func (p *AuthorizationPolicy) readable() bool {
	switch p.action {
	case Allow, Deny, Audit:
		return p.needs > 0 && p.needs <= EvaluatorVersion
	}
	return false
}

// match returns the first rule that matches f.
func (p *AuthorizationPolicy) match(f *facts) (index int, ok bool) {
	for i := range p.rules {
		if p.rules[i].matches(f, p.action == Allow) {
			return i, true
		}
	}
	return -1, false
}

// rule is from AND to AND when. A rule without from takes every source, one
// without to every operation.
type rule struct {
	from []clause // ORed
	to   []clause // ORed
	when clause
}

// clause is terms that must all hold.
type clause []term

// matches reports whether the rule takes f. With allow, what cannot be known
// does not match, and a foreign peer needs a source that writes its trust
// domain out; otherwise what cannot be known matches.
func (r *rule) matches(f *facts, allow bool) bool {
	written := allow && f.foreign
	if written && len(r.from) == 0 {
		return false
	}
	return r.when.holds(f, !allow) && anyHolds(r.to, f, !allow, false) && anyHolds(r.from, f, !allow, written)
}

// anyHolds reports whether one of the clauses holds, or there is none. With
// written, the clause must also write the peer's trust domain out.
func anyHolds(clauses []clause, f *facts, unknown, written bool) bool {
	for _, c := range clauses {
		if c.holds(f, unknown) && (!written || c.writesOut(f)) {
			return true
		}
	}
	return len(clauses) == 0
}

func (c clause) holds(f *facts, unknown bool) bool {
	for i := range c {
		if !c[i].holds(f, unknown) {
			return false
		}
	}
	return true
}

func (c clause) writesOut(f *facts) bool {
	for i := range c {
		if c[i].writesOut(f) {
			return true
		}
	}
	return false
}
