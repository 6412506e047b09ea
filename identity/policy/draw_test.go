// This file draws random policies and connections from a small vocabulary, so
// that they meet often.

package policy

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/aval-id/aval/identity/document"
	"pgregory.net/rapid"
)

var vocabulary = map[string][]string{
	"principals":        {web, intruder, foreign, "*", "spiffe://" + web, "spiffe://*", "partner.org/*", "example.org/ns/*", "example.org/ns/s*", "part*", "*/sa/web", "*.org/ns/shop/sa/web", "example.org/ns/a/sa/b/ns/c/sa/d"},
	"namespaces":        {"shop", "dark", "*", "sh*", "*rk"},
	"serviceAccounts":   {"web", "shop/web", "dark/intruder"},
	"trustDomains":      {"example.org", "partner.org", "*", "*.org", "partner*"},
	"ipBlocks":          {"10.0.0.0/8", "10.0.0.7", "192.168.0.0/16", "fe80::/10", "::ffff:10.0.0.7"},
	"ports":             {"8080", "9090", "1"},
	"connection.sni":    {"api.shop", "*", "*.shop", "API*"},
	"remoteIpBlocks":    {"10.0.0.0/8", "203.0.113.7", "203.0.113.0/24", "fe80::/10"},
	"hosts":             {"api.shop", "API.shop", "*", "*.shop", "api*", "other"},
	"methods":           {"GET", "POST", "*", "P*", "*T"},
	"paths":             {"/", "*", "/api/*", "/api", "*.png", "/api/{*}", "/api/{**}", "/api/{*}/x", "/{**}/x", "/{*}/{**}", "/api/i*"},
	"requestPrincipals": {"*", "issuer/*", "issuer/alice", "*/alice", "issuer/a*", "other/bob"},
	"texts":             {"a", "b", "*", "a*", "*b", "alice"},
}

var conditionWords = map[string]string{
	"source.principal": "principals", "source.namespace": "namespaces", "source.serviceAccount": "serviceAccounts",
	"source.trustDomain": "trustDomains", "source.ip": "ipBlocks", "destination.ip": "ipBlocks",
	"destination.port": "ports", "connection.sni": "connection.sni", "remote.ip": "remoteIpBlocks",
	"request.headers[x-a]": "texts", "request.headers[X-B]": "texts", "request.auth.principal": "requestPrincipals",
	"request.auth.audiences": "texts", "request.auth.presenter": "texts", "request.auth.claims[a]": "texts", "request.auth.claims[deep][b]": "texts",
}

func some(t *rapid.T, words []string) []string {
	return rapid.SliceOfN(rapid.SampledFrom(words), 1, 3).Draw(t, "values")
}

// fields draws a few of these fields, and always one.
func fields(t *rapid.T, names ...string) object {
	o := object{}
	for len(o) == 0 {
		for _, name := range names {
			if rapid.IntRange(0, 3).Draw(t, "field") == 0 {
				o[name] = some(t, vocabulary[name])
			}
			if rapid.IntRange(0, 5).Draw(t, "not") == 0 {
				o["not"+strings.ToUpper(name[:1])+name[1:]] = some(t, vocabulary[name])
			}
		}
	}
	return o
}

func drawRule(t *rapid.T) object {
	r := object{}
	if rapid.IntRange(0, 4).Draw(t, "from") > 0 {
		var sources []object
		for range rapid.IntRange(1, 3).Draw(t, "sources") {
			names := []string{"principals", "namespaces", "trustDomains", "ipBlocks", "remoteIpBlocks", "requestPrincipals"}
			if rapid.Bool().Draw(t, "accounts") {
				names = []string{"serviceAccounts", "trustDomains", "ipBlocks"}
			}
			sources = append(sources, object{"source": fields(t, names...)})
		}
		r["from"] = sources
	}
	if rapid.IntRange(0, 2).Draw(t, "to") == 0 {
		var operations []object
		for range rapid.IntRange(1, 3).Draw(t, "operations") {
			operations = append(operations, object{"operation": fields(t, operationNames...)})
		}
		r["to"] = operations
	}
	if rapid.IntRange(0, 2).Draw(t, "when") == 0 {
		var conditions []object
		for range rapid.IntRange(1, 2).Draw(t, "conditions") {
			conditions = append(conditions, drawCondition(t))
		}
		r["when"] = conditions
	}
	return r
}

// drawSmallRule draws a rule with one or two lists, so that one often takes
// another in.
func drawSmallRule(t *rapid.T) object {
	r := object{}
	if rapid.Bool().Draw(t, "from") {
		name := rapid.SampledFrom([]string{"principals", "namespaces", "trustDomains", "serviceAccounts", "requestPrincipals", "notPrincipals"}).Draw(t, "source field")
		r["from"] = []object{{"source": object{name: some(t, vocabulary[map[bool]string{true: "principals", false: name}[name == "notPrincipals"]])}}}
	}
	if rapid.Bool().Draw(t, "to") {
		name := rapid.SampledFrom(operationNames).Draw(t, "operation field")
		r["to"] = []object{{"operation": object{name: some(t, vocabulary[name])}}}
	}
	return r
}

func drawCondition(t *rapid.T) object {
	key := rapid.SampledFrom(sortedKeys(conditionWords)).Draw(t, "key")
	o := object{"key": key}
	which := rapid.IntRange(1, 3).Draw(t, "which")
	if which&1 != 0 {
		o["values"] = some(t, vocabulary[conditionWords[key]])
	}
	if which&2 != 0 {
		o["notValues"] = some(t, vocabulary[conditionWords[key]])
	}
	return o
}

func drawSelector(t *rapid.T, spec object) {
	switch rapid.IntRange(0, 3).Draw(t, "selector") {
	case 0:
		spec["selector"] = object{"matchLabels": map[string]string{"tier": rapid.SampledFrom([]string{"back", "front"}).Draw(t, "tier")}}
	case 1:
		spec["selector"] = object{"matchLabels": map[string]string{"app": "api"}}
	}
}

func drawAuthorization(t *rapid.T, name string, actions ...string) written {
	spec := object{"action": rapid.SampledFrom(actions).Draw(t, "action")}
	drawSelector(t, spec)
	var rules []object
	for range rapid.IntRange(0, 3).Draw(t, "rules") {
		rules = append(rules, drawRule(t))
	}
	if rules != nil {
		spec["rules"] = rules
	}
	return written{kind: document.AuthorizationPolicy, namespace: drawNamespace(t), name: name, spec: spec,
		dryRun: len(actions) > 1 && rapid.IntRange(0, 7).Draw(t, "dry run") == 0}
}

func drawNamespace(t *rapid.T) string {
	return rapid.SampledFrom([]string{"shop", "shop", "aval-system", "dark"}).Draw(t, "namespace")
}

func drawMode(t *rapid.T) object {
	return object{"mode": rapid.SampledFrom([]string{"UNSET", "DISABLE", "PERMISSIVE", "STRICT"}).Draw(t, "mode")}
}

func drawPeerAuthentication(t *rapid.T, name string) written {
	w := written{kind: document.PeerAuthentication, namespace: drawNamespace(t), name: name, spec: object{}, created: rapid.IntRange(1, 3).Draw(t, "created")}
	w.dryRun = rapid.IntRange(0, 7).Draw(t, "dry run") == 0
	if rapid.IntRange(0, 3).Draw(t, "mtls") > 0 {
		w.spec["mtls"] = drawMode(t)
	}
	if w.namespace != "aval-system" {
		drawSelector(t, w.spec)
		if w.spec["selector"] != nil && rapid.Bool().Draw(t, "ports") {
			w.spec["portLevelMtls"] = object{"8080": drawMode(t)}
		}
	}
	return w
}

func drawWorld(t *rapid.T) world {
	w := world{settings: requests, workload: api}
	w.settings.DefaultDeny = rapid.Bool().Draw(t, "default deny")
	for i := range rapid.IntRange(0, 4).Draw(t, "policies") {
		w.policies = append(w.policies, drawAuthorization(t, fmt.Sprintf("a%d", i), "ALLOW", "DENY", "AUDIT"))
	}
	for i := range rapid.IntRange(0, 4).Draw(t, "modes") {
		w.policies = append(w.policies, drawPeerAuthentication(t, fmt.Sprintf("m%d", i)))
	}
	return w
}

func drawAddress(t *rapid.T, name string) netip.Addr {
	text := rapid.SampledFrom([]string{"10.0.0.7", "::ffff:10.0.0.7", "192.168.1.1", "fe80::1", "203.0.113.7", ""}).Draw(t, name)
	if text == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(text)
}

// drawRequests draws one request of each peer.
func drawRequests(t *rapid.T) []Request {
	var all []Request
	for _, peer := range []string{"", web, intruder, foreign, "partner.org/x", "example.org/ns/a/sa/b/ns/c/sa/d", "partner.orgx/ns/shop/sa/web"} {
		r := Request{Connection: from(t, peer)}
		r.Remote = drawAddress(t, "remote")
		r.Port = rapid.SampledFrom([]uint16{8080, 9090}).Draw(t, "port")
		r.Source, r.Destination = drawAddress(t, "source"), drawAddress(t, "destination")
		r.SNI = rapid.SampledFrom([]string{"", "api.shop", "API.Shop", "other"}).Draw(t, "sni")
		if rapid.IntRange(0, 3).Draw(t, "http") > 0 {
			headers := map[string]string{}
			for _, name := range []string{"x-a", "x-b"} {
				headers[name] = rapid.SampledFrom([]string{"", "a", "b", "ab"}).Draw(t, name)
			}
			r.HTTP = &HTTP{
				Method: rapid.SampledFrom([]string{"GET", "POST", "PUT"}).Draw(t, "method"),
				Host:   rapid.SampledFrom([]string{"", "api.shop", "API.Shop", "other"}).Draw(t, "host"),
				Path:   rapid.SampledFrom([]string{"/", "/api", "/api/", "/api/i", "/api/i/x", "/a.png", "/x", "/api/x/y/x"}).Draw(t, "path"),
				Header: func(name string) (string, bool) { v, ok := headers[name]; return v, ok },
			}
		}
		if rapid.IntRange(0, 2).Draw(t, "jwt") > 0 {
			text := func(name string) string {
				return rapid.SampledFrom([]string{"", "a", "b", "alice", "issuer"}).Draw(t, name)
			}
			r.JWT = &JWT{Issuer: text("iss"), Subject: text("sub"), Audiences: []string{text("aud"), text("aud")}, Presenter: text("azp"),
				Claims: map[string]any{"a": []any{text("claim"), 7.0, text("claim")}, "deep": map[string]any{"b": text("deep claim")}}}
		}
		all = append(all, r)
	}
	return all
}
