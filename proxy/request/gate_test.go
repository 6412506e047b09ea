// This file holds the tests of where tokens are found in requests, and of the
// tokens that are remembered.

package request

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/policy"
)

func gateOf(t testing.TB, rule string) *gate {
	t.Helper()
	docs, err := document.Parse("", fmt.Appendf(nil, "apiVersion: aval.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {name: a, namespace: b}\nspec: {jwtRules: [{issuer: i, jwksUri: https://i.example/%s}]}", rule))
	if err != nil {
		t.Fatal(err)
	}
	s := policy.Settings{TrustDomain: identity.TrustDomain{}, Requests: true}
	p, _, err := policy.ParseRequestAuthentication(docs[0], s)
	if err != nil {
		t.Fatal(err)
	}
	return newGate(policy.CompileAuthentication(s, policy.Workload{Namespace: "b"}, []policy.RequestAuthentication{p}, nil))
}

func TestTokensAreFoundWhereARuleSays(t *testing.T) {
	plain := gateOf(t, "")
	named := gateOf(t, `, fromHeaders: [{name: X-A}, {name: x-a, prefix: "T "}, {name: authorization, prefix: "Token "}], fromCookies: [c]`)
	for _, tt := range []struct {
		gate   *gate
		header http.Header
		query  string
		want   []string
	}{
		{plain, nil, "", nil},
		{plain, http.Header{"Authorization": {"Bearer a"}}, "", []string{"a"}},
		{plain, http.Header{"Authorization": {"\tbEARER\ta "}}, "", []string{"a"}},
		{plain, http.Header{"Authorization": {"Bearer"}}, "", []string{""}},
		{plain, http.Header{"Authorization": {"Bearera"}}, "", nil},
		{plain, http.Header{"Authorization": {"Token a", "Bearer b"}}, "", []string{"b", "b"}},
		{plain, nil, "access_token=a&access_token=b;access_token=c&Access_Token=d", []string{"a", "b", "c"}},
		{plain, nil, "%61ccess%5ftoken=a%2Eb", []string{"a.b"}},
		{plain, nil, "access_token", []string{""}},
		{plain, nil, "x=access_token=a", nil},
		{named, http.Header{"X-A": {"a"}}, "access_token=b", []string{"a"}},
		{named, http.Header{"X-A": {"T a"}}, "", []string{"a"}},
		{named, http.Header{"X-A": {""}}, "", nil},
		{named, http.Header{"Authorization": {"token a"}}, "", nil},
		{named, http.Header{"Authorization": {"Token a"}}, "", []string{"a"}},
		{named, http.Header{"Cookie": {"c=a; d=c; c=b", `e=f;c="g"`}}, "", []string{"a", "b", "g"}},
		{named, http.Header{"Cookie": {"C=a; cc=b; =c"}}, "", nil},
	} {
		var got []string
		for _, c := range tt.gate.find(tt.header, tt.query) {
			got = append(got, c.token)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%v ?%s: %q, want %q", tt.header, tt.query, got, tt.want)
		}
	}
}

func TestATokenIsRememberedUntilItEndsAndWithinBounds(t *testing.T) {
	c := tokenCache{held: map[[sha256.Size]byte]*verified{}}
	end := time.Unix(1000, 0)
	name := func(i int) [sha256.Size]byte { return sha256.Sum256(fmt.Append(nil, i)) }
	v := &verified{end: end, cost: 1 << 10}
	c.put(name(0), v)
	if c.get(name(0), end.Add(-time.Nanosecond)) != v || c.get(name(0), end) != nil || c.get(name(1), time.Unix(0, 0)) != nil {
		t.Error("a token is remembered too long, or not at all")
	}
	for i := range 3 * maxCachedBytes >> 10 {
		c.put(name(i), &verified{end: end, cost: 1 << 10})
		if c.get(name(i), time.Unix(0, 0)) == nil {
			t.Fatalf("the newest, %d, is not remembered", i)
		}
	}
	if c.bytes > maxCachedBytes || len(c.held) != maxCachedBytes>>10 || c.bytes != len(c.held)<<10 {
		t.Errorf("%d tokens hold %d bytes", len(c.held), c.bytes)
	}
}

// BenchmarkRemembered is a token that comes again.
func BenchmarkRemembered(b *testing.B) {
	g := gateOf(b, "")
	h := http.Header{"Authorization": {"Bearer " + strings.Repeat("x", 700)}, "Accept": {"a"}, "User-Agent": {"b"}}
	now := time.Now()
	g.cache.put(g.find(h, "")[0].sum(), &verified{end: now.Add(time.Hour)})
	for b.Loop() {
		g.clean(h)
		if v, err := g.admit(g.find(h, "a=b"), now); v == nil || err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzToken: whatever a client writes, at most what a rule says is a token,
// and once it is removed none is left, and all else is.
func FuzzToken(f *testing.F) {
	f.Add("a=b&access_token=x&c", "c=d; access=token", "Bearer a.b.c")
	f.Add("access%5Ftoken=x;;&&=", "s=\"a\"; s=b;", "bearer")
	f.Add("&;access_token", ";s", "Basic a")
	g := gateOf(f, `, fromHeaders: [{name: authorization, prefix: "Bearer "}], fromParams: [access_token], fromCookies: [s]`)
	f.Fuzz(func(t *testing.T, query, cookie, authorization string) {
		if !isQuery(query) {
			return
		}
		h := http.Header{"Cookie": {cookie}, "Authorization": {authorization}, "X": {"y"}}
		at := target{query: query, asked: true}
		found := g.find(h, query)
		if len(found) == 0 {
			return
		}
		for _, c := range found {
			c.place.remove(h, &at)
		}
		if left := g.find(h, at.query); len(left) > 0 {
			t.Fatalf("left of ?%q, cookie %q: %q", query, cookie, left[0].token)
		}
		if h.Get("X") != "y" || !isQuery(at.query) {
			t.Fatal("something else was removed")
		}
		for pair := range strings.FieldsFuncSeq(query, func(r rune) bool { return r == '&' || r == ';' }) {
			name, _, _ := strings.Cut(pair, "=")
			if text, err := url.QueryUnescape(name); (err != nil || text != "access_token") && !strings.Contains(at.query, pair) {
				t.Fatalf("%q of ?%q is gone: ?%q", pair, query, at.query)
			}
		}
	})
}
