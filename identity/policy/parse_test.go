// This file tests what the parser of AuthorizationPolicy refuses and warns of.

package policy

import (
	"strings"
	"testing"

	"github.com/aval-id/aval/identity/document"
)

func TestUncoveredFieldsAreRefusedByName(t *testing.T) {
	const unsupported = ": is not supported by this version"
	for _, c := range []struct{ spec, want string }{
		{"action: CUSTOM\nrules: [{}]", "p.yaml:5: spec.action" + unsupported},
		{"action: allow", "spec.action: is not an action"},
		{"provider: {name: x}", "p.yaml:5: spec.provider" + unsupported},
		{"targetRefs: []", "spec.targetRefs" + unsupported},
		{"targetRef: {}", "spec.targetRef" + unsupported},
		{denyRule("{to: [{operation: {hosts: [a]}}]}"), "p.yaml:6: spec.rules[0].to[0].operation.hosts" + unsupported},
		{denyRule("{to: [{operation: {notHosts: [a]}}]}"), "notHosts" + unsupported},
		{denyRule("{to: [{operation: {methods: [GET]}}]}"), "methods" + unsupported},
		{denyRule("{to: [{operation: {notMethods: [GET]}}]}"), "notMethods" + unsupported},
		{denyRule("{to: [{operation: {paths: [/]}}]}"), "paths" + unsupported},
		{denyRule("{to: [{operation: {notPaths: [/], ports: [80]}}]}"), "notPaths" + unsupported},
		{denyRule(sourceRule("requestPrincipals: ['*']")), "requestPrincipals" + unsupported},
		{denyRule(sourceRule("notRequestPrincipals: ['*']")), "notRequestPrincipals" + unsupported},
		{denyRule(sourceRule("remoteIpBlocks: [10.0.0.0/8]")), "remoteIpBlocks" + unsupported},
		{denyRule(sourceRule("notRemoteIpBlocks: [10.0.0.0/8]")), "notRemoteIpBlocks" + unsupported},
		{denyRule("{when: [{key: 'request.headers[x]', values: [a]}]}"), "spec.rules[0].when[0].key" + unsupported},
		{denyRule("{when: [{key: 'request.auth.claims[a][b]', values: [a]}]}"), "when[0].key" + unsupported},
		{denyRule("{when: [{key: request.auth.principal, values: [a]}]}"), "when[0].key" + unsupported},
		{denyRule("{when: [{key: remote.ip, values: [10.0.0.1]}]}"), "when[0].key" + unsupported},
	} {
		_, _, err := ParseAuthorizationPolicy(doc(t, document.AuthorizationPolicy, "shop/p", c.spec), settings)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\n got %v\nwant %s", c.spec, err, c.want)
		}
	}
	if _, _, err := ParseAuthorizationPolicy(doc(t, document.AuthorizationPolicy, "shop/p", "action: CUSTOM\nprovider: {name: x}"), requests); err == nil || !strings.Contains(err.Error(), "spec.action") || !strings.Contains(err.Error(), "spec.provider") {
		t.Error(err)
	}
	for annotation, ok := range map[string]bool{"aval.dev/dry-run: 'true'": false, "aval.dev/dry-run: yes": false, "aval.dev/dry-run: 'false'": true} {
		_, _, err := ParseAuthorizationPolicy(doc(t, document.AuthorizationPolicy, "shop/p", "{}", annotation), settings)
		if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "dry-run is not supported by this version") {
			t.Errorf("%s: %v", annotation, err)
		}
	}
}

func TestBadValuesAreRefusedByName(t *testing.T) {
	for _, c := range []struct{ rule, want string }{
		{"{form: []}", "spec.rules[0].form: unknown field; allowed: from, to, when; did you mean spec.rules[0].from?"},
		{"{from: []}", "spec.rules[0].from: is empty"},
		{"{from: ~}", "spec.rules[0].from: has no value"},
		{"{to: []}", "spec.rules[0].to: is empty"},
		{"{when: []}", "spec.rules[0].when: is empty"},
		{"~", "spec.rules[0]: has no value"},
		{"{from: [{}]}", "spec.rules[0].from[0]: has no source"},
		{"{from: [{source: {}}]}", "spec.rules[0].from[0].source: is empty"},
		{"{to: [{}]}", "to[0]: has no operation"},
		{"{to: [{operation: {}}]}", "to[0].operation: is empty"},
		{sourceRule("principals: []"), "source.principals: has no values"},
		{sourceRule("principals: ['']"), "source.principals[0]: is empty"},
		{sourceRule("principals: ['spiffe://']"), "source.principals[0]: is empty"},
		{sourceRule("principals: [a/b, 'a*b']"), "source.principals[1]: has a '*' that is neither"},
		{sourceRule("principals: ['*a*']"), "has a '*' that is neither"},
		{sourceRule("principals: ['**']"), "has a '*' that is neither"},
		{sourceRule("principals: ['Example.org/web']"), "source.principals[0]: SPIFFE ID"},
		{sourceRule("principals: ['example.org//web']"), "source.principals[0]: SPIFFE ID"},
		{sourceRule("principals: ['example.org//*']"), "source.principals[0]: SPIFFE ID"},
		{sourceRule("principals: ['*a b']"), "source.principals[0]: SPIFFE ID"},
		{sourceRule("principals: ['https://example.org/web']"), "source.principals[0]: SPIFFE ID"},
		{sourceRule("namespaces: ['a/b']"), "source.namespaces[0]: has a '/'"},
		{sourceRule("namespaces: ['a*b']"), "has a '*' that is neither"},
		{sourceRule("serviceAccounts: ['*']"), "has a '*', which service accounts do not take"},
		{sourceRule("serviceAccounts: ['a/*']"), "has a '*'"},
		{sourceRule("serviceAccounts: ['a/b/c']"), "has more than one '/'"},
		{sourceRule("serviceAccounts: ['/c']"), "serviceAccounts[0]"},
		{sourceRule("serviceAccounts: [a], principals: [b/c]"), "source.serviceAccounts: is not allowed together with principals"},
		{sourceRule("serviceAccounts: [a], namespaces: [b]"), "source.serviceAccounts: is not allowed together with namespaces"},
		{sourceRule("trustDomains: ['a/b']"), "trustDomains[0]"},
		{sourceRule("trustDomains: ['EXAMPLE.org']"), "trustDomains[0]"},
		{sourceRule("ipBlocks: [10.0.0.0/33]"), "ipBlocks[0]: is not a CIDR block; found \"10.0.0.0/33\""},
		{sourceRule("ipBlocks: [localhost]"), "ipBlocks[0]: is not an address"},
		{sourceRule("ipBlocks: ['fe80::1%eth0']"), "has a zone"},
		{sourceRule("ipBlocks: ['::ffff:0:0/80']"), "is wider than"},
		{"{to: [{operation: {ports: [0]}}]}", "ports[0]: is not a port"},
		{"{to: [{operation: {ports: ['80*']}}]}", "ports[0]: is not a port"},
		{"{to: [{operation: {ports: [http]}}]}", "ports[0]: is not a port"},
		{"{to: [{operation: {notPorts: []}}]}", "notPorts: has no values"},
		{"{when: [{values: [x]}]}", "when[0].key: is missing"},
		{"{when: [{key: source.ips, values: [x]}]}", "when[0].key: unknown key; found \"source.ips\"; allowed: source.ip, "},
		{"{when: [{key: source.ip}]}", "when[0]: has no values"},
		{"{when: [{key: source.ip, values: []}]}", "when[0].values: has no values"},
		{"{when: [{key: connection.sni, values: ['a b']}]}", "when[0].values[0]: has ' '"},
	} {
		_, _, err := ParseAuthorizationPolicy(doc(t, document.AuthorizationPolicy, "shop/p", allowRule(c.rule)), settings)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\n got %v\nwant %s", c.rule, err, c.want)
		}
	}
	_, _, err := ParseAuthorizationPolicy(doc(t, document.AuthorizationPolicy, "shop/p", "action: X\nrules:\n- to: []\n- from: []\n"), settings)
	if err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("not every fault is named: %v", err)
	}
}

func TestAdmissionWarns(t *testing.T) {
	for _, c := range []struct{ spec, want string }{
		{allowRule(sourceRule("notPrincipals: [a/b]")), "p.yaml:6: spec.rules[0].from[0].source: warning: says only who the peer is not"},
		{allowRule(sourceRule("notNamespaces: [a], ipBlocks: [10.0.0.0/8]")), "says only who"},
		{allowRule("{when: [{key: source.principal, notValues: [a/b]}]}"), "spec.rules[0].when: warning: says only who"},
		{allowRule("{from: [{source: {ipBlocks: [10.0.0.0/8]}}], when: [{key: source.namespace, notValues: [a]}]}"), "source: warning: says only who"},
		{allowRule(sourceRule("notPrincipals: [a/b], principals: ['*']")), ""},
		{allowRule("{from: [{source: {notPrincipals: [a/b]}}], when: [{key: source.principal, values: ['*']}]}"), ""},
		{allowRule(sourceRule("ipBlocks: [10.0.0.0/8]")), ""},
		{denyRule(sourceRule("notPrincipals: ['*']")), ""},
		{denyRule(sourceRule("principals: ['a/ns/a*']")), `principals[0]: warning: the prefix "a/ns/a*" ends inside a segment`},
		{allowRule(sourceRule("principals: ['a*']")), "ends inside a segment"},
		{allowRule(sourceRule("principals: ['a/ns/a/*', '*', '*/b']")), ""},
		{allowRule(sourceRule("namespaces: ['team-*']")), ""},
	} {
		_, warnings, err := ParseAuthorizationPolicy(doc(t, document.AuthorizationPolicy, "shop/p", c.spec), settings)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case c.want == "" && len(warnings) > 0:
			t.Errorf("%s: %v", c.spec, warnings)
		case c.want != "" && (len(warnings) != 1 || !strings.Contains(warnings[0].String(), c.want)):
			t.Errorf("%s: %v", c.spec, warnings)
		}
	}
	_, warnings, err := ParseAuthorizationPolicy(doc(t, document.AuthorizationPolicy, "shop/p", "{}", "istio.io/dry-run: 'true'"), settings)
	if err != nil || len(warnings) != 1 {
		t.Error(warnings, err)
	}
}
