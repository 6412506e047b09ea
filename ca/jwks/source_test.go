// This file holds the tests of where keys may come from: every way around the
// list of hosts, and around their addresses, is tried on real sockets.

package jwks

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/aval-id/aval/identity/jwt"
	"github.com/aval-id/aval/identity/jwt/jwttest"
)

// issuer is an HTTPS server on loopback whose certificate is good for
// 127.0.0.1 and example.com.
type issuer struct {
	*httptest.Server
	ca    string // file of its root
	asked atomic.Int64
}

func newIssuer(t testing.TB, h http.HandlerFunc) *issuer {
	t.Helper()
	i := &issuer{ca: filepath.Join(t.TempDir(), "ca.pem")}
	i.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.asked.Add(1)
		h(w, r)
	}))
	i.Config.ErrorLog = nil
	i.StartTLS()
	t.Cleanup(i.Close)
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate().Raw})
	if err := os.WriteFile(i.ca, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return i
}

func (i *issuer) port() string { return i.URL[strings.LastIndexByte(i.URL, ':')+1:] }

func newSource(t testing.TB, cfg Config) *Source {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// within is the bound of a fetch in tests.
func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func serve(data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.Write(data) }
}

func TestKeysAreFetchedFromAListedHost(t *testing.T) {
	t.Parallel()
	set := jwttest.Set(t, jwttest.NewKey(t, "one", jose.ES256))
	i := newIssuer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "GET" || r.RequestURI != "/keys?v=1" || r.Header.Get("Authorization") != "" || !strings.Contains(r.Header.Get("Accept"), "application/json") {
			t.Errorf("%s %s %v", r.Method, r.RequestURI, r.Header)
		}
		w.Write(set)
	})
	s := newSource(t, Config{Allow: "other.example, 127.0.0.1:" + i.port(), CAFile: i.ca})
	keys, err := s.Fetch(within(t), i.URL+"/keys?v=1")
	if err != nil || keys.Len() != 1 || keys.IDs()[0] != "one" {
		t.Fatalf("%v, %v", keys.IDs(), err)
	}
}

// TestNobodyIsAskedWhomNobodyListed looks at the text of URIs alone.
func TestNobodyIsAskedWhomNobodyListed(t *testing.T) {
	t.Parallel()
	s := newSource(t, Config{Allow: "issuer.example issuer.example:8443,[2001:db8::1]:8443 10.0.0.7"})
	for _, c := range []struct{ uri, want string }{
		{"https://issuer.example/keys", ""},
		{"https://ISSUER.example:443/keys", ""},
		{"https://issuer.example:8443/", ""},
		{"https://[2001:DB8::1]:8443/", ""},
		{"https://10.0.0.7/", ""},
		{"https://[::ffff:10.0.0.7]/", ""},
		{"https://issuer.example:444/", "--jwks-allow issuer.example:444"},
		{"https://issuer.example.evil.example/", "--jwks-allow issuer.example.evil.example"},
		{"https://evil.example/issuer.example", "--jwks-allow evil.example"},
		{"https://issuer.example@evil.example/", "has a user in it"},
		{"https://issuer.example./", "has no host"},
		{"https://issuer.example%2eevil/", "is no URI"},
		{`https://issuer.example\.evil/`, "is no URI"},
		{"https://10.0.0.8/", "--jwks-allow 10.0.0.8"},
		{"https://[2001:db8::1]/", "--jwks-allow [2001:db8::1]"},
		{"http://issuer.example/", "is not encrypted"},
		{"gopher://issuer.example/", "is neither https:// nor file:///"},
		{"file:///etc/passwd", "--jwks-dir DIR"},
		{"", "is neither"},
	} {
		err := s.Admits(c.uri)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.uri, err, c.want)
		}
		if c.want == "" {
			continue
		}
		if _, err := s.Fetch(within(t), c.uri); err == nil {
			t.Errorf("%s was fetched", c.uri)
		}
	}
}

func TestANameOfAPrivateAddressIsNotAsked(t *testing.T) {
	t.Parallel()
	i := newIssuer(t, serve(jwttest.Set(t, jwttest.NewKey(t, "", jose.ES256))))
	uri := "https://localhost:" + i.port() + "/"
	for _, c := range []struct {
		allow string
		asked bool
	}{
		{"localhost:" + i.port(), false},
		{"localhost:" + i.port() + "=10.0.0.0/8+192.168.0.0/16", false},
		{"localhost:" + i.port() + "=127.0.0.0/8+::1", true},
	} {
		before := i.asked.Load()
		_, err := newSource(t, Config{Allow: c.allow, CAFile: i.ca}).Fetch(within(t), uri)
		switch {
		case !c.asked && !errors.Is(err, errInward):
			t.Errorf("%s: %v", c.allow, err)
		case c.asked && (err == nil || !strings.Contains(err.Error(), "certificate is valid for")):
			t.Errorf("%s: %v, want a complaint of the certificate, whose names are others", c.allow, err)
		case i.asked.Load() != before:
			t.Errorf("%s: the host was asked", c.allow)
		}
	}
}

func TestEveryAddressThatLeadsInwardIsKnown(t *testing.T) {
	t.Parallel()
	plain, wide := host{}, host{nets: prefixes("10.0.0.0/8", "fd00::/8")}
	for _, text := range []string{"0.0.0.0", "127.0.0.1", "127.255.0.1", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.0.1", "169.254.169.254",
		"100.64.0.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "::7f00:1", "fe80::1", "fc00::1", "fd12::1", "ff02::1", "fec0::1",
		"64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2001:db8::1"} {
		a := netip.MustParseAddr(text)
		if plain.admits(a) {
			t.Errorf("%s counts as public", text)
		}
		if got, want := wide.admits(a), strings.HasPrefix(a.Unmap().String(), "10.") || strings.HasPrefix(text, "fd"); got != want {
			t.Errorf("%s where 10.0.0.0/8 and fd00::/8 are listed: %v", text, got)
		}
	}
	for _, text := range []string{"1.1.1.1", "8.8.8.8", "172.32.0.1", "192.167.0.1", "2606:4700::1", "2a00:1450::1", "::ffff:1.1.1.1"} {
		if !plain.admits(netip.MustParseAddr(text)) {
			t.Errorf("%s doesn't count as public", text)
		}
	}
	if plain.admits(netip.Addr{}) {
		t.Error("no address counts as public")
	}
}

func TestARedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	inner := newIssuer(t, serve(jwttest.Set(t, jwttest.NewKey(t, "", jose.ES256))))
	for _, code := range []int{301, 302, 303, 307, 308} {
		i := newIssuer(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, inner.URL, code) })
		s := newSource(t, Config{Allow: "127.0.0.1:" + i.port() + ",127.0.0.1:" + inner.port(), CAFile: i.ca})
		if _, err := s.Fetch(within(t), i.URL); err == nil || !strings.Contains(err.Error(), "is not followed") {
			t.Errorf("%d: %v", code, err)
		}
	}
	if inner.asked.Load() > 0 {
		t.Error("a redirect was followed")
	}
}

func TestAnAnswerIsSmallSwiftAndGood(t *testing.T) {
	t.Parallel()
	stuck := make(chan struct{})
	t.Cleanup(func() { close(stuck) })
	good := jwttest.Set(t, jwttest.NewKey(t, "", jose.ES256))
	for _, c := range []struct {
		name, want string
		h          http.HandlerFunc
	}{
		{"huge", "is larger than", func(w http.ResponseWriter, _ *http.Request) {
			w.Write(good)
			chunk := []byte(strings.Repeat(" ", 64<<10))
			for range 2 * jwt.MaxKeySetBytes / len(chunk) {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}},
		{"slow", "deadline exceeded", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, `{"keys":[`)
			http.NewResponseController(w).Flush()
			select {
			case <-stuck:
			case <-r.Context().Done():
			}
		}},
		{"silent", "deadline exceeded", func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-stuck:
			case <-r.Context().Done():
			}
		}},
		{"missing", "answers 404", http.NotFound},
		{"broken", "is not a JSON object", serve([]byte("<html>"))},
		{"packed", "is not a JSON object", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write([]byte{0x1f, 0x8b, 8, 0})
		}},
		{"giant header", "exceeded", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 128<<10))
			w.Write(good)
		}},
	} {
		i := newIssuer(t, c.h)
		s := newSource(t, Config{Allow: "127.0.0.1:" + i.port(), CAFile: i.ca})
		bound := 10 * time.Second
		if strings.Contains(c.want, "deadline") {
			bound = 300 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(t.Context(), bound)
		_, err := s.Fetch(ctx, i.URL+"/secret-path")
		cancel()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "secret-path") {
			t.Errorf("%s: the error repeats the URI: %v", c.name, err)
		}
	}
}

func TestAHostIsVerified(t *testing.T) {
	t.Parallel()
	i := newIssuer(t, serve(nil))
	allow := "127.0.0.1:" + i.port()
	if _, err := newSource(t, Config{Allow: allow}).Fetch(within(t), i.URL); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("a root that the system doesn't know: %v", err)
	}
	old := &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10, Certificates: i.TLS.Certificates}
	l, err := tls.Listen("tcp", "127.0.0.1:0", old)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.NotFoundHandler(), ErrorLog: i.Config.ErrorLog}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	s := newSource(t, Config{Allow: l.Addr().String(), CAFile: i.ca})
	if _, err := s.Fetch(within(t), "https://"+l.Addr().String()); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("an old version of TLS: %v", err)
	}
}

// TestTheProxyOfTheEnvironmentIsNotUsed: it would be asked instead of the
// address that was checked.
func TestTheProxyOfTheEnvironmentIsNotUsed(t *testing.T) {
	s := newSource(t, Config{})
	if tr, ok := s.http.Transport.(*http.Transport); !ok || tr.Proxy != nil {
		t.Error("a proxy may be used")
	}
}

func TestFilesAreReadBelowTheirDirectoryAlone(t *testing.T) {
	t.Parallel()
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	set := jwttest.Set(t, jwttest.NewKey(t, "one", jose.EdDSA))
	dir := filepath.Join(base, "jwks")
	write := func(path string, data []byte) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(dir, "sub", "good.json"), set)
	write(filepath.Join(base, "outside.json"), set)
	write(filepath.Join(dir, "large.json"), []byte(strings.Repeat(" ", jwt.MaxKeySetBytes+1)))
	link := func(to, name string) {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("sub/good.json", "link.json")
	link("../outside.json", "out.json")
	link(base, "up")
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newSource(t, Config{Dir: dir})
	for _, c := range []struct{ path, want string }{
		{dir + "/sub/good.json", ""},
		{dir + "/link.json", ""},
		{dir + "/out.json", "escapes"},
		{dir + "/up/outside.json", "escapes"},
		{base + "/outside.json", "no file below"},
		{dir, "no file below"},
		{dir + "/sub", "is not a regular file"},
		{dir + "/pipe", "is not a regular file"},
		{dir + "/large.json", "is larger than"},
		{dir + "/missing.json", "no such file"},
		{dir + "-other/x", "no file below"},
	} {
		keys, err := s.Fetch(within(t), "file://"+c.path)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.path, err, c.want)
		}
		if err == nil && keys.Len() != 1 {
			t.Errorf("%s: %d keys", c.path, keys.Len())
		}
	}
}

func TestWhatIsWrongWithTheConfigurationIsSaid(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{Allow: "a, https://b"}, `allowed host "https://b"`},
		{Config{Allow: "*.example"}, `allowed host "*.example"`},
		{Config{Allow: "a@b"}, `allowed host "a@b"`},
		{Config{Allow: "a:0"}, `port "0"`},
		{Config{Allow: "a:99999"}, `port "99999"`},
		{Config{Allow: "a=10.0.0.1/8"}, `"10.0.0.1/8" is neither`},
		{Config{Allow: "a="}, `"" is neither`},
		{Config{Allow: "a=b"}, `"b" is neither`},
		{Config{Dir: file}, "is not a directory"},
		{Config{CAFile: file}, "has no certificate"},
		{Config{CAFile: file + "-missing"}, "no such file"},
	} {
		if _, err := New(c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.cfg, err, c.want)
		}
	}
}

func TestAChangeInADirectoryIsSeen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	changed := make(chan struct{}, 64)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	first := changed
	go func() { done <- Watch(ctx, dir, func() { first <- struct{}{} }) }()
	saw := func(what string) {
		t.Helper()
		select {
		case <-changed:
		case err := <-done:
			t.Fatalf("%s: the watch ended: %v", what, err)
		case <-time.After(10 * time.Second):
			t.Fatalf("%s was not seen", what)
		}
	}
	saw("the beginning")
	for i, name := range []string{"new", "keys", "keys"} {
		path := filepath.Join(dir, fmt.Sprintf("tmp%d", i))
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		saw("a new file")
		if err := os.Rename(path, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		saw("a renamed file")
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the end: %v", err)
	}
	gone := filepath.Join(dir, "gone")
	if err := os.Mkdir(gone, 0o700); err != nil {
		t.Fatal(err)
	}
	changed = make(chan struct{}, 64)
	second := changed
	go func() { done <- Watch(t.Context(), gone, func() { second <- struct{}{} }) }()
	saw("the beginning")
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if !errors.Is(err, errGone) {
			t.Errorf("a directory that went: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("a directory that went holds the watch")
	}
}

// FuzzAllow: what an entry lists is itself, and nothing with another host or
// port.
func FuzzAllow(f *testing.F) {
	f.Add("issuer.example:8443=10.0.0.0/8+::1", "https://issuer.example/")
	f.Add("[::1]", "https://[::1]:444/")
	f.Add("10.0.0.1", "https://10.0.0.1.example/")
	f.Fuzz(func(t *testing.T, entry, uri string) {
		h, err := parseHost(entry)
		if err != nil {
			return
		}
		s := Source{hosts: []host{h}}
		if s.Admits(uri) != nil {
			return
		}
		u, err := url.Parse(uri)
		if err != nil || u.Scheme != "https" || u.User != nil {
			t.Fatalf("%q admits %q", entry, uri)
		}
		name, port := target(u)
		if name != h.name || port != h.port || net.JoinHostPort(name, port) == "" {
			t.Fatalf("%q admits %q at %s port %s", entry, uri, name, port)
		}
	})
}
