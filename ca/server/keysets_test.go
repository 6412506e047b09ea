// This file holds the tests of issuers' keys: who may be asked, how keys
// reach nodes, and that the last good ones stay.

package server

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca/jwks"
	"github.com/aval-id/aval/identity/jwt"
	"github.com/aval-id/aval/identity/jwt/jwttest"
	"github.com/aval-id/aval/identity/wire"
)

func tokens(ns, name, uri string) []byte {
	return fmt.Appendf(nil, `{"apiVersion":"aval.dev/v1alpha1","kind":"RequestAuthentication","metadata":{"name":%q,"namespace":%q},"spec":{"jwtRules":[{"issuer":"https://issuer.example.org","audiences":["api"],"jwksUri":%q}]}}`, name, ns, uri)
}

// publisher is an issuer's HTTPS server on loopback.
type publisher struct {
	*httptest.Server
	ca   string
	keys atomic.Pointer[[]byte] // nil answers 503
}

func newPublisher(t testing.TB) *publisher {
	t.Helper()
	p := &publisher{ca: filepath.Join(t.TempDir(), "ca.pem")}
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if keys := p.keys.Load(); keys != nil {
			w.Write(*keys)
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	p.Config.ErrorLog = log.New(io.Discard, "", 0)
	p.StartTLS()
	t.Cleanup(p.Close)
	if err := os.WriteFile(p.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *publisher) publish(t testing.TB, keys ...jwttest.Key) {
	set := jwttest.Set(t, keys...)
	p.keys.Store(&set)
}

func (p *publisher) uri() string { return p.URL + "/keys" }

// sources is a configuration that asks the publisher each second.
func (p *publisher) sources(dir string) Config {
	cfg := testConfig(dir)
	cfg.KeySources = jwks.Config{Allow: strings.TrimPrefix(p.URL, "https://"), CAFile: p.ca}
	cfg.KeysRefresh = time.Second
	return cfg
}

// nextKeys waits for a key set that has these IDs; none means that it is gone.
func (s *stream) nextKeys(t testing.TB, ids ...string) *wire.KeySet {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		select {
		case set := <-s.keySets:
			var got []string
			if len(set.GetKeys()) > 0 {
				got = must(jwt.ParseKeys(set.GetKeys())).IDs()
			}
			if slices.Equal(got, ids) {
				return set
			}
		case err := <-s.ended:
			t.Fatalf("stream ended: %v", err)
		case <-timeout:
			t.Fatalf("keys %v did not come", ids)
		}
	}
}

// keyState waits until the server stands with its one source as ok says.
func (r *running) keyState(t testing.TB, what string, ok func(*wire.KeySetState) bool) *wire.KeySetState {
	t.Helper()
	timeout := time.After(10 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		st := must(r.admin.ServerStatus(t.Context(), &wire.ServerStatusRequest{}))
		if sets := st.GetKeySets(); len(sets) == 1 && ok(sets[0]) {
			return sets[0]
		}
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("never: %s; %v", what, st.GetKeySets())
		}
	}
}

func TestKeysAreFetchedOnlyFromWhereTheOperatorSays(t *testing.T) {
	cfg := testConfig(shortDir(t))
	cfg.KeySources = jwks.Config{Allow: "issuer.example.org"}
	r := start(t, cfg)
	for uri, want := range map[string]string{
		"https://other.example.org/keys":      "spec.jwtRules[0].jwksUri: is at a host that this server does not fetch keys from; start it with --jwks-allow other.example.org",
		"https://issuer.example.org:444/keys": "--jwks-allow issuer.example.org:444",
		"http://issuer.example.org/keys":      "spec.jwtRules[0].jwksUri: is not encrypted",
		"file:///etc/keys.json":               "--jwks-dir DIR",
	} {
		_, err := r.admin.Apply(t.Context(), &wire.ApplyRequest{Documents: [][]byte{tokens("shop", "jwt", uri)}, DryRun: true})
		wantCode(t, err, codes.InvalidArgument, want)
	}
	r.admin.Apply(t.Context(), &wire.ApplyRequest{Documents: [][]byte{tokens("shop", "jwt", "https://issuer.example.org/keys")}, DryRun: true})
}

func TestNewKeysReachTheNodesThatNeedThem(t *testing.T) {
	p := newPublisher(t)
	one, two := jwttest.NewKey(t, "one", jose.ES256), jwttest.NewKey(t, "two", jose.ES256)
	p.publish(t, one)
	r := start(t, p.sources(shortDir(t)))
	r.apply(t, registration("shop", "web", "/web", ""), tokens("shop", "jwt", p.uri()))
	near, far := r.join(t, "near", nil).sync(t), r.join(t, "far", nil)
	near.nextKeys(t, "one")
	waitEvent(t, r.authorityLog, "the first keys", func(e audit.Event) bool {
		return e.Kind == audit.KindIssuerKeys && strings.Contains(e.Detail, p.uri()+": one") && e.DocumentSHA256 != ""
	})
	// Who comes later gets document and keys together.
	late := far.sync(t)
	if got := late.names(); !slices.Contains(got, "RequestAuthentication shop/jwt") {
		t.Fatalf("the node holds %v", got)
	}
	select {
	case set := <-late.keySets:
		if got := must(jwt.ParseKeys(set.GetKeys())).IDs(); set.GetUri() != p.uri() || !slices.Equal(got, []string{"one"}) {
			t.Errorf("keys %v of %s", got, set.GetUri())
		}
	default:
		t.Error("the keys did not come with their document")
	}
	p.publish(t, one, two)
	near.nextKeys(t, "one", "two")
	late.nextKeys(t, "one", "two")
	// What fails leaves the last good ones, and is said.
	p.keys.Store(nil)
	st := r.keyState(t, "a fetch fails", func(st *wire.KeySetState) bool { return st.GetError() != "" })
	if st.GetKeys() != 2 || !strings.Contains(st.GetError(), "503") || st.GetFetched() == 0 || !slices.Equal(st.GetDocuments(), []string{"shop/jwt"}) || !slices.Equal(st.GetKeyIds(), []string{"one", "two"}) {
		t.Errorf("%v", st)
	}
	p.publish(t, two)
	near.nextKeys(t, "two")
	r.keyState(t, "it is well again", func(st *wire.KeySetState) bool { return st.GetError() == "" && st.GetKeys() == 1 })
	// Without a document that names them they go.
	must(r.admin.Delete(t.Context(), &wire.DeleteRequest{Keys: []*wire.ResourceKey{{Kind: "RequestAuthentication", Namespace: "shop", Name: "jwt"}}}))
	near.nextKeys(t)
	timeout := time.After(10 * time.Second)
	for entries, _, err := r.store.Scan(prefixKeySet, 0); len(entries) > 0 || err != nil; entries, _, err = r.store.Scan(prefixKeySet, 0) {
		select {
		case <-timeout:
			t.Fatalf("%d sets are stored that nobody names, %v", len(entries), err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func TestTheLastGoodKeysOutliveARestart(t *testing.T) {
	p := newPublisher(t)
	p.publish(t, jwttest.NewKey(t, "one", jose.ES256))
	cfg := p.sources(shortDir(t))
	r := start(t, cfg)
	r.apply(t, registration("shop", "web", "/web", ""), tokens("shop", "jwt", p.uri()))
	r.keyState(t, "keys are there", func(st *wire.KeySetState) bool { return st.GetKeys() == 1 })
	r.stop()
	p.keys.Store(nil)
	cfg.KeySources.Allow = "" // what was accepted once is not refused at a start
	r = start(t, cfg)
	r.join(t, "one", nil).sync(t).nextKeys(t, "one")
	st := r.keyState(t, "a fetch fails", func(st *wire.KeySetState) bool { return st.GetError() != "" })
	if st.GetKeys() != 1 || !strings.Contains(st.GetError(), "--jwks-allow") {
		t.Errorf("%v", st)
	}
}

func TestNoRecordNoNewKeys(t *testing.T) {
	p := newPublisher(t)
	p.publish(t, jwttest.NewKey(t, "one", jose.ES256))
	s := must(New(p.sources(shortDir(t))))
	recorder := &faulty{Recorder: s.authorityLog}
	s.setRecorder(recorder)
	r := run(t, s)
	r.apply(t, registration("shop", "web", "/web", ""), tokens("shop", "jwt", p.uri()))
	node := r.join(t, "one", nil).sync(t)
	node.nextKeys(t, "one")
	recorder.set(fmt.Errorf("test: %w", audit.ErrDiskFull))
	p.publish(t, jwttest.NewKey(t, "two", jose.ES256))
	st := r.keyState(t, "the record fails", func(st *wire.KeySetState) bool { return st.GetError() != "" })
	if !slices.Equal(st.GetKeyIds(), []string{"one"}) || !strings.Contains(st.GetError(), "record of new keys") {
		t.Errorf("%v", st)
	}
	select {
	case set := <-node.keySets:
		t.Errorf("keys went out without their record: %s", set.GetKeys())
	default:
	}
	recorder.set(nil)
	node.nextKeys(t, "two")
}

// replace writes a file as careful writers do.
func replace(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestAFileOfKeysIsReadAgainWhenItChanges(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "jwks", "issuer.json")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(dir)
	cfg.KeySources.Dir, cfg.KeysRefresh = filepath.Dir(path), 24*time.Hour
	r := start(t, cfg)
	r.apply(t, registration("shop", "web", "/web", ""), tokens("shop", "jwt", "file://"+path))
	node := r.join(t, "one", nil).sync(t)
	r.keyState(t, "the file is missing", func(st *wire.KeySetState) bool { return strings.Contains(st.GetError(), "no such file") })
	replace(t, path, jwttest.Set(t, jwttest.NewKey(t, "one", jose.ES256)))
	node.nextKeys(t, "one")
	replace(t, path, jwttest.Set(t, jwttest.NewKey(t, "two", jose.ES256)))
	node.nextKeys(t, "two")
	replace(t, path, []byte("half a fi"))
	r.keyState(t, "the file is broken", func(st *wire.KeySetState) bool { return st.GetError() != "" && st.GetKeys() == 1 })
}

// TestAKilledServerHasWholeKeys kills a server while it takes new keys. The
// next one has the old or the new set without its source, and a record of it.
func TestAKilledServerHasWholeKeys(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	path := filepath.Join(dir, "jwks", "issuer.json")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	v, port := &victim{cfg: testConfig(dir)}, freePort(t)
	rounds, last := 8, ""
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		if err := os.Remove(path); err != nil && round > 0 {
			t.Fatal(err)
		}
		v.start(t, dir, port)
		r := &running{Server: &Server{nodeListener: fixedAddr(v.address)}, admin: v.admin}
		must(v.admin.ServerStatus(t.Context(), &wire.ServerStatusRequest{}, grpc.WaitForReady(true)))
		if round == 0 {
			r.apply(t, tokens("shop", "jwt", "file://"+path))
		}
		r.keyState(t, "the file is missed", func(st *wire.KeySetState) bool {
			if round == 0 || st.GetError() == "" {
				return st.GetError() != ""
			}
			got, old, young := strings.Join(st.GetKeyIds(), " "), fmt.Sprint("round", round-2), fmt.Sprint("round", round-1)
			if got != young && got != old && got != last {
				t.Fatalf("after round %d the keys are %q", round-1, got)
			}
			last = got
			return true
		})
		replace(t, path, jwttest.Set(t, jwttest.NewKey(t, fmt.Sprint("round", round), jose.ES256)))
		timer := time.NewTimer(rand.N(30 * time.Millisecond))
		<-timer.C
		v.kill()
	}
	r := start(t, func() Config { cfg := v.cfg; cfg.KeySources.Dir = filepath.Dir(path); return cfg }())
	st := r.keyState(t, "the newest keys", func(st *wire.KeySetState) bool { return st.GetError() == "" && st.GetKeys() == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	waitEvent(t, r.authorityLog, "a record of the keys in force", func(e audit.Event) bool {
		return ctx.Err() == nil && e.Kind == audit.KindIssuerKeys && strings.HasSuffix(e.Detail, ": "+st.GetKeyIds()[0])
	})
}
