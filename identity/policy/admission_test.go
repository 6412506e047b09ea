// This file tests what admission refuses and warns of in policies that are
// decided by request.

package policy

import (
	"strings"
	"testing"

	"github.com/aval-id/aval/identity/document"
)

func TestBadRequestValuesAreRefusedByName(t *testing.T) {
	for _, c := range []struct{ rule, want string }{
		{operationRule("paths: [api]"), `operation.paths[0]: does not start with '/', as every path does; did you mean "/api"?; found "api"`},
		{operationRule("paths: ['/a?b=c']"), "paths[0]: has a '?'"},
		{operationRule("paths: ['/a%2Fb']"), "paths[0]: is never seen, since such requests are refused: path has %2F"},
		{operationRule("paths: ['/a%0']"), "path ends inside a percent-encoding"},
		{operationRule("paths: ['/a*b']"), "has a '*' that is neither its first nor its last"},
		{operationRule("paths: ['**']"), "paths[0]: has a '*'"},
		{operationRule("paths: ['{*}/a']"), "paths[0]: does not start with '/'"},
		{operationRule("paths: ['/a{*}']"), `paths[0]: has a segment "a{*}": {*} and {**} stand for whole segments`},
		{operationRule("paths: ['/{*}.txt']"), "stand for whole segments"},
		{operationRule("paths: ['/{**}/{*}']"), "has an operator after {**}"},
		{operationRule("paths: ['/{**}/a/{**}']"), "has an operator after {**}"},
		{operationRule("paths: ['/*/{*}']"), "has a '*' in the segment"},
		{operationRule("paths: ['/a/../{*}']"), "which no canonical path has"},
		{operationRule("paths: ['/a//{*}']"), "which no canonical path has"},
		{operationRule("hosts: ['api:8080']"), `hosts[0]: has a port, which is taken off before hosts are compared; write "api" and ports: ["8080"]`},
		{operationRule("hosts: ['[::1]:80']"), "hosts[0]: has a port"},
		{operationRule("hosts: ['a/b']"), "hosts[0]: has '/'"},
		{operationRule("hosts: ['a*b']"), "has a '*'"},
		{operationRule("methods: ['GET ']"), "methods[0]: is not a method"},
		{operationRule("methods: ['']"), "methods[0]: is empty"},
		{operationRule("methods: []"), "methods: has no values"},
		{sourceRule("requestPrincipals: [\"a\\u0001\"]"), "requestPrincipals[0]: has the control byte"},
		{sourceRule("remoteIpBlocks: [10.0.0.0/33]"), "remoteIpBlocks[0]: is not a CIDR block"},
		{whenRule("key: 'request.headers[]', values: [a]"), "when[0].key: has no name of a header in brackets"},
		{whenRule("key: 'request.headers[a b]', values: [a]"), "has no name of a header"},
		{whenRule("key: 'request.headers[:path]', values: [a]"), "for paths there is operation.paths"},
		{whenRule("key: 'request.auth.claims[a][]', values: [a]"), "has no name of a claim"},
		{whenRule("key: 'request.auth.claims[a', values: [a]"), "has no name of a claim"},
		{whenRule("key: request.header, values: [a]"), "unknown key"},
		{whenRule("key: request.auth.audience, values: [a]"), "did you mean request.auth.audiences?"},
		// contradictions
		{sourceRule("principals: [a/b], notPrincipals: ['a/*']"), "source: never matches: its not-values take away every value of principals"},
		{operationRule("ports: [80], notPorts: ['80', '81']"), "operation: never matches"},
		{operationRule("paths: ['/a/b', '/a/{*}/c'], notPaths: ['/a/*']"), "operation: never matches"},
		{sourceRule("ipBlocks: [10.1.0.0/16], notIpBlocks: [10.0.0.0/8]"), "source: never matches"},
		{whenRule("key: source.namespace, values: [a], notValues: ['*']"), "when[0]: never matches"},
		{sourceRule("principals: [a/ns/b/sa/c], namespaces: [d]"), "source: never matches: none of its principals satisfies its other fields"},
		{sourceRule("principals: [a/ns/b/sa/c], trustDomains: [d]"), "none of its principals"},
		{sourceRule("principals: [a/ns/b/sa/c, a/x], notNamespaces: [b], notTrustDomains: [a]"), "none of its principals"},
	} {
		d := doc(t, document.AuthorizationPolicy, "shop/p", allowRule(c.rule))
		_, _, err := ParseAuthorizationPolicy(d, requests)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "p.yaml:6: spec.rules[0].") {
			t.Errorf("%s\n got %v\nwant %s", c.rule, err, c.want)
		}
	}
}

// What contradicts itself has a clear meaning, so that a proxy that meets it
// need not deny everything.
func TestContradictionsAreRefusedAndNotUnreadable(t *testing.T) {
	d := doc(t, document.AuthorizationPolicy, "shop/p", denyRule(operationRule("ports: [8080], notPorts: [8080]")))
	if _, _, err := ParseAuthorizationPolicy(d, requests); err == nil {
		t.Error("admitted")
	}
	_, aps, err := Load([]document.Document{d}, requests)
	if err != nil {
		t.Fatal(err)
	}
	if d := compileRequests(aps...).Decide(from(t, web)); !d.Allowed {
		t.Errorf("%+v", d)
	}
}

func TestAdmissionWarnsOfRequests(t *testing.T) {
	for _, c := range []struct{ rule, want string }{
		{operationRule("methods: [get]"), `methods[0]: warning: methods are compared with their case: "get" does not match GET`},
		{operationRule("hosts: ['api:*']"), `hosts[0]: warning: the port is taken off a host before it is compared: "api" says the same`},
		{operationRule("paths: ['/a//b']"), `paths[0]: warning: paths are compared in their canonical form: "/a//b" is taken as "/a/b"`},
		{operationRule("paths: ['/api*']"), `paths[0]: warning: the prefix "/api*" ends inside a segment: it also takes in every longer name, such as "/apib"`},
		{operationRule("paths: ['/api/*', /x, '*.png', '/a/{*}']"), ""},
		{sourceRule("principals: [partner.org/ns/a/sa/b], namespaces: [a]"), "source: warning: matches nobody: namespaces and service accounts are those of the own trust domain, example.org"},
		{sourceRule("principals: [example.org/ns/a/sa/b, partner.org/ns/a/sa/b], namespaces: [a]"), ""},
	} {
		_, warnings, err := ParseAuthorizationPolicy(doc(t, document.AuthorizationPolicy, "shop/p", denyRule(c.rule)), requests)
		switch {
		case err != nil:
			t.Errorf("%s: %v", c.rule, err)
		case c.want == "" && len(warnings) > 0, c.want != "" && (len(warnings) != 1 || !strings.Contains(warnings[0].String(), c.want)):
			t.Errorf("%s: %v", c.rule, warnings)
		}
	}
	_, warnings, err := ParseAuthorizationPolicy(doc(t, document.AuthorizationPolicy, "shop/p", "action: DENY"), requests)
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0].Message, "never matches") {
		t.Error(warnings, err)
	}
	for value, ok := range map[string]bool{"'true'": true, "'false'": true, "'yes'": false, "''": false} {
		if _, _, err := ParseAuthorizationPolicy(doc(t, document.AuthorizationPolicy, "shop/p", "{}", "aval.dev/dry-run: "+value), requests); (err == nil) != ok {
			t.Errorf("dry-run %s: %v", value, err)
		}
	}
}

func TestTooManyClausesAreRefused(t *testing.T) {
	rule := "{to: [" + strings.Repeat("{operation: {ports: [1]}},", maxClauses) + "{operation: {ports: [1]}}]}"
	_, _, err := ParseAuthorizationPolicy(doc(t, document.AuthorizationPolicy, "shop/p", denyRule(rule)), requests)
	if err == nil || !strings.Contains(err.Error(), "spec.rules[0].to: has 1025 entries") {
		t.Error(err)
	}
}

func TestTemplatesPrintAsTheyAreWritten(t *testing.T) {
	for _, s := range []string{"/{*}", "/{**}", "/a/{*}/b", "/a/{**}", "/{**}/x.png", "/a/{*}/{**}/b/c", "/a/{*}/", "/a/{**}/"} {
		got, err := parseTemplate(s)
		if err != nil || got.String() != s {
			t.Errorf("%s is %s, %v", s, got, err)
		}
	}
}

func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"/{*}", "/a/{**}/b", "/a/{*}/{**}", "{*}", "/%61/{*}", "/{**}/{**}"} {
		f.Add(s, "/a/b/c")
	}
	f.Fuzz(func(t *testing.T, value, target string) {
		if value == "" {
			return
		}
		parsed, err := parseTemplate(value)
		path, pathErr := CanonicalPath(target)
		if err != nil || pathErr != nil || path == "*" {
			return
		}
		again, err := parseTemplate(parsed.String())
		if err != nil || again.String() != parsed.String() {
			t.Fatalf("%s prints as %s, %v", value, parsed, err)
		}
		p := patterns{templates: []template{parsed}}
		if got, want := p.matches(path), likePath(parsed.String(), path); got != want {
			t.Fatalf("%s on %s: %v", parsed, path, got)
		}
	})
}
