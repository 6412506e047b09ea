// This file parses sources, operations and conditions into terms.

package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/aval-id/aval/identity/document"
)

type rawSource struct {
	Principals           []string `json:"principals"`
	NotPrincipals        []string `json:"notPrincipals"`
	RequestPrincipals    []string `json:"requestPrincipals"`
	NotRequestPrincipals []string `json:"notRequestPrincipals"`
	Namespaces           []string `json:"namespaces"`
	NotNamespaces        []string `json:"notNamespaces"`
	ServiceAccounts      []string `json:"serviceAccounts"`
	NotServiceAccounts   []string `json:"notServiceAccounts"`
	TrustDomains         []string `json:"trustDomains"`
	NotTrustDomains      []string `json:"notTrustDomains"`
	IPBlocks             []string `json:"ipBlocks"`
	NotIPBlocks          []string `json:"notIpBlocks"`
	RemoteIPBlocks       []string `json:"remoteIpBlocks"`
	NotRemoteIPBlocks    []string `json:"notRemoteIpBlocks"`
}

type rawOperation struct {
	Hosts      []string          `json:"hosts"`
	NotHosts   []string          `json:"notHosts"`
	Ports      []document.Scalar `json:"ports"`
	NotPorts   []document.Scalar `json:"notPorts"`
	Methods    []string          `json:"methods"`
	NotMethods []string          `json:"notMethods"`
	Paths      []string          `json:"paths"`
	NotPaths   []string          `json:"notPaths"`
}

type rawCondition struct {
	Key       string            `json:"key"`
	Values    []document.Scalar `json:"values"`
	NotValues []document.Scalar `json:"notValues"`
}

// writtenField is a list of a source or an operation, nil where it is not
// written.
type writtenField struct {
	name      string
	attribute attribute
	not       bool
	values    []string
}

func (p *parser) source(raw rawSource, path string) clause {
	c := p.clause(path, []writtenField{
		{"principals", attrPrincipal, false, raw.Principals},
		{"notPrincipals", attrPrincipal, true, raw.NotPrincipals},
		{"requestPrincipals", attrRequestPrincipal, false, raw.RequestPrincipals},
		{"notRequestPrincipals", attrRequestPrincipal, true, raw.NotRequestPrincipals},
		{"namespaces", attrNamespace, false, raw.Namespaces},
		{"notNamespaces", attrNamespace, true, raw.NotNamespaces},
		{"serviceAccounts", attrServiceAccount, false, raw.ServiceAccounts},
		{"notServiceAccounts", attrServiceAccount, true, raw.NotServiceAccounts},
		{"trustDomains", attrTrustDomain, false, raw.TrustDomains},
		{"notTrustDomains", attrTrustDomain, true, raw.NotTrustDomains},
		{"ipBlocks", attrSourceIP, false, raw.IPBlocks},
		{"notIpBlocks", attrSourceIP, true, raw.NotIPBlocks},
		{"remoteIpBlocks", attrRemoteIP, false, raw.RemoteIPBlocks},
		{"notRemoteIpBlocks", attrRemoteIP, true, raw.NotRemoteIPBlocks},
	}, "leave from out to mean every source")
	named := func(positive, negative []string, name string) string {
		switch {
		case positive != nil:
			return name
		case negative != nil:
			return "not" + strings.ToUpper(name[:1]) + name[1:]
		}
		return ""
	}
	if accounts := named(raw.ServiceAccounts, raw.NotServiceAccounts, "serviceAccounts"); accounts != "" {
		for _, other := range []string{named(raw.Principals, raw.NotPrincipals, "principals"), named(raw.Namespaces, raw.NotNamespaces, "namespaces")} {
			if other != "" {
				p.fault(path+"."+accounts, "", "", "is not allowed together with %s; write two sources, or only one of the two", other)
			}
		}
	}
	p.contradictions(c, path)
	return c
}

func (p *parser) operation(raw rawOperation, path string) clause {
	c := p.clause(path, []writtenField{
		{"hosts", attrHost, false, raw.Hosts},
		{"notHosts", attrHost, true, raw.NotHosts},
		{"ports", attrDestinationPort, false, texts(raw.Ports)},
		{"notPorts", attrDestinationPort, true, texts(raw.NotPorts)},
		{"methods", attrMethod, false, raw.Methods},
		{"notMethods", attrMethod, true, raw.NotMethods},
		{"paths", attrPath, false, raw.Paths},
		{"notPaths", attrPath, true, raw.NotPaths},
	}, "leave to out to mean every operation")
	p.contradictions(c, path)
	return c
}

// clause parses the fields that are written.
func (p *parser) clause(path string, fields []writtenField, empty string) clause {
	var c clause
	for _, f := range fields {
		if f.values != nil {
			c = append(c, p.term(term{attribute: f.attribute, not: f.not}, f.values, path+"."+f.name))
		}
	}
	if len(c) == 0 {
		p.fault(path, "", "at least one field", "is empty; %s", empty)
	}
	return c
}

// conditionKeys are the keys of when that have no name in brackets.
var conditionKeys = []struct {
	name      string
	attribute attribute
}{
	{"source.ip", attrSourceIP},
	{"remote.ip", attrRemoteIP},
	{"source.namespace", attrNamespace},
	{"source.serviceAccount", attrServiceAccount},
	{"source.trustDomain", attrTrustDomain},
	{"source.principal", attrPrincipal},
	{"request.auth.principal", attrRequestPrincipal},
	{"request.auth.audiences", attrAudiences},
	{"request.auth.presenter", attrPresenter},
	{"destination.ip", attrDestinationIP},
	{"destination.port", attrDestinationPort},
	{"connection.sni", attrSNI},
}

const (
	headerKey = "request.headers"
	claimKey  = "request.auth.claims"
)

func (p *parser) condition(raw rawCondition, path string) clause {
	t, ok := p.conditionKey(raw.Key, path+".key")
	if !ok {
		return nil
	}
	if t.attribute.ofRequests() && !p.settings.Requests {
		p.fault(path+".key", raw.Key, "", unsupported)
		return nil
	}
	var c clause
	if raw.Values != nil {
		c = append(c, p.term(t, texts(raw.Values), path+".values"))
	}
	if raw.NotValues != nil {
		t.not = true
		c = append(c, p.term(t, texts(raw.NotValues), path+".notValues"))
	}
	if len(c) == 0 {
		p.fault(path, "", "values, notValues", "has no values")
	}
	p.contradictions(c, path)
	return c
}

// conditionKey finds what a key of when names.
func (p *parser) conditionKey(key, path string) (term, bool) {
	names := make([]string, 0, len(conditionKeys)+2)
	for _, k := range conditionKeys {
		if k.name == key {
			return term{attribute: k.attribute}, true
		}
		if !k.attribute.ofRequests() || p.settings.Requests {
			names = append(names, k.name)
		}
	}
	if p.settings.Requests {
		names = append(names, headerKey+"[NAME]", claimKey+"[NAME]")
	}
	if rest, ok := strings.CutPrefix(key, headerKey+"["); ok {
		name, closed := strings.CutSuffix(rest, "]")
		if !closed || !isHeaderName(name) {
			p.fault(path, key, headerKey+"[NAME]", "has no name of a header in brackets")
			return term{}, false
		}
		if name = lowered(name); name[0] == ':' && name != ":method" && name != ":authority" {
			p.fault(path, key, headerKey+"[:method], "+headerKey+"[:authority]", "is no header that is compared; for paths there is operation.paths")
			return term{}, false
		}
		return term{attribute: attrHeader, name: name}, true
	}
	if rest, ok := strings.CutPrefix(key, claimKey+"["); ok {
		inside, closed := strings.CutSuffix(rest, "]")
		steps := strings.Split(inside, "][")
		if !closed || slices.Contains(steps, "") || strings.ContainsAny(strings.Join(steps, ""), "[]"+claimSep) {
			p.fault(path, key, claimKey+"[NAME] or "+claimKey+"[NAME][NAME]", "has no name of a claim in brackets")
			return term{}, false
		}
		return term{attribute: attrClaim, name: strings.Join(steps, claimSep)}, true
	}
	allowed := strings.Join(names, ", ")
	if key == "" {
		p.fault(path, "", allowed, "is missing")
		return term{}, false
	}
	e := p.doc.Errorf(path, key, allowed, "unknown key")
	if near := document.Nearest(key, names); near != "" {
		e.Hint = "did you mean " + near + "?"
	}
	p.errs = append(p.errs, e)
	return term{}, false
}

// isHeaderName reports whether s is a token (RFC 9110 §5.6.2) or the name of
// a pseudo-header, such as :method.
func isHeaderName(s string) bool {
	s = strings.TrimPrefix(s, ":")
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return s != ""
}

func texts(scalars []document.Scalar) []string {
	if scalars == nil {
		return nil
	}
	list := make([]string, 0, len(scalars))
	for _, s := range scalars {
		list = append(list, string(s))
	}
	return list
}

// field is the name of an attribute for messages.
func (a attribute) field() string {
	names := map[attribute]string{
		attrPrincipal: "principals", attrNamespace: "namespaces", attrServiceAccount: "serviceAccounts", attrTrustDomain: "trustDomains",
		attrSourceIP: "ipBlocks", attrRemoteIP: "remoteIpBlocks", attrDestinationIP: "destination.ip", attrDestinationPort: "ports", attrSNI: "connection.sni",
		attrHost: "hosts", attrMethod: "methods", attrPath: "paths", attrHeader: headerKey, attrRequestPrincipal: "requestPrincipals",
		attrAudiences: "request.auth.audiences", attrPresenter: "request.auth.presenter", attrClaim: claimKey,
	}
	if name, ok := names[a]; ok {
		return name
	}
	return fmt.Sprintf("attribute %d", a)
}
