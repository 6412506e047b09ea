// This file parses the spec of an AuthorizationPolicy: its envelope, action
// and rules.

package policy

import (
	"fmt"
	"strings"

	"github.com/aval-id/aval/identity/document"
)

type rawAuthorizationPolicy struct {
	Selector   *rawSelector         `json:"selector"`
	Action     string               `json:"action"`
	Rules      []rawRule            `json:"rules"`
	TargetRef  document.Unsupported `json:"targetRef"`
	TargetRefs document.Unsupported `json:"targetRefs"`
	Provider   any                  `json:"provider"`
}

type rawRule struct {
	From []rawFrom      `json:"from"`
	To   []rawTo        `json:"to"`
	When []rawCondition `json:"when"`
}

type rawFrom struct {
	Source *rawSource `json:"source"`
}

type rawTo struct {
	Operation *rawOperation `json:"operation"`
}

// istioDryRun is an annotation that authors may expect to be read.
const istioDryRun = "istio.io/dry-run"

// maxClauses bounds the sources and the operations of one rule.
const maxClauses = 1024

// unsupported is what is said of the parts of the language that this version
// or these Settings do not cover.
const unsupported = "is not supported by this version"

// ParseAuthorizationPolicy parses a document of that kind. What the language
// has and is not covered, such as CUSTOM and, without Settings.Requests, what
// is decided by request, is refused by name, and so are lists without values:
// a policy is never half applied. Refused too are parts that contradict
// themselves, which Load lets stand: they match nothing. The error is a
// document.Errors with every fault.
func ParseAuthorizationPolicy(d document.Document, s Settings) (AuthorizationPolicy, []Warning, error) {
	ap, p, err := parseAuthorization(d, s)
	if err == nil {
		err = document.Collect(p.contradictory)
	}
	if err != nil {
		return AuthorizationPolicy{}, nil, err
	}
	return ap, p.warnings, nil
}

func parseAuthorization(d document.Document, s Settings) (AuthorizationPolicy, *parser, error) {
	dryRun, errs := checkEnvelope(d, document.AuthorizationPolicy, s)
	if len(errs) > 0 {
		return AuthorizationPolicy{}, nil, errs
	}
	var raw rawAuthorizationPolicy
	if err := d.DecodeSpec(&raw); err != nil {
		return AuthorizationPolicy{}, nil, err
	}
	sel, errs := raw.Selector.parse(d)
	p := &parser{doc: d, settings: s, errs: errs, needs: 1}
	ap := AuthorizationPolicy{
		key:      d.Key(),
		path:     d.Key().Path(),
		action:   p.action(raw.Action),
		selector: sel,
		dryRun:   dryRun,
	}
	if dryRun {
		p.needs = requestsVersion
	}
	p.allow = ap.action == Allow
	if raw.Provider != nil {
		p.fault("spec.provider", "", "", unsupported)
	}
	if _, ok := d.Metadata().Annotations[istioDryRun]; ok {
		p.warn("metadata.annotations."+istioDryRun, "is not read, so the policy is enforced; the name here is %s", DryRunAnnotation)
	}
	if len(raw.Rules) == 0 && ap.action != Allow && ap.action != 0 {
		p.warn("spec.rules", "there are no rules, so the policy never matches; rules: [{}] matches everything")
	}
	for i, r := range raw.Rules {
		ap.rules = append(ap.rules, p.rule(r, fmt.Sprintf("spec.rules[%d]", i)))
	}
	if err := document.Collect(p.errs); err != nil {
		return AuthorizationPolicy{}, nil, err
	}
	ap.needs = p.needs
	return ap, p, nil
}

// parser turns what is written into rules and keeps the faults.
type parser struct {
	doc      document.Document
	settings Settings
	allow    bool
	needs    int
	fields   []string // of the rule at hand, those that only HTTP has
	errs     document.Errors
	warnings []Warning
	// contradictory are faults that leave the meaning clear.
	contradictory document.Errors
}

func (p *parser) fault(field, found, allowed, format string, args ...any) {
	p.errs = append(p.errs, p.doc.Errorf(field, found, allowed, format, args...))
}

func (p *parser) warn(field, format string, args ...any) {
	p.warnings = append(p.warnings, warning(p.doc, field, format, args...))
}

func (p *parser) action(s string) Action {
	switch s {
	case "", "ALLOW":
		return Allow
	case "DENY":
		return Deny
	case "AUDIT":
		return Audit
	case "CUSTOM":
		p.fault("spec.action", s, "ALLOW, DENY, AUDIT", "%s, which asks no external authorizer", unsupported)
	default:
		e := p.doc.Errorf("spec.action", s, "ALLOW, DENY, AUDIT", "is not an action")
		if near := document.Nearest(strings.ToUpper(s), []string{"ALLOW", "DENY", "AUDIT"}); near != "" {
			e.Hint = "did you mean " + near + "?"
		}
		p.errs = append(p.errs, e)
	}
	return 0
}

func (p *parser) rule(raw rawRule, path string) rule {
	var r rule
	p.fields = nil
	p.present(raw.From != nil, len(raw.From), path+".from", "source")
	p.present(raw.To != nil, len(raw.To), path+".to", "operation")
	p.present(raw.When != nil, len(raw.When), path+".when", "condition")
	for i, w := range raw.When {
		r.when = append(r.when, p.condition(w, fmt.Sprintf("%s.when[%d]", path, i))...)
	}
	for i, f := range raw.From {
		at := fmt.Sprintf("%s.from[%d]", path, i)
		if f.Source == nil {
			p.fault(at, "", "source", "has no source")
			continue
		}
		r.from = append(r.from, p.source(*f.Source, at+".source"))
	}
	for i, t := range raw.To {
		at := fmt.Sprintf("%s.to[%d]", path, i)
		if t.Operation == nil {
			p.fault(at, "", "operation", "has no operation")
			continue
		}
		r.to = append(r.to, p.operation(*t.Operation, at+".operation"))
	}
	r.requestFields = p.fields
	if p.allow {
		p.warnPlaintext(&r, path)
	}
	return r
}

// present checks that a list that is written has entries, and not too many.
func (p *parser) present(written bool, n int, path, what string) {
	if written && n == 0 {
		p.fault(path, "", "at least one "+what, "is empty; leave it out to mean every %s", what)
	}
	if n > maxClauses {
		p.fault(path, "", fmt.Sprintf("at most %d", maxClauses), "has %d entries; write several values into one %s, or several rules", n, what)
	}
}

// warnPlaintext warns of an ALLOW rule that says only who the peer is not: a
// plaintext peer has no identity, so it matches.
func (p *parser) warnPlaintext(r *rule, path string) {
	positive := func(c clause) (yes, not bool) {
		for _, t := range c {
			if t.attribute.identifies() {
				yes = yes || !t.not
				not = not || t.not
			}
		}
		return yes, not
	}
	whenPositive, whenNot := positive(r.when)
	if whenPositive {
		return
	}
	const message = "says only who the peer is not, which is true of plaintext peers too: where the mode lets plaintext in, this rule allows it; add principals: [\"*\"] to demand an identity"
	if len(r.from) == 0 && whenNot {
		p.warn(path+".when", message)
	}
	for i, c := range r.from {
		if yes, not := positive(c); !yes && (not || whenNot) {
			p.warn(fmt.Sprintf("%s.from[%d].source", path, i), message)
		}
	}
}
