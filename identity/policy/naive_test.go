// This file compares the evaluator with a second one, which is slow and
// literal: it reads the documents' JSON at each decision and knows nothing of
// how the first one works.

package policy

import (
	"encoding/json"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"pgregory.net/rapid"
)

type object = map[string]any

// written is a policy as its author wrote it.
type written struct {
	kind, namespace, name string
	created               int
	dryRun                bool
	spec                  object
}

func (w written) path() string { return w.namespace + "/" + w.name }

func (w written) document(t fataler) document.Document {
	meta := object{"name": w.name, "namespace": w.namespace}
	if w.dryRun {
		meta["annotations"] = object{DryRunAnnotation: "true"}
	}
	j, err := json.Marshal(object{"apiVersion": document.APIVersion, "kind": w.kind, "metadata": meta, "spec": w.spec})
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
		aps = append(aps, apOf(t, d))
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

// likePath matches a path with a value that may be a template, by way of a
// regular expression.
func likePath(pattern, s string) bool {
	if !strings.Contains(pattern, "{*") {
		return like(pattern, s)
	}
	re := regexp.QuoteMeta(pattern)
	re = strings.ReplaceAll(re, regexp.QuoteMeta("{**}"), ".*")
	re = strings.ReplaceAll(re, regexp.QuoteMeta("{*}"), "[^/]+")
	return regexp.MustCompile("^" + re + "$").MatchString(s)
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

// ofHTTP says whether only HTTP has a field or a key.
func ofHTTP(name string) bool {
	switch name {
	case "hosts", "methods", "paths", "requestPrincipals":
		return true
	}
	return strings.HasPrefix(name, "request.")
}

// claims returns the texts of a claim at the names in brackets.
func claims(key string, v any) []string {
	for name := range strings.SplitSeq(strings.Trim(key, "[]"), "][") {
		m, _ := v.(map[string]any)
		v = m[name]
	}
	switch v := v.(type) {
	case string:
		return []string{v}
	case []any:
		var out []string
		for _, e := range v {
			if s, ok := e.(string); ok {
				out = append(out, s)
			}
		}
		return out
	}
	return nil
}

// is says whether one written value matches one named attribute.
func (w world) is(p written, attribute, value string, r *Request) bool {
	id, domain, namespace, account := w.peerOf(r.Connection)
	anyLike := func(all []string) bool {
		return slices.ContainsFunc(all, func(s string) bool { return like(value, s) })
	}
	header, isHeader := strings.CutPrefix(attribute, "request.headers[")
	claim, isClaim := strings.CutPrefix(attribute, "request.auth.claims")
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
		return inBlock(value, r.Source)
	case "remoteIpBlocks", "remote.ip":
		if r.Remote.IsValid() {
			return inBlock(value, r.Remote)
		}
		return inBlock(value, r.Source)
	case "destination.ip":
		return inBlock(value, r.Destination)
	case "ports", "destination.port":
		return value == strconv.Itoa(int(r.Port))
	case "connection.sni":
		return like(strings.ToLower(value), strings.ToLower(r.SNI))
	case "hosts":
		return like(strings.ToLower(value), strings.ToLower(r.HTTP.Host))
	case "methods":
		return like(value, r.HTTP.Method)
	case "paths":
		return likePath(value, r.HTTP.Path)
	}
	switch {
	case isHeader:
		v, _ := r.HTTP.Header(strings.ToLower(strings.TrimSuffix(header, "]")))
		return like(value, v)
	case r.JWT == nil:
		return false
	case attribute == "requestPrincipals" || attribute == "request.auth.principal":
		return r.JWT.Issuer != "" && r.JWT.Subject != "" && like(value, r.JWT.Issuer+"/"+r.JWT.Subject)
	case attribute == "request.auth.audiences":
		return anyLike(r.JWT.Audiences)
	case attribute == "request.auth.presenter":
		return like(value, r.JWT.Presenter)
	case isClaim:
		return anyLike(claims(claim, r.JWT.Claims))
	}
	panic(attribute)
}

// known says whether an attribute can be asked about at all.
func known(name string, r *Request) bool {
	switch name {
	case "ipBlocks", "source.ip":
		return r.Source.IsValid()
	case "remoteIpBlocks", "remote.ip":
		return r.Source.IsValid() || r.Remote.IsValid()
	case "destination.ip":
		return r.Destination.IsValid()
	}
	return r.HTTP != nil || !ofHTTP(name)
}

// holds says whether the values and notValues about one attribute hold.
func (w world) holds(p written, name string, values, not []string, r *Request) bool {
	if values == nil && not == nil {
		return true
	}
	if !known(name, r) {
		return p.spec["action"] != "ALLOW"
	}
	is := func(v string) bool { return w.is(p, name, v, r) }
	return (values == nil || slices.ContainsFunc(values, is)) && !slices.ContainsFunc(not, is)
}

// clause says whether all fields of a source or an operation hold.
func (w world) clause(p written, o object, names []string, r *Request) bool {
	for _, name := range names {
		values, _ := list(o, name)
		not, _ := list(o, "not"+strings.ToUpper(name[:1])+name[1:])
		if !w.holds(p, name, values, not, r) {
			return false
		}
	}
	return true
}

// admitsDomain says whether a source writes the peer's domain out.
func (w world) admitsDomain(source object, c Connection) bool {
	_, domain, _, _ := w.peerOf(c)
	principals, _ := list(source, "principals")
	for _, v := range principals {
		if strings.Split(strings.TrimPrefix(v, "spiffe://"), "/")[0] == domain {
			return true
		}
	}
	domains, _ := list(source, "trustDomains")
	return slices.Contains(domains, domain)
}

// mentionsHTTP says whether a rule names what only HTTP has.
func mentionsHTTP(rule object) bool {
	j, _ := json.Marshal(rule)
	return regexp.MustCompile(`"(hosts|methods|paths|requestPrincipals|notHosts|notMethods|notPaths|notRequestPrincipals|request\.[^"]*)"`).Match(j)
}

var (
	sourceNames    = []string{"principals", "requestPrincipals", "namespaces", "serviceAccounts", "trustDomains", "ipBlocks", "remoteIpBlocks"}
	operationNames = []string{"hosts", "ports", "methods", "paths"}
)

func (w world) rule(p written, rule object, r *Request, foreign bool) bool {
	allow := p.spec["action"] == "ALLOW"
	if allow && r.HTTP == nil && mentionsHTTP(rule) {
		return false
	}
	sources, hasFrom := rule["from"].([]object)
	fromOK := !hasFrom && !(allow && foreign)
	for _, f := range sources {
		source := f["source"].(object)
		if w.clause(p, source, sourceNames, r) && (!allow || !foreign || w.admitsDomain(source, r.Connection)) {
			fromOK = true
		}
	}
	operations, hasTo := rule["to"].([]object)
	toOK := !hasTo
	for _, o := range operations {
		if w.clause(p, o["operation"].(object), operationNames, r) {
			toOK = true
		}
	}
	whenOK := true
	conditions, _ := rule["when"].([]object)
	for _, o := range conditions {
		values, _ := list(o, "values")
		not, _ := list(o, "notValues")
		whenOK = whenOK && w.holds(p, o["key"].(string), values, not, r)
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
func (w world) decide(r Request) (bool, string) {
	mode := w.mode(r.Port)
	if mode == "DISABLE" {
		r.Peer = identity.ID{}
	}
	plaintext := r.Peer.IsZero()
	if plaintext && mode == "STRICT" {
		return false, "plaintext_refused"
	}
	foreign := !plaintext && r.Peer.TrustDomain() != w.settings.TrustDomain
	allows, allowed := false, false
	for _, p := range w.policies {
		_, matches := w.selected(p)
		if p.kind != document.AuthorizationPolicy || !matches || p.namespace != w.workload.Namespace && p.namespace != "aval-system" {
			continue
		}
		rules, _ := p.spec["rules"].([]object)
		for _, rule := range rules {
			if p.spec["action"] == "DENY" && w.rule(p, rule, &r, foreign) {
				return false, "policy_denied"
			}
			if p.spec["action"] == "ALLOW" && w.rule(p, rule, &r, foreign) {
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

// enforced is w without what is on dry run.
func (w world) enforced() world {
	w.policies = slices.DeleteFunc(slices.Clone(w.policies), func(p written) bool { return p.dryRun })
	return w
}

func checkAgainstNaive(t *rapid.T) {
	w := drawWorld(t)
	set := w.compile(t, w.policies)
	for _, r := range drawRequests(t) {
		d := set.DecideRequest(&r)
		allowed, reason := w.enforced().decide(r)
		if d.Allowed != allowed || d.Reason != reason {
			t.Fatalf("%+v %+v %+v\nis %+v\nnot %v %s", r, r.HTTP, r.JWT, d, allowed, reason)
		}
		if m, _ := set.Mode(r.Port); m.String() != w.enforced().mode(r.Port) {
			t.Fatalf("mode %v, not %s", m, w.enforced().mode(r.Port))
		}
		allowed, reason = w.decide(r)
		if d.Trial.Ran && (d.Trial.Allowed != allowed || d.Trial.Reason != reason || d.Trial.Mode.String() != w.mode(r.Port)) {
			t.Fatalf("%+v %+v %+v\nis %+v\nnot %v %s on trial", r, r.HTTP, r.JWT, d, allowed, reason)
		}
		if !d.Trial.Ran && allowed != d.Allowed {
			t.Fatalf("%+v: a policy on dry run is not tried", r)
		}
	}
}

func TestBothEvaluatorsAgree(t *testing.T) { rapid.Check(t, checkAgainstNaive) }

func FuzzBothEvaluatorsAgree(f *testing.F) { f.Fuzz(rapid.MakeFuzz(checkAgainstNaive)) }
