// This file holds the tests of a request's head: what is removed, what is
// added, and the trace context.

package request

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func FuzzTraceParent(f *testing.F) {
	for _, s := range []string{"", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
		"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "00-00000000000000000000000000000000-00f067aa0ba902b7-01"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h := http.Header{traceParent: {s}}
		id := traceOf(h)
		if len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" || strings.Trim(id, "0") == "" {
			t.Errorf("trace ID %q of %q", id, s)
		}
		if got := h[traceParent]; len(got) != 1 || !validTraceParent(got[0]) {
			t.Errorf("%q becomes %q", s, got)
		}
	})
}

// FuzzTarget looks for a target whose canonical form is not read back as it
// is, or is another one the second time.
func FuzzTarget(f *testing.F) {
	for _, s := range []string{"/", "/a?b", "/%61?", "//x/../y", "/a;b?c=%00", "*", "/[x]", "/\xff", "/a%20b?c d"} {
		f.Add(s, "api.shop:80")
	}
	f.Add("/", "[::1]:80")
	f.Add("/", "A.shop.")
	f.Add("/", "internal.shop..")
	f.Fuzz(func(t *testing.T, uri, host string) {
		first, err := canonicalTarget(&http.Request{Method: "OPTIONS", RequestURI: uri, Host: host})
		if err != nil {
			return
		}
		sent := first.url("app:80").RequestURI()
		again, err := canonicalTarget(&http.Request{Method: "OPTIONS", RequestURI: sent, Host: first.host})
		if err != nil || again != first {
			t.Fatalf("%q at %q is sent as %q at %q, which is %+v, %v", uri, host, sent, first.host, again, err)
		}
		if first.path == "*" {
			return
		}
		u, err := url.ParseRequestURI(sent)
		if err != nil {
			t.Fatalf("%q is sent as %q: %v", uri, sent, err)
		}
		for _, bad := range []string{"//", "/../", "/./", "\x00", "\\"} {
			if strings.Contains(u.Path, bad) {
				t.Fatalf("%q is read as %q", uri, u.Path)
			}
		}
	})
}

func TestFieldsOfOneHopAreNotForwarded(t *testing.T) {
	h := http.Header{"Connection": {"close, X-Drop", "x-drop-too"}, "X-Drop": {"1"}, "X-Drop-Too": {"1"}, "Keep-Alive": {"1"}, "Te": {"gzip, trailers"},
		"Upgrade": {"h2c"}, "Http2-Settings": {"x"}, "Proxy-Authorization": {"x"}, "X-Keep": {"1"}, "Host": {"a"}, "Accept": {"b"}}
	cleanHead(h, false)
	for name := range h {
		switch name {
		case "X-Keep", "Accept", "Te", "User-Agent":
		default:
			t.Errorf("%s is forwarded", name)
		}
	}
	if h.Get("Te") != "trailers" {
		t.Errorf("te: %q", h["Te"])
	}
}

func TestLimitsAreChecked(t *testing.T) {
	for _, l := range []Limits{{HeaderBytes: 1}, {HeaderBytes: 2 << 20}, {HeaderFields: 1}, {HeaderFields: 20_000}, {Streams: -1}, {Streams: 20_000}, {HeaderTimeout: -1}, {IdleTimeout: -1}} {
		if l.Check() == nil {
			t.Errorf("%+v is taken", l)
		}
	}
	if _, err := New(Config{}); err == nil {
		t.Error("a server without a house")
	}
}
