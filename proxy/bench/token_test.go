// This file holds the benchmark of tokens: what one costs in a request that
// is judged anyhow.

package bench

import (
	"crypto/tls"
	"encoding/json"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/aval-id/aval/identity/jwt/jwttest"
	"github.com/aval-id/aval/identity/wire"
)

// BenchmarkToken is CPU of the proxy for a request to a workload that a
// RequestAuthentication applies to: with a token that comes again and again,
// as a client's does, beside one without.
func BenchmarkToken(b *testing.B) {
	key := jwttest.NewKey(b, "one", jose.RS256)
	document, err := json.Marshal(map[string]any{
		"apiVersion": "aval.dev/v1alpha1", "kind": "RequestAuthentication", "metadata": map[string]any{"name": "tokens", "namespace": "shop"},
		"spec": map[string]any{"jwtRules": []any{map[string]any{"issuer": "https://issuer.example.org", "audiences": []string{"api"}, "jwks": string(jwttest.Set(b, key))}}},
	})
	if err != nil {
		b.Fatal(err)
	}
	s := newStage(b, "web")
	s.agent.publish(append(policies(1, "web"), &wire.Resource{
		Key: &wire.ResourceKey{Kind: "RequestAuthentication", Namespace: "shop", Name: "tokens"}, Document: document, Evaluator: 3}))
	proxy := s.start(b, "proxy", func(j *job) { j.HTTP = true })
	with, without := proxy, proxy
	with.name, without.name = "with a token", "without one"
	token := key.Sign(b, jwttest.Claims("https://issuer.example.org", time.Now(), map[string]any{"aud": "api", "groups": []string{"readers", "editors"}}), nil)
	for _, name := range []string{"HTTP/1.1", "HTTP/2"} {
		b.Run(name, func(b *testing.B) {
			compare(b, "request with a token, "+name, "µs of CPU", nil, []side{with, without}, func(side side) float64 {
				carried := ""
				if side.name == with.name {
					carried = token
				}
				return requests(b, side, s.returning(tls.X25519), name == "HTTP/2", "GET", carried)
			})
		})
	}
}
