// This file holds the tests of tokens in requests: whose are taken, what is
// answered, and what the application gets to see.

package proxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/jwt/jwttest"
	"github.com/aval-id/aval/identity/wire"
)

const tokenIssuer = "https://issuer.example.org"

// authentication is a RequestAuthentication of the workload's namespace with
// one rule.
func authentication(rest string) string {
	return fmt.Sprintf(`
---
apiVersion: aval.dev/v1alpha1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec: {jwtRules: [{issuer: %s%s}]}
`, tokenIssuer, rest)
}

// inline is authentication with the keys in the document.
func inline(t testing.TB, key jwttest.Key, rest string) string {
	return authentication(fmt.Sprintf(", jwks: '%s'%s", jwttest.Set(t, key), rest))
}

// readers lets those read that have a token, and everybody look at /open.
var readers = rules("readers", "ALLOW", `
  {to: [{operation: {paths: ["/open"]}}]},
  {from: [{source: {requestPrincipals: ["`+tokenIssuer+`/*"]}}], to: [{operation: {paths: ["/read"]}}]},
  {to: [{operation: {paths: ["/write"]}}], when: [{key: "request.auth.claims[groups]", values: [editors]}]}`)

func good(t testing.TB, key jwttest.Key, changes map[string]any) string {
	return key.Sign(t, jwttest.Claims(tokenIssuer, time.Now(), changes), nil)
}

func TestClaimsOfAValidTokenDecideAndAMissingOnePasses(t *testing.T) {
	s := newScene(t)
	key := jwttest.NewKey(t, "one", jose.ES256)
	s.publish(t, mode("STRICT")+readers+inline(t, key, ""))
	app := newSite(t, nil)
	_, in := s.requestsTo(t, app.address(), nil)
	token, editor := good(t, key, nil), good(t, key, map[string]any{"groups": []string{"readers", "editors"}})
	both(t, func(t *testing.T, two bool) {
		c := s.httpClient(t, in, s.web, two)
		for _, tt := range []struct {
			path, authorization string
			want                int
		}{
			{"/open", "", 200}, {"/read", "", 403}, {"/write", "", 403},
			{"/open", "Bearer " + token, 200}, {"/read", "Bearer " + token, 200}, {"/write", "Bearer " + token, 403},
			{"/read", "bearer  " + editor, 200}, {"/write", "BEARER " + editor, 200},
			{"/open", "Basic YTpi", 200}, {"/read", "Basic YTpi", 403},
			{"/read?access_token=" + token, "", 200}, {"/read?a=b&access%5Ftoken=" + token + "&c", "", 200},
			{"/open", "Bearer", 401}, {"/open", "Bearer x", 401}, {"/open?access_token=", "", 401},
		} {
			r := newRequest(t, "GET", "https://"+in+tt.path, nil)
			if tt.authorization != "" {
				r.Header.Set("Authorization", tt.authorization)
			}
			if got, _ := ask(t, c, r); got != tt.want {
				t.Errorf("%.30s %.12s: %d, want %d", tt.path, tt.authorization, got, tt.want)
			}
		}
	})
	for _, seen := range app.requests() {
		if strings.Contains(seen, "token") {
			t.Errorf("a token reaches the application: %.60s", seen)
		}
	}
}

func TestABadTokenIs401WithoutAWordAndRecorded(t *testing.T) {
	s := newScene(t)
	key, other := jwttest.NewKey(t, "one", jose.ES256), jwttest.NewKey(t, "one", jose.ES256)
	s.publish(t, mode("STRICT")+readers+inline(t, key, ", audiences: [api]"))
	app := newSite(t, nil)
	var log, access lines
	_, in := s.requestsTo(t, app.address(), func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		c.AccessLog, c.AccessWriter = true, &access
	})
	now := time.Now()
	api := map[string]any{"aud": "api"}
	valid := good(t, key, api)
	signature := valid[strings.LastIndexByte(valid, '.')+1:]
	cases := []struct {
		name   string
		header http.Header
		query  string
		detail string
	}{
		{"garbage", http.Header{"Authorization": {"Bearer a.b.c"}}, "", "JWS"},
		{"another key", http.Header{"Authorization": {"Bearer " + good(t, other, api)}}, "", "no key"},
		{"another issuer", http.Header{"Authorization": {"Bearer " + key.Sign(t, jwttest.Claims("https://other", now, api), nil)}}, "", "another issuer"},
		{"another audience", http.Header{"Authorization": {"Bearer " + good(t, key, map[string]any{"aud": "web"})}}, "", "another audience"},
		{"no audience", http.Header{"Authorization": {"Bearer " + good(t, key, nil)}}, "", "another audience"},
		{"expired", http.Header{"Authorization": {"Bearer " + good(t, key, map[string]any{"aud": "api", "exp": now.Add(-2 * time.Minute).Unix()})}}, "", "expired"},
		{"early", http.Header{"Authorization": {"Bearer " + good(t, key, map[string]any{"aud": "api", "nbf": now.Add(time.Hour).Unix()})}}, "", "not valid yet"},
		{"without end", http.Header{"Authorization": {"Bearer " + good(t, key, map[string]any{"aud": "api", "exp": nil})}}, "", "no exp"},
		{"giant", http.Header{"Authorization": {"Bearer " + good(t, key, map[string]any{"aud": "api", "x": strings.Repeat("x", 14<<10)})}}, "", "too large"},
		{"one token in two places", http.Header{"Authorization": {"Bearer " + valid}}, "?access_token=" + valid, "more than one"},
		{"two headers", http.Header{"Authorization": {"Bearer " + valid, "Bearer " + valid}}, "", "more than one"},
		{"another way beside it", http.Header{"Authorization": {"Bearer " + valid, "Basic YTpi"}}, "", "more than one"},
		{"two in one header", http.Header{"Authorization": {"Bearer " + valid + ", Bearer " + valid}}, "", "JWS"},
		{"two parameters", nil, "?access_token=" + valid + "&access_token=" + valid, "more than one"},
		{"one after a semicolon", nil, "?access_token=" + valid + ";access_token=" + valid, "more than one"},
	}
	both(t, func(t *testing.T, two bool) {
		c := s.httpClient(t, in, s.web, two)
		for _, tt := range cases {
			r := newRequest(t, "GET", "https://"+in+"/open"+tt.query, nil)
			maps.Copy(r.Header, tt.header)
			res, err := c.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			body := new(bytes.Buffer)
			body.ReadFrom(res.Body)
			res.Body.Close()
			if res.StatusCode != 401 || res.Header.Get("Www-Authenticate") != `Bearer error="invalid_token"` || body.String() != "Unauthorized\n" {
				t.Errorf("%s: %s %v %q", tt.name, res.Status, res.Header, body)
			}
		}
	})
	if seen := app.requests(); len(seen) > 0 {
		t.Errorf("the application sees %v", seen)
	}
	for _, tt := range cases {
		e := s.agent.waitFor(1, func(e audit.Event) bool {
			return e.Reason == audit.ReasonTokenInvalid && strings.Contains(e.Detail, tt.detail)
		})[0]
		if e.Verdict != audit.VerdictDenied || e.Policy != "" || e.ClientID != s.web.ID.String() || e.Path != "/open" {
			t.Errorf("%s: record %+v", tt.name, e)
		}
	}
	if both := log.String() + access.String(); strings.Contains(both, signature) || !strings.Contains(both, "token refused") || !strings.Contains(both, `"status":401`) {
		t.Error("a token is in a log, or its refusal is in none")
	}
}

func TestWhatIsSaidOfATokenComesFromAValidOneAlone(t *testing.T) {
	s := newScene(t)
	key := jwttest.NewKey(t, "one", jose.EdDSA)
	const outputs = ", outputPayloadToHeader: x-payload, outputClaimToHeaders: [{header: x-subject, claim: sub}, {header: x-level, claim: realm.level}, {header: x-url, claim: 'https://a.example/b'}, {header: x-groups, claim: groups}]"
	type told struct{ header, trailer http.Header }
	seen := make(chan told, 1)
	app := newSite(t, func(_ http.ResponseWriter, r *http.Request) {
		new(bytes.Buffer).ReadFrom(r.Body)
		seen <- told{r.Header.Clone(), r.Trailer.Clone()}
	})
	token := good(t, key, map[string]any{"realm": map[string]any{"level": 7}, "https://a.example/b": true, "groups": []string{"a"}})
	payload := strings.Split(token, ".")[1]
	for _, forward := range []bool{false, true} {
		s.publish(t, mode("STRICT")+allow("example.org"+webPath)+inline(t, key, fmt.Sprintf("%s, forwardOriginalToken: %v", outputs, forward)))
		_, in := s.requestsTo(t, app.address(), nil)
		both(t, func(t *testing.T, two bool) {
			c := s.httpClient(t, in, s.web, two)
			for _, authorization := range []string{"", "Bearer " + token} {
				r := newRequest(t, "POST", "https://"+in+"/", struct{ *strings.Reader }{strings.NewReader("body")})
				r.ContentLength = -1
				r.Trailer = http.Header{"X-Subject": {"mallory"}, "X-Sum": {"1"}}
				for _, name := range []string{"X-Payload", "X_Payload", "X-Subject", "X_subject", "X-Level", "X-Url", "X-Groups"} {
					r.Header[name] = []string{"mallory"}
				}
				if authorization != "" {
					r.Header.Set("Authorization", authorization)
				}
				if code, _ := ask(t, c, r); code != 200 {
					t.Fatalf("%d", code)
				}
				got := <-seen
				want := map[string]string{"X-Payload": "", "X_payload": "", "X-Subject": "", "X-Level": "", "X-Url": "", "X-Groups": "", "Authorization": ""}
				if authorization != "" {
					want["X-Payload"], want["X-Subject"], want["X-Level"], want["X-Url"] = payload, "alice", "7", "true"
					if forward {
						want["Authorization"] = authorization
					}
				}
				for name, value := range want {
					if got.header.Get(name) != value {
						t.Errorf("forward %v, token %v: %s is %.40q, want %.40q", forward, authorization != "", name, got.header.Get(name), value)
					}
				}
				if len(got.trailer["X-Subject"]) > 0 || got.trailer.Get("X-Sum") != "1" || strings.Contains(fmt.Sprint(got.header), "mallory") {
					t.Errorf("what a client says arrives: %v, trailer %v", got.header, got.trailer)
				}
			}
		})
	}
}

func TestTokensAreFoundWhereRulesSayAndRemovedThere(t *testing.T) {
	s := newScene(t)
	key := jwttest.NewKey(t, "one", jose.EdDSA)
	s.publish(t, mode("STRICT")+readers+inline(t, key, `, fromHeaders: [{name: x-jwt, prefix: "T "}, {name: x-jwt}], fromParams: [tok en], fromCookies: [session]`))
	headers := make(chan http.Header, 1)
	app := newSite(t, func(_ http.ResponseWriter, r *http.Request) { headers <- r.Header.Clone() })
	_, in := s.requestsTo(t, app.address(), nil)
	token := good(t, key, nil)
	both(t, func(t *testing.T, two bool) {
		c := s.httpClient(t, in, s.web, two)
		for _, tt := range []struct{ name, query, header, value, target, left string }{
			{"header", "", "X-Jwt", token, "/read", ""},
			{"header with a prefix", "?", "X-Jwt", "T " + token, "/read?", ""},
			{"parameter", "?a=1&tok+en=" + token + "&b=%2F", "", "", "/read?a=1&b=%2F", ""},
			{"only parameter", "?tok%20en=" + token, "", "", "/read", ""},
			{"cookie", "?q", "Cookie", "a=b; session=" + token + "; c=d", "/read?q", "a=b; c=d"},
			{"quoted cookie", "", "Cookie", `session="` + token + `"`, "/read", ""},
		} {
			r := newRequest(t, "GET", "https://"+in+"/read"+tt.query, nil)
			if tt.header != "" {
				r.Header.Set(tt.header, tt.value)
			}
			r.Header.Set("Authorization", "Bearer of something else")
			code, _ := ask(t, c, r)
			if code != 200 {
				t.Errorf("%s: %d", tt.name, code)
				continue
			}
			got := <-headers
			if seen := app.requests(); len(seen) != 1 || !strings.HasSuffix(seen[0], " "+tt.target) {
				t.Errorf("%s: %.80v, want %s", tt.name, seen, tt.target)
			}
			if got.Get("X-Jwt") != "" || got.Get("Cookie") != tt.left || got.Get("Authorization") == "" {
				t.Errorf("%s: %v", tt.name, got)
			}
		}
	})
}

func TestACallOfGRPCWithABadTokenIsUnauthenticated(t *testing.T) {
	s := newScene(t)
	key, other := jwttest.NewKey(t, "one", jose.ES384), jwttest.NewKey(t, "one", jose.ES384)
	s.publish(t, mode("STRICT")+rules("callers", "ALLOW", `{from: [{source: {requestPrincipals: ["*"]}}]}`)+inline(t, key, ""))
	_, in := s.requestsTo(t, startGRPC(t), func(c *Config) { c.Inbound[0].Protocol = ProtocolGRPC })
	conn, err := grpc.NewClient(in, grpc.WithTransportCredentials(credentials.NewTLS(s.client(s.web))))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, tt := range []struct {
		name, token string
		want        codes.Code
	}{
		{"none", "", codes.PermissionDenied},
		{"of another key", good(t, other, nil), codes.Unauthenticated},
		{"good", good(t, key, nil), codes.OK},
	} {
		ctx := t.Context()
		if tt.token != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+tt.token)
		}
		stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/test.Echo/Stream")
		if err != nil {
			t.Fatal(err)
		}
		_ = stream.SendMsg(wrapperspb.String("hello")) // its status is what counts
		_ = stream.CloseSend()
		err = stream.RecvMsg(new(wrapperspb.StringValue))
		if got := status.Code(err); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

// withKeys publishes a document whose keys the server finds, and what it has
// found.
func (s *scene) withKeys(t testing.TB, policies string, keys ...jwttest.Key) {
	t.Helper()
	const uri = "https://issuer.example.org/keys"
	s.rev++
	w := workload{td: s.td, svid: s.api, revision: s.rev, policies: policies + authentication(", jwksUri: "+uri)}
	if len(keys) > 0 {
		w.mutate = func(snap *wire.Snapshot) { snap.KeySets = []*wire.KeySet{{Uri: uri, Keys: jwttest.Set(t, keys...)}} }
	}
	s.agent.put(w.snapshot(t))
}

func TestTokensAreInvalidUntilTheirKeysAreThereAndAfterTheyWent(t *testing.T) {
	s := newScene(t)
	one, two := jwttest.NewKey(t, "one", jose.ES256), jwttest.NewKey(t, "two", jose.ES256)
	policies := mode("STRICT") + readers
	s.withKeys(t, policies)
	_, in := s.requestsTo(t, newSite(t, nil).address(), nil)
	c := s.httpClient(t, in, s.web, true)
	call := func(path string, key jwttest.Key) int {
		r := newRequest(t, "GET", "https://"+in+path, nil)
		if key.Private != nil {
			r.Header.Set("Authorization", "Bearer "+good(t, key, nil))
		}
		code, _ := ask(t, c, r)
		return code
	}
	if code := call("/open", jwttest.Key{}); code != 200 {
		t.Errorf("without keys and without a token: %d", code)
	}
	if code := call("/open", one); code != 401 {
		t.Errorf("without keys: %d", code)
	}
	s.withKeys(t, policies, one)
	eventually(t, "keys come into force", func() bool { return call("/read", one) == 200 })
	if code := call("/read", two); code != 401 {
		t.Errorf("a key that isn't there yet: %d", code)
	}
	s.withKeys(t, policies, one, two)
	eventually(t, "a second key comes into force", func() bool { return call("/read", two) == 200 })
	if code := call("/read", one); code != 200 {
		t.Errorf("the first key, still there: %d", code)
	}
	s.withKeys(t, policies, two)
	eventually(t, "the first key is gone", func() bool { return call("/read", one) == 401 })
	if code := call("/read", two); code != 200 {
		t.Errorf("the second key: %d", code)
	}
}

// TestAnOpenRequestKeepsItsClaims follows a call through a change of keys,
// which leaves it, and one of policies, which is asked about the claims that
// it had.
func TestAnOpenRequestKeepsItsClaims(t *testing.T) {
	s := newScene(t)
	one, two := jwttest.NewKey(t, "one", jose.ES256), jwttest.NewKey(t, "two", jose.ES256)
	tokened := mode("STRICT") + rules("callers", "ALLOW", `{from: [{source: {requestPrincipals: ["*"]}}]}`)
	s.withKeys(t, tokened, one)
	p, in := s.requestsTo(t, startGRPC(t), func(c *Config) { c.Inbound[0].Protocol = ProtocolGRPC })
	conn, err := grpc.NewClient(in, grpc.WithTransportCredentials(credentials.NewTLS(s.client(s.web))))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+good(t, one, nil)), 15*time.Second)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/test.Echo/Stream")
	if err != nil {
		t.Fatal(err)
	}
	say := func() error {
		_ = stream.SendMsg(wrapperspb.String("hello")) // the status comes with the answer
		return stream.RecvMsg(new(wrapperspb.StringValue))
	}
	if err := say(); err != nil {
		t.Fatal(err)
	}
	s.withKeys(t, tokened, two)
	eventually(t, "the keys are changed", func() bool { return p.state.Load().set.Generation() == s.rev })
	if err := say(); err != nil {
		t.Errorf("after its key has gone: %v", err)
	}
	s.withKeys(t, tokened+rules("bob", "DENY", `{from: [{source: {requestPrincipals: ["`+tokenIssuer+`/bob"]}}]}`), two)
	eventually(t, "another subject is denied", func() bool { return p.state.Load().set.Generation() == s.rev })
	if err := say(); err != nil {
		t.Errorf("after another subject was denied: %v", err)
	}
	s.withKeys(t, tokened+rules("alice", "DENY", `{from: [{source: {requestPrincipals: ["`+tokenIssuer+`/alice"]}}]}`), two)
	eventually(t, "the call ends", func() bool {
		err := say()
		return err != nil && status.Code(err) == codes.PermissionDenied
	})
}

func TestAPortIsWatchedForTokensWhereverItMightBeHTTP(t *testing.T) {
	s := newScene(t)
	key := jwttest.NewKey(t, "one", jose.ES256)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath)+inline(t, key, ""))
	var log lines
	logged := func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) }
	_, in := s.inbound(t, newSite(t, nil).address(), logged)
	both(t, func(t *testing.T, two bool) {
		r := newRequest(t, "GET", "https://"+in+"/", nil)
		r.Header.Set("Authorization", "Bearer a.b.c")
		if code, _ := ask(t, s.httpClient(t, in, s.web, two), r); code != 401 {
			t.Errorf("an undeclared port: %d", code)
		}
	})
	// What isn't HTTP has no token; the log says so.
	_, in = s.inbound(t, echo(t), logged)
	if got, err := exchange(s.dialTLS(t, in), "lower case, so not HTTP"); err != nil || got != "lower case, so not HTTP" {
		t.Errorf("a stream: %q, %v", got, err)
	}
	if got := log.String(); !strings.Contains(got, "jwtRules look at no token") || !strings.Contains(got, "shop/tokens spec.jwtRules") {
		t.Errorf("log: %s", got)
	}
	// A peer that no policy lets in doesn't get as far as a request.
	if res, err := s.httpClient(t, in, s.td.SVID(t, "/ns/shop/sa/other"), false).Get("https://" + in + "/"); err == nil {
		t.Errorf("another peer: %s", res.Status)
	}
}

func TestHTTPThatHidesBringsNoClaims(t *testing.T) {
	s := newScene(t)
	key := jwttest.NewKey(t, "one", jose.ES256)
	s.publish(t, mode("PERMISSIVE")+inline(t, key, ", outputClaimToHeaders: [{header: X-User, claim: sub}]"))
	app := newSite(t, nil)
	_, in := s.inbound(t, app.address(), func(c *Config) { c.Limits.HandshakeTimeout = 300 * time.Millisecond })
	forged := " / HTTP/1.1\r\nHost: api\r\nX-User: admin\r\nConnection: close\r\n\r\n"
	for _, secure := range []bool{true, false} {
		dial := func() net.Conn {
			if secure {
				return s.dialTLS(t, in)
			}
			return mustDial(t, in)
		}
		for _, method := range []string{"get", "\r\nGET", "GeT", "G.T"} {
			c := dial()
			if _, err := io.WriteString(c, method+forged); err != nil {
				t.Fatal(err)
			}
			if answer, _ := io.ReadAll(c); statusOf(string(answer)) == "200" {
				t.Errorf("%q, TLS %t: the application has answered", method, secure)
			}
		}
		for _, first := range []string{"G", ""} {
			if first == "" && !secure {
				continue // nothing is passed on before the first byte
			}
			c := dial()
			if _, err := io.WriteString(c, first); err != nil {
				t.Fatal(err)
			}
			// The client waits until the proxy gives up to know what it is.
			c.SetReadDeadline(time.Now().Add(900 * time.Millisecond))
			c.Read(make([]byte, 1))
			c.SetDeadline(time.Now().Add(8 * time.Second))
			io.WriteString(c, "GET"[len(first):]+forged)
			if answer, _ := io.ReadAll(c); statusOf(string(answer)) == "200" {
				t.Errorf("%q late, TLS %t: the application has answered", first, secure)
			}
		}
	}
	if got := app.requests(); len(got) > 0 {
		t.Errorf("the application has seen %q", got)
	}
}
