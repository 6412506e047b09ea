// This file holds the tests of requests that try to be read in one way by the
// policies and in another by the application.

package proxy

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/identitytest"
)

// adminRules deny what is under /admin, on the host internal.shop, and with
// two methods.
var adminRules = rules("closed", "DENY", `
  {to: [{operation: {paths: ["/admin", "/admin/*"]}}]},
  {to: [{operation: {hosts: ["internal.shop"]}}]},
  {to: [{operation: {methods: [DELETE, CONNECT, TRACE]}}]}`)

// pathBypasses are ways to say /admin that a comparison of bytes misses, with
// the answer that is due.
var pathBypasses = map[string]string{
	"/admin":                   "403",
	"/admin/x":                 "403",
	"/admin?x":                 "403",
	"//admin":                  "403",
	"/.//admin":                "403",
	"/./admin":                 "403",
	"/x/../admin":              "403",
	"/x/..//admin/":            "403",
	"/x/%2e%2e/admin":          "403",
	"/x/%2E./admin":            "403",
	"/../admin":                "403",
	"/../../admin":             "403",
	"/%61dmin":                 "403",
	"/%61%64%6d%69%6E":         "403",
	"/admin/.":                 "403",
	"/admin/y/..":              "403",
	"/admin%2Fx":               "400",
	"/admin%2fx":               "400",
	"/x%2f..%2fadmin":          "400",
	"/x/..%2fadmin":            "400",
	"/x\\..\\admin":            "400",
	"/x%5c..%5cadmin":          "400",
	"/admin%00":                "400",
	"/admin%00.html":           "400",
	"/%00/admin":               "400",
	"/admin%0d%0aX:y":          "400",
	"/admin%":                  "400",
	"/admin%zz":                "400",
	"/admin%6":                 "400",
	"/admin#x":                 "400",
	"/x#/../admin":             "400",
	"/x/..;/admin":             "400",
	"/x/..;a=b/admin":          "400",
	"/.;/admin":                "400",
	"/x?y#z":                   "400",
	"*":                        "400",
	"admin":                    "400",
	"":                         "400",
	"http://api.shop/admin":    "400",
	"http://api.shop:80/x":     "400",
	"https://internal.shop/":   "400",
	"//internal.shop/x":        "200", // a path, merged to /internal.shop/x
	"/admin;x":                 "200", // another segment, as the application sees it too
	"/Admin":                   "200", // paths have case
	"/%2561dmin":               "200", // decoded once
	"/adm%C3%ADn":              "200",
	"/x?p=/admin":              "200",
	"/x?p=/../admin&q=%2F%00":  "200",
	"/x/%2E%2E%2E/admin":       "200",
	"/administration":          "200",
	"/x/y/../z":                "200",
	"/a%20b":                   "200",
	"/a[1]":                    "200",
	"/caf\xc3\xa9":             "200",
	"/x?q=\xc3\xa9":            "200",
	"/x?":                      "200",
	"/x/":                      "200",
	"/~user/-._;,@:$&'()*+=!/": "200",
}

func TestAPathIsReadByPoliciesAsTheApplicationGetsIt(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+adminRules)
	app := newSite(t, nil)
	_, in := s.requestsTo(t, app.address(), nil)
	for path, want := range pathBypasses {
		if path == "" {
			continue
		}
		got := s.rawRequest(t, in, "GET "+path+" HTTP/1.1\r\nHost: api.shop\r\nConnection: close\r\n\r\n")
		seen := app.requests()
		if statusOf(got) != want {
			t.Errorf("%q: %q, want %s", path, statusOf(got), want)
		}
		if (want == "200") != (len(seen) == 1) {
			t.Errorf("%q: the application sees %q", path, seen)
		}
		for _, r := range seen {
			target := strings.Fields(r)[2]
			p, _, _ := strings.Cut(target, "?")
			if strings.Contains(p, "//") || strings.Contains(p, "/.") && !strings.Contains(p, "/...") || p == "/admin" || strings.HasPrefix(p, "/admin/") {
				t.Errorf("%q: the application gets %q", path, target)
			}
		}
	}
}

// TestAPathIsTheSameOverHTTP2 sends what a client of net/http would not.
func TestAPathIsTheSameOverHTTP2(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+adminRules)
	app := newSite(t, nil)
	_, in := s.requestsTo(t, app.address(), nil)
	for path, want := range pathBypasses {
		got := newFramed(t, s.dialTLS(t, in, "h2")).get(":method", "GET", ":scheme", "https", ":authority", "api.shop", ":path", path)
		seen := app.requests()
		// A target that is no path at all is refused as HTTP/2, by a reset.
		if got != want && !(want == "400" && got == "reset") {
			t.Errorf("%q: %q, want %s", path, got, want)
		}
		if (want == "200") != (len(seen) == 1) {
			t.Errorf("%q: the application sees %q", path, seen)
		}
	}
}

func TestAHostIsReadByPoliciesAsTheApplicationGetsIt(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+adminRules)
	app := newSite(t, nil)
	_, in := s.requestsTo(t, app.address(), nil)
	for host, want := range map[string]string{
		"internal.shop": "403", "INTERNAL.shop": "403", "internal.shop.": "403", "internal.shop:80": "403", "Internal.Shop.:443": "403",
		"internal.shop:": "403", "a@internal.shop": "400", "internal.shop/x": "400", "": "400", "internal.shop#": "400", "internal.shop..": "400", "internal.shop:x": "400",
		"api.shop": "200", "[::1]:80": "200", "127.0.0.1": "200",
	} {
		got := s.rawRequest(t, in, "GET / HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
		if statusOf(got) != want {
			t.Errorf("HTTP/1.1 %q: %q, want %s", host, statusOf(got), want)
		}
		two := newFramed(t, s.dialTLS(t, in, "h2")).get(":method", "GET", ":scheme", "https", ":authority", host, ":path", "/")
		if two != want && !(want == "400" && two == "reset") {
			t.Errorf("HTTP/2 %q: %q, want %s", host, two, want)
		}
	}
	app.requests()
	got := newFramed(t, s.dialTLS(t, in, "h2")).get(":method", "GET", ":scheme", "https", ":authority", "api.shop", ":path", "/", "host", "internal.shop")
	if seen := app.requests(); got == "200" || len(seen) > 0 {
		t.Errorf("two hosts: %q, the application sees %q", got, seen)
	}
}

func TestMethodsAreReadByPoliciesAsTheApplicationGetsThem(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+adminRules)
	app := newSite(t, nil)
	_, in := s.requestsTo(t, app.address(), nil)
	for method, want := range map[string]string{"DELETE": "403", "TRACE": "403", "delete": "400", "Delete": "400", "CONNECT": "400", "PRI": "400", "GE T": "400", "PURGE": "200"} {
		if got := statusOf(s.rawRequest(t, in, method+" / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")); got != want {
			t.Errorf("HTTP/1.1 %s: %q, want %s", method, got, want)
		}
		two := newFramed(t, s.dialTLS(t, in, "h2")).get(":method", method, ":scheme", "https", ":authority", "api.shop", ":path", "/")
		if two != want && !(want == "400" && two == "reset") {
			t.Errorf("HTTP/2 %s: %q, want %s", method, two, want)
		}
	}
}

// TestNothingIsSmuggled sends each of these in front of a request that is
// denied: no way of reading them lets that through.
func TestNothingIsSmuggled(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+adminRules)
	app := newSite(t, nil)
	_, in := s.requestsTo(t, app.address(), nil)
	const hidden = "GET /admin HTTP/1.1\r\nHost: a\r\n\r\n"
	for name, text := range map[string]string{
		"CL.TE":           "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 32\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
		"TE.CL":           "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n20\r\n" + hidden + "\r\n0\r\n\r\n",
		"TE.TE":           "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\nContent-Length: 4\r\n\r\n20\r\n" + hidden,
		"TE with blank":   "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 32\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + hidden,
		"TE folded":       "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 32\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + hidden,
		"CL.CL":           "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 32\r\n\r\n" + hidden,
		"CL list":         "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 32\r\n\r\n" + hidden,
		"NUL":             "POST / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n" + hidden,
		"bare LF":         "POST / HTTP/1.1\r\nHost: a\r\nX: y\nContent-Length: 32\r\n\r\n" + hidden,
		"chunk overflow":  "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\n" + hidden,
		"chunk extension": "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;\nxx\r\n20\r\n" + hidden,
		"absolute-form":   "GET http://internal.shop/ HTTP/1.1\r\nHost: a\r\n\r\n" + hidden,
		"length of a GET": "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 32\r\nConnection: close\r\n\r\n" + hidden,
		"h2c":             "GET /x HTTP/1.1\r\nHost: a\r\nConnection: close, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"after websocket": "GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + hidden,
	} {
		began := time.Now()
		answer := s.rawRequest(t, in, text)
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("%s: the connection stays open for %v after %q", name, took, answer)
		}
		for _, r := range app.requests() {
			if strings.HasSuffix(r, "/admin") {
				t.Errorf("%s: the application sees %s", name, r)
			}
		}
		if strings.Count(answer, "HTTP/1.") > 1 && name != "h2c" {
			t.Errorf("%s: more than one answer: %q", name, answer)
		}
		if strings.Contains(answer, " 101 ") {
			t.Errorf("%s: switched: %q", name, answer)
		}
	}
}

func TestAPeerOfAForeignDomainIsRefusedByRequest(t *testing.T) {
	s := newScene(t)
	other := identitytest.New(t, "other.example")
	guest := other.SVID(t, "/ns/shop/sa/web")
	s.rev++
	s.agent.put(workload{td: s.td, svid: s.api, revision: s.rev, bundles: []identity.Bundle{other.Bundle},
		policies: mode("STRICT") + rules("paths", "DENY", `{to: [{operation: {paths: ["/admin"]}}]}`)}.snapshot(t))
	app := newSite(t, nil)
	_, in := s.requestsTo(t, app.address(), nil)
	tr := &http.Transport{TLSClientConfig: s.client(guest)}
	t.Cleanup(tr.CloseIdleConnections)
	if got, _ := ask(t, &http.Client{Transport: tr}, newRequest(t, "GET", "https://"+in+"/", nil)); got != 403 {
		t.Errorf("%d", got)
	}
	s.agent.waitFor(1, reason("inbound", "wrong_trust_domain"))
}
