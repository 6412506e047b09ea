// This file parses the spec of an AuthorizationPolicy into rules.

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
	Provider   document.Unsupported `json:"provider"`
}

type rawRule struct {
	From []rawFrom      `json:"from"`
	To   []rawTo        `json:"to"`
	When []rawCondition `json:"when"`
}

type rawFrom struct {
	Source *rawSource `json:"source"`
}

type rawSource struct {
	Principals           []string             `json:"principals"`
	NotPrincipals        []string             `json:"notPrincipals"`
	Namespaces           []string             `json:"namespaces"`
	NotNamespaces        []string             `json:"notNamespaces"`
	ServiceAccounts      []string             `json:"serviceAccounts"`
	NotServiceAccounts   []string             `json:"notServiceAccounts"`
	TrustDomains         []string             `json:"trustDomains"`
	NotTrustDomains      []string             `json:"notTrustDomains"`
	IPBlocks             []string             `json:"ipBlocks"`
	NotIPBlocks          []string             `json:"notIpBlocks"`
	RemoteIPBlocks       document.Unsupported `json:"remoteIpBlocks"`
	NotRemoteIPBlocks    document.Unsupported `json:"notRemoteIpBlocks"`
	RequestPrincipals    document.Unsupported `json:"requestPrincipals"`
	NotRequestPrincipals document.Unsupported `json:"notRequestPrincipals"`
}

type rawTo struct {
	Operation *rawOperation `json:"operation"`
}

type rawOperation struct {
	Ports      []document.Scalar    `json:"ports"`
	NotPorts   []document.Scalar    `json:"notPorts"`
	Hosts      document.Unsupported `json:"hosts"`
	NotHosts   document.Unsupported `json:"notHosts"`
	Methods    document.Unsupported `json:"methods"`
	NotMethods document.Unsupported `json:"notMethods"`
	Paths      document.Unsupported `json:"paths"`
	NotPaths   document.Unsupported `json:"notPaths"`
}

type rawCondition struct {
	Key       string            `json:"key"`
	Values    []document.Scalar `json:"values"`
	NotValues []document.Scalar `json:"notValues"`
}

// istioDryRun is an annotation that authors may expect to be read.
const istioDryRun = "istio.io/dry-run"

// ParseAuthorizationPolicy parses a document of that kind. What the language
// has and this version does not cover, such as hosts, methods, paths and
// request.* conditions, is refused by name, and so are lists without values:
// a policy is never half applied. The error is a document.Errors with every
// fault.
func ParseAuthorizationPolicy(d document.Document, s Settings) (AuthorizationPolicy, []Warning, error) {
	if errs := checkEnvelope(d, document.AuthorizationPolicy); len(errs) > 0 {
		return AuthorizationPolicy{}, nil, errs
	}
	var raw rawAuthorizationPolicy
	if err := d.DecodeSpec(&raw); err != nil {
		return AuthorizationPolicy{}, nil, err
	}
	sel, errs := raw.Selector.parse(d)
	p := parser{doc: d, errs: errs}
	ap := AuthorizationPolicy{
		key:      d.Key(),
		path:     d.Key().Path(),
		action:   p.action(raw.Action),
		selector: sel,
		needs:    EvaluatorVersion,
	}
	p.allow = ap.action == Allow
	if _, ok := d.Metadata().Annotations[istioDryRun]; ok {
		p.warn("metadata.annotations."+istioDryRun, "is not read: the policy is enforced")
	}
	for i, r := range raw.Rules {
		ap.rules = append(ap.rules, p.rule(r, fmt.Sprintf("spec.rules[%d]", i)))
	}
	if err := document.Collect(p.errs); err != nil {
		return AuthorizationPolicy{}, nil, err
	}
	return ap, p.warnings, nil
}

// parser turns what is written into rules and keeps the faults.
type parser struct {
	doc      document.Document
	allow    bool
	errs     document.Errors
	warnings []Warning
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
		p.fault("spec.action", s, "ALLOW, DENY, AUDIT", "is not supported by this version")
	default:
		p.fault("spec.action", s, "ALLOW, DENY, AUDIT", "is not an action")
	}
	return 0
}

func (p *parser) rule(raw rawRule, path string) rule {
	var r rule
	if raw.From != nil && len(raw.From) == 0 {
		p.fault(path+".from", "", "at least one source", "is empty; leave it out to mean every source")
	}
	if raw.To != nil && len(raw.To) == 0 {
		p.fault(path+".to", "", "at least one operation", "is empty; leave it out to mean every operation")
	}
	if raw.When != nil && len(raw.When) == 0 {
		p.fault(path+".when", "", "at least one condition", "is empty; leave it out to mean no condition")
	}
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
	if p.allow {
		p.warnPlaintext(&r, path)
	}
	return r
}

func (p *parser) source(raw rawSource, path string) clause {
	var c clause
	fields := []struct {
		name      string
		attribute attribute
		not       bool
		values    []string
	}{
		{"principals", attrPrincipal, false, raw.Principals},
		{"notPrincipals", attrPrincipal, true, raw.NotPrincipals},
		{"namespaces", attrNamespace, false, raw.Namespaces},
		{"notNamespaces", attrNamespace, true, raw.NotNamespaces},
		{"serviceAccounts", attrServiceAccount, false, raw.ServiceAccounts},
		{"notServiceAccounts", attrServiceAccount, true, raw.NotServiceAccounts},
		{"trustDomains", attrTrustDomain, false, raw.TrustDomains},
		{"notTrustDomains", attrTrustDomain, true, raw.NotTrustDomains},
		{"ipBlocks", attrSourceIP, false, raw.IPBlocks},
		{"notIpBlocks", attrSourceIP, true, raw.NotIPBlocks},
	}
	accounts, others := "", ""
	for _, f := range fields {
		if f.values == nil {
			continue
		}
		c = append(c, p.term(f.attribute, f.not, f.values, path+"."+f.name))
		switch f.attribute {
		case attrServiceAccount:
			accounts = f.name
		case attrPrincipal, attrNamespace:
			others = f.name
		}
	}
	if accounts != "" && others != "" {
		p.fault(path+"."+accounts, "", "", "is not allowed together with %s", others)
	}
	if len(c) == 0 {
		p.fault(path, "", "at least one field", "is empty; leave from out to mean every source")
	}
	return c
}

func (p *parser) operation(raw rawOperation, path string) clause {
	var c clause
	if raw.Ports != nil {
		c = append(c, p.term(attrDestinationPort, false, texts(raw.Ports), path+".ports"))
	}
	if raw.NotPorts != nil {
		c = append(c, p.term(attrDestinationPort, true, texts(raw.NotPorts), path+".notPorts"))
	}
	if len(c) == 0 {
		p.fault(path, "", "at least one field", "is empty; leave to out to mean every operation")
	}
	return c
}

// conditionKeys are the keys of when that this version covers.
var conditionKeys = []struct {
	name      string
	attribute attribute
}{
	{"source.ip", attrSourceIP},
	{"source.namespace", attrNamespace},
	{"source.serviceAccount", attrServiceAccount},
	{"source.trustDomain", attrTrustDomain},
	{"source.principal", attrPrincipal},
	{"destination.ip", attrDestinationIP},
	{"destination.port", attrDestinationPort},
	{"connection.sni", attrSNI},
}

// uncoveredKey reports whether the language has this key of when, and this
// version does not cover it.
func uncoveredKey(key string) bool {
	switch key {
	case "remote.ip", "request.auth.principal", "request.auth.audiences", "request.auth.presenter":
		return true
	}
	return (strings.HasPrefix(key, "request.headers[") || strings.HasPrefix(key, "request.auth.claims[")) && strings.HasSuffix(key, "]")
}

func (p *parser) condition(raw rawCondition, path string) clause {
	var names []string
	for _, k := range conditionKeys {
		if k.name != raw.Key {
			names = append(names, k.name)
			continue
		}
		var c clause
		if raw.Values != nil {
			c = append(c, p.term(k.attribute, false, texts(raw.Values), path+".values"))
		}
		if raw.NotValues != nil {
			c = append(c, p.term(k.attribute, true, texts(raw.NotValues), path+".notValues"))
		}
		if len(c) == 0 {
			p.fault(path, "", "values, notValues", "has no values")
		}
		return c
	}
	allowed := strings.Join(names, ", ")
	switch {
	case raw.Key == "":
		p.fault(path+".key", "", allowed, "is missing")
	case uncoveredKey(raw.Key):
		p.fault(path+".key", raw.Key, allowed, "is not supported by this version")
	default:
		e := p.doc.Errorf(path+".key", raw.Key, allowed, "unknown key")
		if near := document.Nearest(raw.Key, names); near != "" {
			e.Hint = "did you mean " + near + "?"
		}
		p.errs = append(p.errs, e)
	}
	return nil
}

func texts(scalars []document.Scalar) []string {
	list := make([]string, 0, len(scalars))
	for _, s := range scalars {
		list = append(list, string(s))
	}
	return list
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
	const message = "says only who the peer is not, which is true of plaintext peers too: where the mode lets plaintext in, this rule allows it"
	if len(r.from) == 0 && whenNot {
		p.warn(path+".when", message)
	}
	for i, c := range r.from {
		if yes, not := positive(c); !yes && (not || whenNot) {
			p.warn(fmt.Sprintf("%s.from[%d].source", path, i), message)
		}
	}
}
