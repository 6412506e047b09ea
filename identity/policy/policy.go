// This file holds what both kinds of policy share: Settings, Workload,
// Warning and the selector.

package policy

import (
	"fmt"
	"maps"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
)

// EvaluatorVersion is the meaning of policies that this package knows. It
// grows when an old evaluator would misread a policy that it can parse.
const EvaluatorVersion = 3

// requestsVersion is the EvaluatorVersion that knows what Settings.Requests
// admits. Version 1 knows all the rest.
const requestsVersion = 2

// DefaultRootNamespace is the namespace whose policies cover the whole trust
// domain, unless Settings says otherwise.
const DefaultRootNamespace = "aval-system"

// DryRunAnnotation marks a policy that is to be evaluated and not enforced.
// It is "true" or "false".
const DryRunAnnotation = "aval.dev/dry-run"

// Settings is what a trust domain sets for all of its policies.
type Settings struct {
	// TrustDomain is the own one; peers of any other are foreign. Where it is
	// zero every peer is foreign.
	TrustDomain identity.TrustDomain
	// RootNamespace is the namespace whose policies cover the whole trust
	// domain; "" means DefaultRootNamespace.
	RootNamespace string
	// DefaultDeny makes a workload without any ALLOW policy refuse
	// everything. Otherwise it accepts what no DENY policy refuses.
	DefaultDeny bool
	// Requests admits what is decided by request and on dry run. It is for
	// those that enforce both; elsewhere such policies are refused.
	Requests bool
}

func (s Settings) root() string {
	if s.RootNamespace == "" {
		return DefaultRootNamespace
	}
	return s.RootNamespace
}

// Workload is what selectors look at. On a plain host both come from its
// registration.
type Workload struct {
	Namespace string
	Labels    map[string]string // may be nil
}

// Warning is what a policy means that its author may not expect. The policy
// is valid and works as written.
type Warning struct {
	File    string // as given to document.Parse, or ""
	Line    int    // counted from 1; 0 where unknown
	Field   string // path such as spec.rules[0].from[0].source.notPrincipals
	Message string
}

// String prints the warning like an error of the same place.
func (w Warning) String() string {
	e := document.Error{File: w.File, Line: w.Line, Field: w.Field, Reason: "warning: " + w.Message}
	return e.Error()
}

func warning(d document.Document, field, format string, args ...any) Warning {
	return Warning{File: d.File(), Line: d.Line(field), Field: field, Message: fmt.Sprintf(format, args...)}
}

// rawSelector is a selector as written.
type rawSelector struct {
	MatchLabels map[string]string `json:"matchLabels"`
}

// selector chooses workloads by their labels; an empty one chooses all.
type selector map[string]string

func (r *rawSelector) parse(d document.Document) (selector, document.Errors) {
	if r == nil || len(r.MatchLabels) == 0 {
		return nil, nil
	}
	var errs document.Errors
	for _, key := range sortedKeys(r.MatchLabels) {
		value := r.MatchLabels[key]
		field := "spec.selector.matchLabels." + key
		if reason := document.CheckLabelKey(key); reason != "" {
			errs = append(errs, d.Errorf(field, key, "", "label key %s", reason))
		} else if reason := document.CheckLabelValue(value); reason != "" {
			errs = append(errs, d.Errorf(field, value, "", "label value %s", reason))
		}
	}
	return maps.Clone(r.MatchLabels), errs
}

func (s selector) matches(labels map[string]string) bool {
	for key, value := range s {
		if got, ok := labels[key]; !ok || got != value {
			return false
		}
	}
	return true
}

// checkEnvelope checks what both kinds demand of a document, and reports
// whether it is on dry run.
func checkEnvelope(d document.Document, kind document.Kind, s Settings) (dryRun bool, errs document.Errors) {
	if d.Kind() != kind {
		errs = append(errs, d.Errorf("kind", d.Kind(), kind, "is another kind"))
	}
	m := d.Metadata()
	if m.Namespace == "" {
		errs = append(errs, d.Errorf("metadata.namespace", "", "a DNS label", "is missing"))
	}
	const field = "metadata.annotations." + DryRunAnnotation
	switch value, ok := m.Annotations[DryRunAnnotation]; {
	case !ok || value == "false":
	case !s.Requests:
		errs = append(errs, d.Errorf(field, value, "false", "dry-run %s", unsupported))
	case value != "true":
		errs = append(errs, d.Errorf(field, value, "true, false", "says neither whether the policy is enforced nor that it is not"))
	default:
		dryRun = true
	}
	return dryRun, errs
}
