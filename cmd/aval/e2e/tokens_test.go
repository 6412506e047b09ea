// This file holds the way of a token's keys: from an issuer that rotates them
// over server, agent and proxy to the verdict on real requests.

package e2e

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
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
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/cmd/aval/avaltest"
	"github.com/aval-id/aval/identity/jwt/jwttest"
)

// issuer publishes keys over HTTPS on loopback.
type issuer struct {
	*httptest.Server
	ca     string
	keys   atomic.Pointer[[]byte]
	served atomic.Pointer[time.Time] // when the present keys were first asked for
}

func newIssuer(t *testing.T, dir string) *issuer {
	t.Helper()
	i := &issuer{ca: filepath.Join(dir, "issuer-ca.pem")}
	i.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		now := time.Now()
		i.served.CompareAndSwap(nil, &now)
		w.Write(*i.keys.Load())
	}))
	i.Config.ErrorLog = log.New(io.Discard, "", 0)
	i.StartTLS()
	t.Cleanup(i.Close)
	avaltest.Must(t, os.WriteFile(i.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate().Raw}), 0o644))
	return i
}

func (i *issuer) publish(t *testing.T, keys ...jwttest.Key) {
	set := jwttest.Set(t, keys...)
	i.keys.Store(&set)
	i.served.Store(nil)
}

func (i *issuer) token(t *testing.T, key jwttest.Key) string {
	return key.Sign(t, jwttest.Claims(i.URL, time.Now(), map[string]any{"aud": "api"}), nil)
}

// tokenService answers HTTP/1.1, HTTP/2 without TLS, and gRPC.
func tokenService(t *testing.T) string {
	t.Helper()
	calls := grpc.NewServer()
	healthpb.RegisterHealthServer(calls, health.NewServer())
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	avaltest.Must(t, err)
	s := &http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			calls.ServeHTTP(w, r)
			return
		}
		fmt.Fprintf(w, "%s %q %q", r.Proto, r.Header.Get("Authorization"), r.Header.Get("X-Subject"))
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

// callers asks through web's proxy, by each protocol.
type callers struct {
	address  string
	one, two *http.Client
	calls    healthpb.HealthClient
}

func newCallers(t *testing.T, address string) *callers {
	t.Helper()
	client := func(two bool) *http.Client {
		p := new(http.Protocols)
		p.SetHTTP1(!two)
		p.SetUnencryptedHTTP2(two)
		tr := &http.Transport{Protocols: p}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr, Timeout: avaltest.Patience}
	}
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	avaltest.Must(t, err)
	t.Cleanup(func() { conn.Close() })
	return &callers{address: address, one: client(false), two: client(true), calls: healthpb.NewHealthClient(conn)}
}

// results asks three times and says what came of it, as HTTP's codes.
func (c *callers) results(t *testing.T, token string) []int {
	t.Helper()
	var out []int
	for _, client := range []*http.Client{c.one, c.two} {
		r, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+c.address+"/", nil)
		avaltest.Must(t, err)
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		res, err := client.Do(r)
		if err != nil {
			return nil
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			return nil
		}
		if res.StatusCode == 200 && !strings.HasSuffix(string(body), ` "" "alice"`) {
			t.Errorf("the application sees %s", body)
		}
		out = append(out, res.StatusCode)
	}
	ctx, cancel := context.WithTimeout(t.Context(), avaltest.Patience)
	defer cancel()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	_, err := c.calls.Check(ctx, &healthpb.HealthCheckRequest{})
	switch status.Code(err) {
	case codes.OK:
		out = append(out, 200)
	case codes.Unauthenticated:
		out = append(out, 401)
	case codes.PermissionDenied:
		out = append(out, 403)
	default:
		return nil
	}
	return out
}

var (
	taken   = []int{200, 200, 200}
	refused = []int{401, 401, 401}
	without = []int{403, 403, 403}
)

func TestTokensFollowTheKeysOfTheirIssuer(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	f := avaltest.New(t)
	i := newIssuer(t, f.Dir)
	one, two := jwttest.NewKey(t, "one", jose.ES256), jwttest.NewKey(t, "two", jose.RS256)
	i.publish(t, one)
	flags := []string{"--jwks-allow", strings.TrimPrefix(i.URL, "https://"), "--jwks-ca", i.ca, "--jwks-refresh", "1s"}
	f.StartServer(flags...)
	f.StartAgent("n1")
	in, out := avaltest.FreeAddress(t), avaltest.FreeAddress(t)
	f.Apply(fmt.Sprintf(`
apiVersion: aval.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: aval.dev/v1alpha1
kind: RequestAuthentication
metadata: {name: people, namespace: shop}
spec:
  selector: {matchLabels: {app: api}}
  jwtRules: [{issuer: %q, audiences: [api], jwksUri: %q, outputClaimToHeaders: [{header: x-subject, claim: sub}]}]
---
apiVersion: aval.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: people, namespace: shop}
spec:
  selector: {matchLabels: {app: api}}
  rules: [{from: [{source: {principals: ["example.org/ns/shop/sa/web"], requestPrincipals: ["*"]}}]}]
`, i.URL, i.URL+"/keys"))
	f.Proxy("api", fmt.Sprintf("inbound: [{listen: %q, forward: %q, port: 8080}]\n", in, tokenService(t)))
	f.Proxy("web", fmt.Sprintf("outbound: [{listen: %q, dial: %q, id: spiffe://example.org/ns/shop/sa/api}]\n", out, in))
	f.Reachable(in)
	f.Reachable(out)
	c := newCallers(t, out)
	first, second := i.token(t, one), i.token(t, two)
	becomes := func(what, token string, want []int) {
		t.Helper()
		f.Await(what, func() bool { return slices.Equal(c.results(t, token), want) })
	}
	becomes("a token by the first key is valid", first, taken)
	becomes("one by a key that isn't published is not", second, refused)
	becomes("no token is no reason but for the policy", "", without)

	i.publish(t, one, two)
	becomes("a new key's token is valid", second, taken)
	if took := time.Since(*i.served.Load()); took > 5*time.Second {
		t.Errorf("keys took %v from the issuer's answer to the proxy", took)
	} else {
		t.Logf("keys took at most %v from the issuer's answer to the proxy", took)
	}
	if got := c.results(t, first); !slices.Equal(got, taken) {
		t.Errorf("the old key's token, still published: %v", got)
	}
	i.publish(t, two)
	becomes("a withdrawn key's token is not", first, refused)

	// Neither the issuer's nor the server's absence takes the last keys away.
	i.Close()
	f.Await("the server says that the keys are stale", func() bool {
		return strings.Contains(string(f.Aval("get", "requestauthentications", "-n", "shop")), "1 key, stale since")
	})
	if got := c.results(t, second); !slices.Equal(got, taken) {
		t.Errorf("without the issuer: %v", got)
	}
	f.Server.Stop()
	if got := c.results(t, second); !slices.Equal(got, taken) {
		t.Errorf("without the server: %v", got)
	}
	f.StartServer(flags...)
	if got := c.results(t, second); !slices.Equal(got, taken) {
		t.Errorf("with a new server: %v", got)
	}
	stdout, _, code := f.Run(nil, "check", "--socket", f.Socket)
	if !strings.Contains(string(stdout), "1 key, last fetched") || code != 0 {
		t.Errorf("check: exit %d\n%s", code, stdout)
	}
	f.Await("refusals and keys are recorded", func() bool {
		var reasons []string
		for _, e := range f.Entries("request", "issuer_keys") {
			reasons = append(reasons, fmt.Sprint(e["kind"], " ", e["reason"]))
		}
		return slices.Contains(reasons, "request token_invalid") && slices.Contains(reasons, "issuer_keys <nil>")
	})
	searchFor(t, f.Dir, first[strings.LastIndexByte(first, '.')+1:])
}

// searchFor looks for a secret in all that the fleet has written.
func searchFor(t *testing.T, dir, secret string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(secret)) {
			t.Errorf("a token is in %s", path)
		}
		return err
	})
	avaltest.Must(t, err)
}
