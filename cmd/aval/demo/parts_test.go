// This file tests the demo's parts without a server: its documents, its
// application, its processes and its directory.

package demo

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/policy"
	"github.com/aval-id/aval/proxy"
)

// newTestSite makes a site below a directory of the test's own.
func newTestSite(t *testing.T) *site {
	t.Helper()
	t.Setenv("TMPDIR", openTempDir(t))
	binary := filepath.Join(t.TempDir(), "aval")
	if err := os.WriteFile(binary, []byte("#!/bin/sh\nexec /bin/sh -c \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := newSite(binary)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(false); err != nil {
			t.Error(err)
		}
	})
	return s
}

// openTempDir is a temporary directory that every user may pass through.
func openTempDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestDocumentsAreValid(t *testing.T) {
	s := newTestSite(t)
	files, err := writePapers(s)
	if err != nil {
		t.Fatal(err)
	}
	td, err := identity.ParseTrustDomain(trustDomain)
	if err != nil {
		t.Fatal(err)
	}
	settings := policy.Settings{TrustDomain: td}
	kinds := map[string]int{}
	for _, file := range []string{files.observer, files.probe, files.services, files.policies, files.strict} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		docs, err := document.Parse(file, data)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range docs {
			var warnings []policy.Warning
			kinds[d.Key().Kind]++
			switch d.Key().Kind {
			case "Registration":
				_, err = identity.ParseRegistration(d, td)
			case "PeerAuthentication":
				_, warnings, err = policy.ParsePeerAuthentication(d, settings)
			case "AuthorizationPolicy":
				_, warnings, err = policy.ParseAuthorizationPolicy(d, settings)
			default:
				t.Fatalf("%s: kind %s", file, d.Key().Kind)
			}
			if err != nil || len(warnings) > 0 {
				t.Errorf("%s: %v %v", d.Key(), err, warnings)
			}
		}
	}
	if kinds["Registration"] != 5 || kinds["AuthorizationPolicy"] != 2 || kinds["PeerAuthentication"] != 1 {
		t.Errorf("kinds: %v", kinds)
	}
	for _, name := range serviceNames {
		if _, err := proxy.ParseConfig(name, []byte(proxyConfig(s, name))); err != nil {
			t.Error(err)
		}
	}
}

func TestServiceTellsNewFromKeptConnections(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	addresses := make([]string, 2)
	for i := range addresses {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addresses[i] = l.Addr().String()
		l.Close()
	}
	ended := make(chan error, 2)
	go func() { ended <- Service(ctx, []string{"--name", "api", "--listen", addresses[0]}) }()
	go func() {
		ended <- Service(ctx, []string{"--name", "web", "--listen", addresses[1], "--upstream", "http://" + addresses[0] + "/"})
	}()
	defer func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}()
	for _, a := range addresses {
		if err := ready(ctx, 5*time.Second, a, reach(a)); err != nil {
			t.Fatal(err)
		}
	}
	client := newApplication("test", "").fresh
	for _, c := range []struct{ path, connection string }{
		{"/", "new"}, {"/", "new"}, {"/keep", "new"}, {"/keep", "reused"}, {"/keep", "reused"},
	} {
		answer, err := ask(ctx, client, "http://"+addresses[1]+c.path)
		if err != nil {
			t.Fatal(err)
		}
		if answer.Service != "web" || answer.Upstream == nil || answer.Upstream.Service != "api" || answer.Connection != c.connection {
			t.Errorf("%s: %+v, want connection %s", c.path, *answer, c.connection)
		}
	}
}

func TestServiceSaysThatItsUpstreamIsAway(t *testing.T) {
	if err := Service(t.Context(), []string{"--name", "web"}); err == nil {
		t.Error("a service without an address ran")
	}
	a := newApplication("web", "http://127.0.0.1:1/")
	defer a.fresh.CloseIdleConnections()
	if _, err := ask(t.Context(), a.fresh, a.upstream); err == nil {
		t.Error("a port that is closed answered")
	}
}

func TestDeathOfAPartIsToldWithItsLastWords(t *testing.T) {
	s := newTestSite(t)
	ctx, fail := context.WithCancelCause(t.Context())
	defer fail(nil)
	c := newCast(s, fail)
	defer c.stop()
	if _, err := c.start("steady", "aval", os.Geteuid(), "sleep 60"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.start("weak", "aval", os.Geteuid(), "echo first; echo the disk is gone >&2; exit 3"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was told")
	}
	var stopped *Stopped
	if !errors.As(context.Cause(ctx), &stopped) {
		t.Fatalf("the cause is %v", context.Cause(ctx))
	}
	text := stopped.Error()
	for _, want := range []string{"weak", "exit status 3", "the disk is gone"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q does not name %q", text, want)
		}
	}
}

func TestSiteOfAKilledDemoIsRemoved(t *testing.T) {
	s := newTestSite(t)
	parent := filepath.Dir(s.dir)
	past := time.Now().Add(-time.Hour)
	makeOld := func(name string, lock bool) string {
		dir := filepath.Join(parent, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if lock {
			if err := os.WriteFile(filepath.Join(dir, "lock"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chtimes(dir, past, past); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	dead := makeOld(sitePrefix+"dead", true)
	foreign := makeOld(sitePrefix+"foreign", false)
	if err := os.Chtimes(s.dir, past, past); err != nil {
		t.Fatal(err)
	}
	removeStale(parent)
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the site that nobody holds is still there: %v", err)
	}
	for _, dir := range []string{s.dir, foreign} {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}
}

func TestShellLineReadsBack(t *testing.T) {
	for _, c := range []struct {
		words []string
		want  string
	}{
		{[]string{"curl", "http://127.0.0.1:1/"}, "curl http://127.0.0.1:1/"},
		{[]string{"a", "", "b c", "it's"}, `a '' 'b c' 'it'\''s'`},
	} {
		if got := shellLine(c.words); got != c.want {
			t.Errorf("%q: %s, want %s", c.words, got, c.want)
		}
	}
}

func TestChangedByteIsOneByte(t *testing.T) {
	dir := t.TempDir()
	before := []byte("serial 0123456789abcdef here")
	if err := os.WriteFile(filepath.Join(dir, "1.log"), before, 0o600); err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	if err := copyTree(copied, dir); err != nil {
		t.Fatal(err)
	}
	file, at, err := findIn(copied, []byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	if err := flipByte(file, at); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before[:at], after[:at]) || before[at] == after[at] || !bytes.Equal(before[at+1:], after[at+1:]) {
		t.Errorf("%q became %q", before, after)
	}
}

func TestUnknownOutputIsRefused(t *testing.T) {
	if err := Run(t.Context(), Options{Output: "xml"}); err == nil {
		t.Error("an output of another form was taken")
	}
}
