// This file holds the benchmark of tokens: what one costs in a request that
// is judged anyhow.

package bench

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/aval-id/aval/identity/jwt/jwttest"
	"github.com/aval-id/aval/identity/wire"
)

// BenchmarkToken is CPU of the proxy for a request to a workload that a
// RequestAuthentication applies to: without a token, and with one that comes
// again and again, as a client's does.
func BenchmarkToken(b *testing.B) {
	key := jwttest.NewKey(b, "one", jose.RS256)
	document, err := json.Marshal(map[string]any{
		"apiVersion": "aval.dev/v1alpha1", "kind": "RequestAuthentication", "metadata": map[string]any{"name": "tokens", "namespace": "shop"},
		"spec": map[string]any{"jwtRules": []any{map[string]any{"issuer": "https://issuer.example.org", "audiences": []string{"api"}, "jwks": string(jwttest.Set(b, key))}}},
	})
	if err != nil {
		b.Fatal(err)
	}
	s := stageFor(b, job{Role: "reverse", App: answering(b), HTTP: true}, &wire.Resource{
		Key: &wire.ResourceKey{Kind: "RequestAuthentication", Namespace: "shop", Name: "tokens"}, Document: document, Evaluator: 3})
	token := key.Sign(b, jwttest.Claims("https://issuer.example.org", time.Now(), map[string]any{"aud": "api", "groups": []string{"readers", "editors"}}), nil)
	for _, two := range []bool{false, true} {
		b.Run(map[bool]string{false: "HTTP1", true: "HTTP2"}[two], func(b *testing.B) {
			for b.Loop() {
				without, with := interleave(rounds,
					func() float64 { return requests(b, s.proxy, s.client, two, "GET", "") },
					func() float64 { return requests(b, s.proxy, s.client, two, "GET", token) })
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(without, "without-µs-CPU/request")
				b.ReportMetric(with, "with-µs-CPU/request")
				b.ReportMetric(with/without, "ratio")
			}
		})
	}
}
