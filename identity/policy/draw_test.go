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
	"principals":      {web, intruder, foreign, "*", "spiffe://" + web, "spiffe://*", "partner.org/*", "example.org/ns/*", "example.org/ns/s*", "part*", "*/sa/web", "*.org/ns/shop/sa/web", "example.org/ns/a/sa/b/ns/c/sa/d"},
	"namespaces":      {"shop", "dark", "*", "sh*", "*rk"},
	"serviceAccounts": {"web", "shop/web", "dark/intruder"},
	"trustDomains":    {"example.org", "partner.org", "*", "*.org", "partner*"},
	"ipBlocks":        {"10.0.0.0/8", "10.0.0.7", "192.168.0.0/16", "fe80::/10", "::ffff:10.0.0.7"},
	"ports":           {"8080", "9090", "1"},
	"connection.sni":  {"api.shop", "*", "*.shop", "API*"},
}

var conditionWords = map[string]string{
	"source.principal": "principals", "source.namespace": "namespaces", "source.serviceAccount": "serviceAccounts",
	"source.trustDomain": "trustDomains", "source.ip": "ipBlocks", "destination.ip": "ipBlocks",
	"destination.port": "ports", "connection.sni": "connection.sni",
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
		for range rapid.IntRange(1, 2).Draw(t, "sources") {
			names := []string{"principals", "namespaces", "trustDomains", "ipBlocks"}
			if rapid.Bool().Draw(t, "accounts") {
				names = []string{"serviceAccounts", "trustDomains", "ipBlocks"}
			}
			sources = append(sources, object{"source": fields(t, names...)})
		}
		r["from"] = sources
	}
	if rapid.IntRange(0, 2).Draw(t, "to") == 0 {
		r["to"] = []object{{"operation": fields(t, "ports")}}
	}
	if rapid.IntRange(0, 2).Draw(t, "when") == 0 {
		key := rapid.SampledFrom(sortedKeys(conditionWords)).Draw(t, "key")
		o := object{"key": key}
		which := rapid.IntRange(1, 3).Draw(t, "which")
		if which&1 != 0 {
			o["values"] = some(t, vocabulary[conditionWords[key]])
		}
		if which&2 != 0 {
			o["notValues"] = some(t, vocabulary[conditionWords[key]])
		}
		r["when"] = []object{o}
	}
	return r
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
	return written{kind: document.AuthorizationPolicy, namespace: drawNamespace(t), name: name, spec: spec}
}

func drawNamespace(t *rapid.T) string {
	return rapid.SampledFrom([]string{"shop", "shop", "aval-system", "dark"}).Draw(t, "namespace")
}

func drawMode(t *rapid.T) object {
	return object{"mode": rapid.SampledFrom([]string{"UNSET", "DISABLE", "PERMISSIVE", "STRICT"}).Draw(t, "mode")}
}

func drawPeerAuthentication(t *rapid.T, name string) written {
	w := written{kind: document.PeerAuthentication, namespace: drawNamespace(t), name: name, spec: object{}, created: rapid.IntRange(1, 3).Draw(t, "created")}
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
	w := world{settings: settings, workload: api}
	w.settings.DefaultDeny = rapid.Bool().Draw(t, "default deny")
	for i := range rapid.IntRange(0, 4).Draw(t, "policies") {
		w.policies = append(w.policies, drawAuthorization(t, fmt.Sprintf("a%d", i), "ALLOW", "DENY", "AUDIT"))
	}
	for i := range rapid.IntRange(0, 4).Draw(t, "modes") {
		w.policies = append(w.policies, drawPeerAuthentication(t, fmt.Sprintf("m%d", i)))
	}
	return w
}

func drawConnections(t *rapid.T) []Connection {
	var all []Connection
	addresses := []string{"10.0.0.7", "::ffff:10.0.0.7", "192.168.1.1", "fe80::1"}
	for _, peer := range []string{"", web, intruder, foreign, "partner.org/x", "example.org/ns/a/sa/b/ns/c/sa/d", "partner.orgx/ns/shop/sa/web"} {
		c := from(t, peer)
		c.Port = rapid.SampledFrom([]uint16{8080, 9090}).Draw(t, "port")
		c.Source = netip.MustParseAddr(rapid.SampledFrom(addresses).Draw(t, "source"))
		c.Destination = netip.MustParseAddr(rapid.SampledFrom(addresses).Draw(t, "destination"))
		c.SNI = rapid.SampledFrom([]string{"", "api.shop", "API.Shop", "other"}).Draw(t, "sni")
		all = append(all, c)
	}
	return all
}
