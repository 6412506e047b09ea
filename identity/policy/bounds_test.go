// This file holds the tests of Bounds.

package policy

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// bounds compiles the policies of a world for requests of which u is unknown.
func (w world) bounds(t fataler, u Unknown) *Bounds {
	var pas []PeerAuthentication
	var aps []AuthorizationPolicy
	for _, p := range w.policies {
		if d := p.document(t); p.kind == "PeerAuthentication" {
			v, _, err := ParsePeerAuthentication(d, w.settings)
			if err != nil {
				t.Fatalf("%v", err)
			}
			pas = append(pas, v)
		} else {
			aps = append(aps, apOf(t, d))
		}
	}
	return CompileBounds(w.settings, w.workload, pas, aps, 1, u)
}

// TestACertainVerdictHoldsWhateverTheRestWas draws what is not known anew.
func TestACertainVerdictHoldsWhateverTheRestWas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		u := Unknown{Headers: rapid.Bool().Draw(t, "headers"), Token: rapid.Bool().Draw(t, "token"),
			Path: rapid.Bool().Draw(t, "path"), Host: rapid.Bool().Draw(t, "host")}
		set, b := w.compile(t, w.policies), w.bounds(t, u)
		others := drawRequests(t)
		for _, r := range drawRequests(t) {
			if r.HTTP == nil {
				continue
			}
			d, certain, fields := b.Decide(&r)
			if certain != (len(fields) == 0) {
				t.Fatalf("certain %v, depends on %q", certain, fields)
			}
			if u == (Unknown{}) && !certain {
				t.Fatalf("%+v is not certain, and all is known", r)
			}
			for _, other := range append(others, r) {
				if other.HTTP == nil {
					continue
				}
				whole := r
				h := *r.HTTP
				if u.Headers {
					h.Header = other.HTTP.Header
				}
				if u.Path {
					h.Path = other.HTTP.Path
				}
				if u.Host {
					h.Host, h.Method = other.HTTP.Host, other.HTTP.Method
				}
				if u.Token {
					whole.JWT = other.JWT
				}
				whole.HTTP = &h
				if got := set.DecideRequest(&whole); certain && (got.Allowed != d.Allowed || got.Mode != d.Mode) {
					t.Fatalf("certain %+v, and %+v for %+v", d, got, whole)
				}
			}
		}
	})
}

func TestAVerdictThatDependsOnWhatIsNotKnownNamesIt(t *testing.T) {
	u := Unknown{Headers: true, Token: true}
	request := func(path string) Request {
		return Request{Connection: Connection{Port: 8080}, HTTP: &HTTP{Method: "GET", Host: "api", Path: path}}
	}
	rule := func(name, action string, rules ...any) written {
		return written{kind: "AuthorizationPolicy", namespace: "shop", name: name, spec: object{"action": action, "rules": rules}}
	}
	when := func(key string) object { return object{"when": []any{object{"key": key, "values": []any{"v"}}}} }
	on := func(path string, o object) object {
		o["to"] = []any{object{"operation": object{"paths": []any{path}}}}
		return o
	}
	for _, tt := range []struct {
		name     string
		policies []written
		certain  bool
		allowed  bool
		fields   []string
	}{
		{"an ALLOW by a header", []written{rule("a", "ALLOW", when("request.headers[x-token]"))}, false, false, []string{"shop/a header x-token"}},
		{"an ALLOW by a claim", []written{rule("a", "ALLOW", when("request.auth.claims[a][b]"))}, false, false, []string{"shop/a claim a.b"}},
		{"a DENY by a header", []written{rule("d", "DENY", when("request.headers[x-bad]"))}, false, false, []string{"shop/d header x-bad"}},
		{"another path than the DENY's", []written{rule("d", "DENY", on("/x", when("request.headers[x-bad]")))}, true, true, nil},
		{"a second rule that allows", []written{rule("a", "ALLOW", when("request.headers[x-token]"), on("/p", object{}))}, true, true, nil},
		{"a header beside a DENY", []written{rule("a", "ALLOW", when("request.headers[x-token]")), rule("d", "DENY", on("/p", object{}))}, true, false, nil},
		{"a header that is known", []written{rule("a", "ALLOW", when("request.headers[host]"))}, true, false, nil},
	} {
		w := world{settings: requests, workload: Workload{Namespace: "shop"}, policies: tt.policies}
		r := request("/p")
		d, certain, fields := w.bounds(t, u).Decide(&r)
		if certain != tt.certain || d.Allowed != tt.allowed || !slices.Equal(fields, tt.fields) {
			t.Errorf("%s: %+v, certain %v, %q", tt.name, d, certain, fields)
		}
	}
}
