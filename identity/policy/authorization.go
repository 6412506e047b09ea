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
	dryRun   bool
	needs    int // version of the evaluator
}

// Key returns which document this is.
func (p AuthorizationPolicy) Key() document.Key { return p.key }

// Action returns what the policy does.
func (p AuthorizationPolicy) Action() Action { return p.action }

// DryRun reports whether the policy is only tried.
func (p AuthorizationPolicy) DryRun() bool { return p.dryRun }

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
			if p, _, err = parseAuthorization(d, s); err == nil {
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

// rule is from AND to AND when. A rule without from takes every source, one
// without to every operation.
type rule struct {
	from []clause // ORed
	to   []clause // ORed
	when clause
	// requestFields are the paths of the fields that only HTTP has, as the
	// document writes them.
	requestFields []string
}
