// This file tests the canonical forms by a corpus of what clients and
// attackers send.

package policy

import (
	"strings"
	"testing"
)

var pathCorpus = []struct{ target, want string }{ // "" means refused
	{"/", "/"}, {"/a/b", "/a/b"}, {"/a/b/", "/a/b/"}, {"*", "*"},
	{"/a?b=/../c", "/a"}, {"/?", "/"}, {"/a?%zz", "/a"},
	{"//", "/"}, {"//a//b///c", "/a/b/c"}, {"/a//", "/a/"},
	{"/.", "/"}, {"/..", "/"}, {"/a/.", "/a/"}, {"/a/..", "/"}, {"/a/./b", "/a/b"}, {"/a/../b", "/b"},
	{"/../../a", "/a"}, {"/a/b/../../../c", "/c"}, {"/a/b/..", "/a/"}, {"/a//../b", "/b"},
	{"/%2e%2e/a", "/a"}, {"/a/%2E/b", "/a/b"}, {"/a/.%2e/b", "/b"}, {"/.hidden", "/.hidden"}, {"/a/...", "/a/..."}, {"/..a/b", "/..a/b"},
	{"/%61%2D%7e", "/a-~"}, {"/a%20b", "/a%20b"}, {"/%c3%a9", "/%C3%A9"}, {"/\u00e9", "/%C3%A9"}, {"/%3a", "/%3A"}, {"/a%25b", "/a%25b"}, {"/%252e%252e/a", "/%252e%252e/a"},
	{"/a\"b", "/a%22b"}, {"/{a}", "/%7Ba%7D"}, {"/a|b", "/a%7Cb"},
	{"/a;b=c/d", "/a;b=c/d"}, {"/a;b=../d", "/a;b=../d"}, {"/a,b:c@d!$&'()*+=", "/a,b:c@d!$&'()*+="},
	{"/a/..;/b", ""}, {"/..;x=y/b", ""}, {"/.;/b", ""}, {"/%2e%2e;/b", ""},
	{"/a%2Fb", ""}, {"/a%2fb", ""}, {"/a%5Cb", ""}, {"/a%5cb", ""}, {"/a\\b", ""}, {"/..\\a", ""},
	{"/a%00", ""}, {"/a%00.png", ""}, {"/a\x00b", ""}, {"/a%0d%0aX:y", ""}, {"/a\r\n", ""}, {"/a%7f", ""}, {"/a\tb", ""}, {"/a%09", ""},
	{"/a b", ""}, {"/a#b", ""}, {"/#", ""}, {"/%", ""}, {"/%2", ""}, {"/%zz", ""}, {"/%u002e", ""},
	{"", ""}, {"a", ""}, {"?a", ""}, {"http://a/b", ""}, {"**", ""}, {"*/a", ""}, {"\\a", ""},
}

func TestPathsHaveOneForm(t *testing.T) {
	for _, c := range pathCorpus {
		got, err := CanonicalPath(c.target)
		if (err == nil) != (c.want != "") || got != c.want {
			t.Errorf("%q is %q, %v, not %q", c.target, got, err, c.want)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "path ") {
			t.Errorf("%v does not say that it is about the path", err)
		}
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = CanonicalPath("/api/v1/items;a=b?q") }); n != 0 {
		t.Errorf("%v allocations for a path that is canonical", n)
	}
}

func FuzzCanonicalPath(f *testing.F) {
	for _, c := range pathCorpus {
		f.Add(c.target)
	}
	f.Fuzz(func(t *testing.T, target string) {
		path, err := CanonicalPath(target)
		if err != nil {
			return
		}
		again, err := CanonicalPath(path)
		if err != nil || again != path {
			t.Fatalf("%q becomes %q, which becomes %q, %v", target, path, again, err)
		}
		if path == "*" {
			return
		}
		for segment := range strings.SplitSeq(strings.TrimSuffix(path[1:], "/"), "/") {
			if name, _, _ := strings.Cut(segment, ";"); path != "/" && (segment == "" || name == "." || name == "..") {
				t.Fatalf("%q keeps the segment %q", path, segment)
			}
		}
		if strings.ContainsAny(path, "\\?# \x00\x7f") {
			t.Fatalf("%q keeps what is read differently", path)
		}
	})
}

func TestHostsHaveOneForm(t *testing.T) {
	for _, c := range []struct{ host, want string }{
		{"api", "api"}, {"API.Shop", "api.shop"}, {"api:8080", "api"}, {"api:", "api"}, {"api.", "api"}, {"API.:443", "api"}, {"a_b-c.d", "a_b-c.d"},
		{"10.0.0.1:80", "10.0.0.1"}, {"[::1]", "[::1]"}, {"[::1]:80", "[::1]"}, {"[0:0::1]:80", "[::1]"}, {"[FE80::A]", "[fe80::a]"},
		{"", ""}, {".", ""}, {":80", ""}, {"api:x", ""}, {"api:0", ""}, {"api:99999", ""}, {"api:80:80", ""}, {"api:080", ""}, {"::1", ""}, {"a..b", ""}, {"a..", ""}, {".a", ""}, {"[::1", ""}, {"[::1]x", ""}, {"[::1]80", ""},
		{"[1.2.3.4]", ""}, {"[fe80::1%eth0]", ""}, {"user@api", ""}, {"a b", ""}, {"a/b", ""}, {"a\x00b", ""}, {"a,b", ""}, {"a%2eb", ""}, {"é", ""}, {strings.Repeat("a", 256), ""},
	} {
		got, err := CanonicalHost(c.host)
		if (err == nil) != (c.want != "") || got != c.want {
			t.Errorf("%q is %q, %v, not %q", c.host, got, err, c.want)
		}
	}
}

func FuzzCanonicalHost(f *testing.F) {
	for _, s := range []string{"api:80", "[::1]:80", "A.", "a..", "1.2.3.4"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, host string) {
		name, err := CanonicalHost(host)
		if err != nil {
			return
		}
		if again, err := CanonicalHost(name); err != nil || again != name {
			t.Fatalf("%q becomes %q, which becomes %q, %v", host, name, again, err)
		}
	})
}
