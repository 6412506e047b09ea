// This file holds the tests of RequestAuthentications: what admission says,
// where they apply, and what they make of requests.

package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/jwt"
	"github.com/aval-id/aval/identity/jwt/jwttest"
)

const tokenRules = "jwtRules: [{issuer: https://i.example, jwksUri: https://i.example/keys, audiences: [api]}]"

func ra(t testing.TB, path, spec string) RequestAuthentication {
	t.Helper()
	p, _, err := ParseRequestAuthentication(doc(t, document.RequestAuthentication, path, spec), requests)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAdmissionSaysWhatIsWrongWithARuleOfTokens(t *testing.T) {
	rule := func(rest string) string {
		return "jwtRules: [{issuer: i, jwksUri: https://i.example/keys" + rest + "}]"
	}
	for _, c := range []struct{ name, spec, want string }{
		{"no rules", "{}", "spec.jwtRules: is missing"},
		{"empty rules", "jwtRules: []", "spec.jwtRules: is missing"},
		{"unknown field", "jwtRules: [{issuer: i, jwksURI: https://i.example/}]", "did you mean spec.jwtRules[0].jwksUri?"},
		{"selector", "selector: {matchLabels: {-a: b}}\n" + tokenRules, "spec.selector.matchLabels.-a"},
		{"targetRefs", "targetRefs: []\n" + tokenRules, "spec.targetRefs: is not supported"},
		{"spaceDelimitedClaims", rule(", spaceDelimitedClaims: [a]"), "spec.jwtRules[0].spaceDelimitedClaims: is not supported"},
		{"no issuer", "jwtRules: [{jwksUri: https://i.example/}]", "spec.jwtRules[0].issuer: is missing"},
		{"no keys", "jwtRules: [{issuer: i}]", "openid-configuration"},
		{"keys twice", rule(", jwks: '{}'"), "spec.jwtRules[0].jwksUri: contradicts jwks"},
		{"bad keys", "jwtRules: [{issuer: i, jwks: '{}'}]", `spec.jwtRules[0].jwks: JWK set: "keys" is missing or empty`},
		{"http", "jwtRules: [{issuer: i, jwksUri: http://i.example/}]", "spec.jwtRules[0].jwksUri: is not encrypted"},
		{"ftp", "jwtRules: [{issuer: i, jwksUri: ftp://i.example/}]", "is neither https:// nor file:///"},
		{"opaque", "jwtRules: [{issuer: i, jwksUri: https:i.example}]", "has no //"},
		{"user", "jwtRules: [{issuer: i, jwksUri: https://a:b@i.example/}]", "has a user in it"},
		{"fragment", "jwtRules: [{issuer: i, jwksUri: 'https://i.example/#a'}]", "has a fragment"},
		{"no host", "jwtRules: [{issuer: i, jwksUri: 'https:///keys'}]", "has no host"},
		{"number as a host", "jwtRules: [{issuer: i, jwksUri: 'https://2130706433/'}]", "has no host"},
		{"hexadecimal host", "jwtRules: [{issuer: i, jwksUri: 'https://127.0.0.0x1/'}]", "has no host"},
		{"backslash", `jwtRules: [{issuer: i, jwksUri: 'https://i.example\@x/'}]`, "is no URI"},
		{"port", "jwtRules: [{issuer: i, jwksUri: 'https://i.example:0/'}]", "has no port"},
		{"relative file", "jwtRules: [{issuer: i, jwksUri: 'file://keys.json'}]", "is no absolute path"},
		{"file with dots", "jwtRules: [{issuer: i, jwksUri: 'file:///a/../keys.json'}]", "is no absolute path"},
		{"timeout without a fetch", "jwtRules: [{issuer: i, jwksUri: 'file:///a', timeout: 1s}]", "spec.jwtRules[0].timeout: has no meaning"},
		{"long timeout", rule(", timeout: 1m"), "spec.jwtRules[0].timeout: is no time"},
		{"no audiences", rule(", audiences: []"), "spec.jwtRules[0].audiences: is empty"},
		{"audience twice", rule(", audiences: [a, a]"), "spec.jwtRules[0].audiences[1]: is written twice"},
		{"no headers", rule(", fromHeaders: []"), "spec.jwtRules[0].fromHeaders: is empty"},
		{"header that is none", rule(", fromHeaders: [{name: 'a b'}]"), "spec.jwtRules[0].fromHeaders[0].name: is no name"},
		{"header with _", rule(", fromHeaders: [{name: a_b}]"), "has a '_'"},
		{"header of the message", rule(", fromHeaders: [{name: content-type}]"), "meaning of its own"},
		{"header of the proxy", rule(", fromHeaders: [{name: aval-peer-id}]"), "meaning of its own"},
		{"cookie header", rule(", fromHeaders: [{name: cookie}]"), "meaning of its own"},
		{"header twice", rule(", fromHeaders: [{name: a}, {name: A}]"), "spec.jwtRules[0].fromHeaders[1]: is written twice"},
		{"prefix", rule(`, fromHeaders: [{name: a, prefix: "x\r\n"}]`), "spec.jwtRules[0].fromHeaders[0].prefix"},
		{"parameter twice", rule(", fromParams: [a, a]"), "spec.jwtRules[0].fromParams[1]: is written twice"},
		{"cookie that is none", rule(", fromCookies: ['a;b']"), "spec.jwtRules[0].fromCookies[0]: is no name"},
		{"output over a token", rule(", fromHeaders: [{name: x-jwt}], outputPayloadToHeader: X-Jwt"), "writes claims into a header that tokens come in"},
		{"output over credentials", rule(", outputPayloadToHeader: authorization"), "spec.jwtRules[0].outputPayloadToHeader: is a header with a meaning"},
		{"outputs of one header", rule(", outputPayloadToHeader: x-a, outputClaimToHeaders: [{header: X-A, claim: sub}]"), "spec.jwtRules[0].outputClaimToHeaders[0].header: is the header of another output"},
		{"output without a claim", rule(", outputClaimToHeaders: [{header: x-a}]"), "spec.jwtRules[0].outputClaimToHeaders[0].claim: is no claim"},
		{"output for the peer", rule(", outputClaimToHeaders: [{header: x-forwarded-client-cert, claim: sub}]"), "meaning of its own"},
	} {
		_, _, err := ParseRequestAuthentication(doc(t, document.RequestAuthentication, "shop/x", c.spec), requests)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	d := doc(t, document.RequestAuthentication, "shop/x", tokenRules, `aval.dev/dry-run: "true"`)
	if _, _, err := ParseRequestAuthentication(d, requests); err == nil || !strings.Contains(err.Error(), "it has no dry run") {
		t.Errorf("dry run: %v", err)
	}
}

func TestARuleWithoutAudiencesIsWarnedOf(t *testing.T) {
	_, warnings, err := ParseRequestAuthentication(doc(t, document.RequestAuthentication, "shop/x", "jwtRules: [{issuer: i, jwksUri: https://i.example/}]"), requests)
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0].String(), "spec.jwtRules[0]: warning: names no audiences") {
		t.Errorf("%v %v", warnings, err)
	}
}

func TestARequestAuthenticationAppliesAsPoliciesDo(t *testing.T) {
	for _, c := range []struct {
		path, selector string
		want           bool
	}{
		{"shop/a", "", true},
		{"shop/b", "selector: {matchLabels: {app: api}}\n", true},
		{"shop/c", "selector: {matchLabels: {app: web}}\n", false},
		{"dark/d", "", false},
		{"aval-system/e", "", true},
		{"aval-system/f", "selector: {matchLabels: {tier: back}}\n", true},
		{"aval-system/g", "selector: {matchLabels: {tier: front}}\n", false},
	} {
		p := ra(t, c.path, c.selector+tokenRules)
		if got := CompileAuthentication(requests, api, []RequestAuthentication{p}, nil) != nil; got != c.want {
			t.Errorf("%s %s: %v", c.path, c.selector, got)
		}
	}
}

func TestRulesOfAllDocumentsAreTakenTogether(t *testing.T) {
	key := jwttest.NewKey(t, "k", jose.EdDSA)
	keys, err := jwt.ParseKeys(jwttest.Set(t, key))
	if err != nil {
		t.Fatal(err)
	}
	all := []RequestAuthentication{
		ra(t, "shop/b", "jwtRules: [{issuer: two, jwksUri: https://i.example/two, outputPayloadToHeader: x-payload}]"),
		ra(t, "shop/a", "jwtRules: [{issuer: one, jwks: '"+string(keys.JSON())+"', audiences: [api]}]"),
		ra(t, "dark/c", "jwtRules: [{issuer: three, jwksUri: https://i.example/three}]"),
	}
	a := CompileAuthentication(requests, api, all, map[string]*jwt.Keys{"https://i.example/two": keys})
	var got []string
	for _, r := range a.Rules() {
		got = append(got, fmt.Sprint(r.Policy, " ", r.Issuer, " ", r.Keys.Len()))
	}
	if want := []string{"shop/a one 1", "shop/b two 1"}; !slices.Equal(got, want) || !slices.Equal(a.Outputs(), []string{"X-Payload"}) {
		t.Errorf("%v %v", got, a.Outputs())
	}
	for _, c := range []struct {
		token JWT
		want  bool
	}{
		{JWT{Issuer: "one", Audiences: []string{"x", "api"}}, true},
		{JWT{Issuer: "one", Audiences: []string{"x"}}, false},
		{JWT{Issuer: "one"}, false},
		{JWT{Issuer: "two"}, true},
		{JWT{Issuer: "three"}, false},
		{JWT{}, false},
	} {
		if a.Takes(&c.token) != c.want {
			t.Errorf("%+v: %v", c.token, !c.want)
		}
	}
}

func TestAPortOfAWorkloadWithTokensIsJudgedByRequest(t *testing.T) {
	set := compile(ap(t, "shop/x", "rules: [{}]"))
	with := set.Authenticating(CompileAuthentication(requests, api, []RequestAuthentication{ra(t, "shop/jwt", tokenRules)}, nil))
	if set.NeedsHTTP(8080) || !with.NeedsHTTP(8080) || with.AsksRequests(8080) {
		t.Error("tokens don't make the port one of requests")
	}
	if got := with.RequestFields(8080); !slices.Equal(got, []string{"shop/jwt spec.jwtRules"}) {
		t.Errorf("fields without an effect elsewhere: %v", got)
	}
	if !with.Decide(from(t, web)).Allowed {
		t.Error("tokens change what holds for connections")
	}
}

func TestAnInvalidTokenIsRefusedWhateverPoliciesSay(t *testing.T) {
	set := compile(ap(t, "shop/x", "rules: [{}]"), apOf(t, doc(t, document.AuthorizationPolicy, "shop/try", "action: AUDIT\nrules: [{}]", `aval.dev/dry-run: "true"`)))
	r := Request{Connection: from(t, web), HTTP: &HTTP{Method: "GET", Path: "/"}}
	d := set.RefuseToken(&r)
	if d.Allowed || d.Reason != ReasonTokenInvalid || d.Policy != "" || d.Rule != -1 || d.Mode != Permissive || d.Generation != 7 {
		t.Errorf("%+v", d)
	}
	if !d.Trial.Ran || d.Trial.Allowed || d.Trial.Reason != ReasonTokenInvalid {
		t.Errorf("trial %+v", d.Trial)
	}
	if nothing := (*Set)(nil); nothing.RefuseToken(&r).Allowed || nothing.Authentication() != nil || nothing.Authenticating(nil) != nil {
		t.Error("no set allows something")
	}
}

func TestScopesMatchByTheirWords(t *testing.T) {
	claims := map[string]any{"iss": "i", "sub": "s", "aud": []any{"a", "b"}, "azp": "p", "scope": "read write", "permission": "all", "name": "x y"}
	token := NewJWT(claims)
	if claims["scope"] != "read write" {
		t.Error("the claims were changed")
	}
	if token.Issuer != "i" || token.Subject != "s" || token.Presenter != "p" || !slices.Equal(token.Audiences, []string{"a", "b"}) {
		t.Errorf("%+v", token)
	}
	for _, c := range []struct {
		key, value string
		want       bool
	}{
		{"scope", "read", true}, {"scope", "write", true}, {"scope", "read write", false}, {"scope", "rea", false},
		{"permission", "all", true}, {"name", "x y", true}, {"name", "x", false},
	} {
		set := compile(ap(t, "shop/x", fmt.Sprintf("rules: [{when: [{key: 'request.auth.claims[%s]', values: ['%s']}]}]", c.key, c.value)))
		r := Request{Connection: from(t, web), HTTP: &HTTP{Method: "GET", Path: "/"}, JWT: token}
		if got := set.DecideRequest(&r).Allowed; got != c.want {
			t.Errorf("%s %q: %v", c.key, c.value, got)
		}
	}
}

func TestWhereItCannotBeReadItDenies(t *testing.T) {
	bad := doc(t, document.RequestAuthentication, "shop/x", "{}")
	all, denying, err := LoadRequestAuthentications([]document.Document{bad, doc(t, document.RequestAuthentication, "shop/y", tokenRules)}, requests)
	if err == nil || len(all) != 1 || len(denying) != 1 || all[0].Needs() != EvaluatorVersion {
		t.Fatalf("%d, %d, %v", len(all), len(denying), err)
	}
	if d := compile(denying...).Decide(from(t, web)); d.Allowed || d.Policy != "shop/x" {
		t.Errorf("%+v", d)
	}
	if needs := (PlaintextException{}).Needs(); needs >= all[0].Needs() {
		t.Errorf("an exception needs %d: proxies that know it would deny", needs)
	}
}

func TestPoliciesThatAskForTokensAreKnown(t *testing.T) {
	for _, c := range []struct {
		spec string
		want bool
	}{
		{"rules: [{}]", false},
		{"rules: [{from: [{source: {requestPrincipals: ['*']}}]}]", true},
		{"action: DENY\nrules: [{from: [{source: {notRequestPrincipals: ['*']}}]}]", true},
		{"rules: [{when: [{key: 'request.auth.claims[a]', values: [b]}]}]", true},
		{"action: AUDIT\nrules: [{from: [{source: {requestPrincipals: ['*']}}]}]", false},
		{"selector: {matchLabels: {app: web}}\nrules: [{from: [{source: {requestPrincipals: ['*']}}]}]", false},
	} {
		if got := AskForTokens(requests, api, []AuthorizationPolicy{ap(t, "shop/x", c.spec)}); got != c.want {
			t.Errorf("%s: %v", c.spec, got)
		}
	}
}

func FuzzParseRequestAuthentication(f *testing.F) {
	head := `{"apiVersion":"aval.dev/v1alpha1","metadata":{"name":"p","namespace":"shop"},"kind":"RequestAuthentication","spec":`
	f.Add([]byte(head + `{"jwtRules":[{"issuer":"i","jwksUri":"https://[::1]:8443/k?a=b","timeout":"3s","fromHeaders":[{"name":"x-a","prefix":"T "}],"fromParams":["a"],"fromCookies":["b"],"outputPayloadToHeader":"x-b","outputClaimToHeaders":[{"header":"x-c","claim":"a.b"}],"forwardOriginalToken":true}]}}`))
	f.Add([]byte(head + `{"selector":{"matchLabels":{"app":"api"}},"jwtRules":[{"issuer":"i","audiences":["a"],"jwksUri":"file:///a/b"}]}}`))
	f.Add([]byte(head + `{"jwtRules":[{"issuer":"i","jwks":"{\"keys\":[{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"}]}"}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := document.FromJSON(data)
		if err != nil || d.Kind() != document.RequestAuthentication {
			return
		}
		p, _, err := ParseRequestAuthentication(d, requests)
		if err != nil {
			return
		}
		for _, r := range p.Rules() {
			if r.Issuer == "" || (r.Keys.Len() == 0) == (r.KeysURI == "") || r.Timeout <= 0 || r.Timeout > time.Minute {
				t.Fatalf("half a rule: %+v", r)
			}
			if len(r.Headers)+len(r.Params)+len(r.Cookies) == 0 {
				t.Fatalf("no place for tokens: %+v", r)
			}
		}
		a := CompileAuthentication(requests, Workload{Namespace: d.Key().Namespace}, []RequestAuthentication{p}, nil)
		if a != nil && a.Takes(&JWT{}) {
			t.Fatal("a token without an issuer is taken")
		}
	})
}
