// This file compares the evaluator with a second one, which is slow and
// literal: it reads the documents' JSON at each decision and knows nothing of
// how the first one works.

package policy

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/identity/document"
	"pgregory.net/rapid"
)

type object = map[string]any

// written is a policy as its author wrote it.
type written struct {
	kind, namespace, name string
	created               int
	spec                  object
}

func (w written) path() string { return w.namespace + "/" + w.name }

func (w written) document(t fataler) document.Document {
	j, err := json.Marshal(object{"apiVersion": document.APIVersion, "kind": w.kind,
		"metadata": object{"name": w.name, "namespace": w.namespace}, "spec": w.spec})
	if err != nil {
		t.Fatalf("%v", err)
	}
	d, err := document.FromJSON(j)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return d.WithCreationTimestamp(time.Unix(int64(w.created), 0))
}

// fataler is what a testing.T and a rapid.T have in common here.
type fataler interface {
	Fatalf(format string, args ...any)
}

// world is everything that one decision depends on.
type world struct {
	settings Settings
	workload Workload
	policies []written
}

func (w world) compile(t fataler, policies []written) *Set {
	var pas []PeerAuthentication
	var aps []AuthorizationPolicy
	for _, p := range policies {
		d := p.document(t)
		if p.kind == document.PeerAuthentication {
			v, _, err := ParsePeerAuthentication(d, w.settings)
			if err != nil {
				t.Fatalf("%v", err)
			}
			pas = append(pas, v)
			continue
		}
		v, _, err := ParseAuthorizationPolicy(d, w.settings)
		if err != nil {
			t.Fatalf("%v", err)
		}
		aps = append(aps, v)
	}
	return Compile(w.settings, w.workload, pas, aps, 1)
}

// list returns the values of a field and whether it is written.
func list(o object, name string) ([]string, bool) {
	v, ok := o[name].([]string)
	return v, ok
}

// like matches a value with '*' at one end.
func like(pattern, s string) bool {
	if s == "" {
		return false
	}
	if pattern == "*" {
		return true
	}
	if strings.HasSuffix(pattern, "*") {
		return strings.Index(s, pattern[:len(pattern)-1]) == 0
	}
	if strings.HasPrefix(pattern, "*") {
		return len(s) >= len(pattern)-1 && s[len(s)-len(pattern)+1:] == pattern[1:]
	}
	return pattern == s
}

func inBlock(block string, a netip.Addr) bool {
	if !strings.Contains(block, "/") {
		return netip.MustParseAddr(block).Unmap() == a.Unmap()
	}
	return netip.MustParsePrefix(block).Contains(a.Unmap())
}

// peerOf returns the parts of the peer: ID without scheme, trust domain,
// and, for the own trust domain, namespace and account.
func (w world) peerOf(c Connection) (id, domain, namespace, account string) {
	if c.Peer.IsZero() {
		return "", "", "", ""
	}
	id = strings.TrimPrefix(c.Peer.String(), "spiffe://")
	domain = strings.Split(id, "/")[0]
	if n, a, ok := c.Peer.ServiceAccount(); ok && domain == w.settings.TrustDomain.String() {
		namespace, account = n, n+"/"+a
	}
	return id, domain, namespace, account
}

// is says whether one written value matches one named attribute.
func (w world) is(p written, attribute, value string, c Connection) bool {
	id, domain, namespace, account := w.peerOf(c)
	switch attribute {
	case "principals", "source.principal":
		return like(strings.TrimPrefix(value, "spiffe://"), id)
	case "namespaces", "source.namespace":
		return like(value, namespace)
	case "serviceAccounts", "source.serviceAccount":
		if !strings.Contains(value, "/") {
			value = p.namespace + "/" + value
		}
		return value == account
	case "trustDomains", "source.trustDomain":
		return like(value, domain)
	case "ipBlocks", "source.ip":
		return inBlock(value, c.Source)
	case "destination.ip":
		return inBlock(value, c.Destination)
	case "ports", "destination.port":
		return value == strconv.Itoa(int(c.Port))
	case "connection.sni":
		return like(strings.ToLower(value), strings.ToLower(c.SNI))
	}
	panic(attribute)
}

// clause says whether all fields of a source or an operation hold.
func (w world) clause(p written, o object, names []string, c Connection) bool {
	for _, name := range names {
		matches := func(v string) bool { return w.is(p, name, v, c) }
		if values, ok := list(o, name); ok && !slices.ContainsFunc(values, matches) {
			return false
		}
		not := "not" + strings.ToUpper(name[:1]) + name[1:]
		if values, ok := list(o, not); ok && slices.ContainsFunc(values, matches) {
			return false
		}
	}
	return true
}

// admitsDomain says whether a source writes the peer's domain out in a value
// that matches.
func (w world) admitsDomain(p written, source object, c Connection) bool {
	_, domain, _, _ := w.peerOf(c)
	principals, _ := list(source, "principals")
	for _, v := range principals {
		segments := strings.Split(strings.TrimPrefix(v, "spiffe://"), "/")
		if segments[0] == domain && w.is(p, "principals", v, c) {
			return true
		}
	}
	domains, _ := list(source, "trustDomains")
	return slices.Contains(domains, domain)
}

func (w world) rule(p written, r object, c Connection, foreignAllow bool) bool {
	sources, hasFrom := r["from"].([]object)
	fromOK := !hasFrom && !foreignAllow
	for _, f := range sources {
		source := f["source"].(object)
		if w.clause(p, source, []string{"principals", "namespaces", "serviceAccounts", "trustDomains", "ipBlocks"}, c) &&
			(!foreignAllow || w.admitsDomain(p, source, c)) {
			fromOK = true
		}
	}
	operations, hasTo := r["to"].([]object)
	toOK := !hasTo
	for _, o := range operations {
		if w.clause(p, o["operation"].(object), []string{"ports"}, c) {
			toOK = true
		}
	}
	whenOK := true
	conditions, _ := r["when"].([]object)
	for _, o := range conditions {
		is := func(v string) bool { return w.is(p, o["key"].(string), v, c) }
		if values, ok := list(o, "values"); ok && !slices.ContainsFunc(values, is) {
			whenOK = false
		}
		if values, ok := list(o, "notValues"); ok && slices.ContainsFunc(values, is) {
			whenOK = false
		}
	}
	return fromOK && toOK && whenOK
}

func (w world) selected(p written) (selector, matches bool) {
	s, _ := p.spec["selector"].(object)
	labels, _ := s["matchLabels"].(map[string]string)
	for k, v := range labels {
		if got, ok := w.workload.Labels[k]; !ok || got != v {
			return len(labels) > 0, false
		}
	}
	return len(labels) > 0, true
}

func (w world) mode(port uint16) string {
	winners := map[string]written{}
	for _, p := range w.policies {
		if p.kind != document.PeerAuthentication {
			continue
		}
		scope := ""
		selector, matches := w.selected(p)
		switch {
		case p.namespace == "aval-system" && !selector:
			scope = "1 domain"
		case p.namespace == w.workload.Namespace && !selector:
			scope = "2 namespace"
		case p.namespace == w.workload.Namespace && matches:
			scope = "3 workload"
		default:
			continue
		}
		if q, ok := winners[scope]; !ok || p.created < q.created || p.created == q.created && p.path() < q.path() {
			winners[scope] = p
		}
	}
	mode := "PERMISSIVE"
	for _, scope := range []string{"1 domain", "2 namespace", "3 workload"} {
		if mtls, ok := winners[scope].spec["mtls"].(object); ok && mtls["mode"] != "UNSET" {
			mode = mtls["mode"].(string)
		}
	}
	if ports, ok := winners["3 workload"].spec["portLevelMtls"].(object); ok {
		if m, ok := ports[strconv.Itoa(int(port))].(object); ok && m["mode"] != "UNSET" {
			mode = m["mode"].(string)
		}
	}
	return mode
}

// decide returns the verdict and its reason.
func (w world) decide(c Connection) (bool, string) {
	plaintext := c.Peer.IsZero()
	if plaintext && w.mode(c.Port) == "STRICT" {
		return false, "plaintext_refused"
	}
	foreign := !plaintext && c.Peer.TrustDomain() != w.settings.TrustDomain
	allows, allowed := false, false
	for _, p := range w.policies {
		_, matches := w.selected(p)
		if p.kind != document.AuthorizationPolicy || !matches || p.namespace != w.workload.Namespace && p.namespace != "aval-system" {
			continue
		}
		rules, _ := p.spec["rules"].([]object)
		for _, r := range rules {
			if p.spec["action"] == "DENY" && w.rule(p, r, c, false) {
				return false, "policy_denied"
			}
			if p.spec["action"] == "ALLOW" && w.rule(p, r, c, foreign) {
				allowed = true
			}
		}
		allows = allows || p.spec["action"] == "ALLOW"
	}
	switch {
	case foreign && !allowed:
		return false, "wrong_trust_domain"
	case !allowed && (allows || w.settings.DefaultDeny):
		return false, "policy_denied"
	case plaintext:
		return true, "plaintext_allowed"
	}
	return true, "allowed"
}

func checkAgainstNaive(t *rapid.T) {
	w := drawWorld(t)
	set := w.compile(t, w.policies)
	for _, c := range drawConnections(t) {
		d := set.Decide(c)
		allowed, reason := w.decide(c)
		if d.Allowed != allowed || d.Reason != reason {
			t.Fatalf("%+v\nis %+v\nnot %v %s", c, d, allowed, reason)
		}
		if m, _ := set.Mode(c.Port); m.String() != w.mode(c.Port) {
			t.Fatalf("mode %v, not %s", m, w.mode(c.Port))
		}
	}
}

func TestBothEvaluatorsAgree(t *testing.T) { rapid.Check(t, checkAgainstNaive) }

func FuzzBothEvaluatorsAgree(f *testing.F) { f.Fuzz(rapid.MakeFuzz(checkAgainstNaive)) }

func TestOrderNeverMatters(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		set, shuffled := w.compile(t, w.policies), w.compile(t, rapid.Permutation(w.policies).Draw(t, "order"))
		for _, c := range drawConnections(t) {
			a, b := set.Decide(c), shuffled.Decide(c)
			if fmt.Sprint(a) != fmt.Sprint(b) {
				t.Fatalf("%+v\n%+v", a, b)
			}
		}
	})
}

func TestAddingDenyNeverAllowsMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		set, more := w.compile(t, w.policies), w.compile(t, append(slices.Clone(w.policies), drawAuthorization(t, "deny", "DENY")))
		for _, c := range drawConnections(t) {
			if more.Decide(c).Allowed && !set.Decide(c).Allowed {
				t.Fatalf("%+v is allowed by another DENY", c)
			}
		}
	})
}

func TestAllowWithoutRulesAloneDeniesEverything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		policies := slices.DeleteFunc(w.policies, func(p written) bool { return p.spec["action"] == "ALLOW" })
		policies = append(policies, written{kind: document.AuthorizationPolicy, namespace: "shop", name: "none", spec: object{}})
		for _, c := range drawConnections(t) {
			if d := w.compile(t, policies).Decide(c); d.Allowed {
				t.Fatalf("%+v is allowed", c)
			}
		}
	})
}
