// This file holds the tests of the SPIFFE ID grammar.

package identity

import (
	"strings"
	"testing"
)

func TestIDGrammar(t *testing.T) {
	good := []string{
		"spiffe://example.org", "spiffe://example.org/a", "spiffe://127.0.0.1/x", "spiffe://a_b-c.d/A.b-c_9/...x",
		"spiffe://example.org/" + strings.Repeat("a", MaxIDBytes-len("spiffe://example.org/")),
	}
	for _, s := range good {
		id, err := ParseID(s)
		if err != nil {
			t.Errorf("%.60s: %v", s, err)
			continue
		}
		if id.String() != s || id.URI().String() != s {
			t.Errorf("%.60s prints as %.60s", s, id)
		}
	}
	bad := []string{
		"", "example.org/a", "http://example.org/a", "SPIFFE://example.org/a", "spiffe://", "spiffe:///a",
		"spiffe://Example.org/a", "spiffe://ex%61mple/a", "spiffe://user@example.org/a", "spiffe://example.org:80/a",
		"spiffe://example.org/", "spiffe://example.org//a", "spiffe://example.org/a/", "spiffe://example.org/./a",
		"spiffe://example.org/../a", "spiffe://example.org/a%20b", "spiffe://example.org/a?b", "spiffe://example.org/a#b",
		"spiffe://example.org/é", "spiffe://example.org/a b", "spiffe://example.org?x", "spiffe://example.org/a\x00",
		"spiffe://example.org/" + strings.Repeat("a", MaxIDBytes-len("spiffe://example.org/")+1),
		"spiffe://" + strings.Repeat("a", 256) + "/x",
	}
	for _, s := range bad {
		if id, err := ParseID(s); err == nil {
			t.Errorf("%.60q was accepted as %.60s", s, id)
		}
	}
}

func TestServiceAccountIsNeverForgedBySegments(t *testing.T) {
	for path, want := range map[string]string{
		"/ns/shop/sa/web":             "shop/web",
		"/cluster/a/ns/shop/sa/web/x": "shop/web",
		"/web":                        "",
		"/ns/shop/sa":                 "",
		"/ns/a/sa/b/ns/c/sa/d":        "",
		"/ns/ns/sa/sa":                "ns/sa",
		"/ns/x/ns/shop/sa/web":        "shop/web",
	} {
		id, err := ParseID("spiffe://example.org" + path)
		if err != nil {
			t.Fatal(err)
		}
		ns, sa, ok := id.ServiceAccount()
		got := ns + "/" + sa
		if !ok {
			got = ""
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
}

func TestRolesFollowThePath(t *testing.T) {
	for path, want := range map[string]Role{
		"/web": RoleWorkload, "/avalon": RoleWorkload, "/aval": RoleReserved, "/aval/x": RoleReserved,
		"/aval/node/n1": RoleNode, "/aval/server/s": RoleServer, "/aval/admin/a": RoleAdmin,
		"/aval/node": RoleReserved, "/aval/node/a/b": RoleReserved, "/aval/Server/s": RoleReserved,
	} {
		id, err := ParseID("spiffe://example.org" + path)
		if err != nil {
			t.Fatal(err)
		}
		if id.Role() != want {
			t.Errorf("%s has the role %s, want %s", path, id.Role(), want)
		}
	}
	td, _ := ParseTrustDomain("example.org")
	if td.ID().Role() != 0 {
		t.Errorf("the trust domain's own ID has the role %s", td.ID().Role())
	}
	if _, err := NodeID(td, "a/b"); err == nil {
		t.Error("a node name with a slash was accepted")
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("spiffe://example.org/ns/shop/sa/web")
	f.Add("spiffe://127.0.0.1/x")
	f.Add("spiffe://a/%2e")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			return
		}
		again, err := ParseID(id.String())
		if err != nil || again != id || id.String() != s {
			t.Fatalf("%q parsed to %q, which parses to %q, %v", s, id, again, err)
		}
		if u, err := IDFromURI(id.URI()); err != nil || u != id {
			t.Fatalf("%q does not survive its URI: %v", s, err)
		}
		id.Role()
		id.ServiceAccount()
	})
}

// bySegments finds the service account the plain way, over split segments.
func bySegments(path string) (namespace, account string, ok bool) {
	segs := strings.Split(strings.TrimPrefix(path, "/"), "/")
	found := 0
	for i := 0; i+3 < len(segs); {
		if segs[i] == "ns" && segs[i+2] == "sa" {
			namespace, account = segs[i+1], segs[i+3]
			found++
			i += 4
			continue
		}
		i++
	}
	if found != 1 {
		return "", "", false
	}
	return namespace, account, true
}

func FuzzServiceAccount(f *testing.F) {
	for _, s := range []string{"/ns/a/sa/b", "/ns/a/sa/b/ns/c/sa/d", "/ns/ns/a/sa/b", "/x/ns/a/sa/b/y", "/ns/a/sa", "/ns/sa/sa/ns", "/ns/ns/sa/sa/b", "/ns/a/sa/ns/b/sa/c", "/web"} {
		f.Add(s)
	}
	td, _ := ParseTrustDomain("example.org")
	f.Fuzz(func(t *testing.T, path string) {
		id, err := td.NewID(path)
		if err != nil {
			return
		}
		ns, sa, ok := id.ServiceAccount()
		wantNS, wantSA, wantOK := bySegments(path)
		if ok != wantOK || ns != wantNS || sa != wantSA {
			t.Fatalf("%s: %q %q %v, not %q %q %v", path, ns, sa, ok, wantNS, wantSA, wantOK)
		}
	})
}

func TestServiceAccountAllocatesNothing(t *testing.T) {
	id, _ := ParseID("spiffe://example.org/ns/shop/sa/web")
	if n := testing.AllocsPerRun(100, func() { id.ServiceAccount() }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}
