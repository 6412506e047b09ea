// This file holds the tests of the metrics by pair of workloads.

package proxy

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/proxy/request"
)

// series gathers counters, and the counts of histograms, by name and labels:
// NAME reporter source -> destination, and the rest.
func series(t testing.TB, collectors []prometheus.Collector) map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(collectors...)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			l := map[string]string{}
			var more []string
			for _, p := range m.GetLabel() {
				l[p.GetName()] = p.GetValue()
				if !strings.Contains(p.GetName(), "_") && p.GetName() != "reporter" {
					more = append(more, p.GetValue())
				}
				if strings.Contains(p.GetValue(), "://") {
					t.Errorf("%s has the label %s=%q", f.GetName(), p.GetName(), p.GetValue())
				}
			}
			slices.Sort(more)
			name := strings.TrimPrefix(f.GetName(), "aval_proxy_pair_")
			if l["reporter"] != "" {
				name += fmt.Sprintf(" %s %s/%s->%s/%s %s", l["reporter"], l["source_namespace"], l["source_workload"],
					l["destination_namespace"], l["destination_workload"], strings.Join(more, ","))
			}
			out[strings.TrimSpace(name)] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return out
}

func TestRequestsAndConnectionsAreCountedByPairOfWorkloads(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, mode("PERMISSIVE")+rules("no", "DENY", `{to: [{operation: {paths: ["/no"]}}]}`))
	app := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/fails" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	p, in := s.requestsTo(t, app.address(), nil)
	q, out := s.outbound(t, in, s.api.ID)
	direct, plain, through := s.httpClient(t, in, s.web, true), s.httpClient(t, in, identity.SVID{}, false), s.httpClient(t, out, identity.SVID{}, false)
	for _, path := range []string{"/", "/", "/fails", "/no"} {
		ask(t, direct, newRequest(t, "GET", "https://"+in+path, nil))
	}
	ask(t, plain, newRequest(t, "GET", "http://"+in+"/", nil))
	ask(t, through, newRequest(t, "GET", "http://"+out+"/", nil))
	want := map[string]float64{
		"requests_total destination shop/web->shop/api 2xx,allowed": 3,
		"requests_total destination shop/web->shop/api 5xx,allowed": 1,
		"requests_total destination shop/web->shop/api 4xx,denied":  1,
		"requests_total destination /(none)->shop/api 2xx,allowed":  1,
		"request_seconds destination shop/web->shop/api":            4,
		"connections_total destination shop/web->shop/api":          2,
		"connections_closed_total destination shop/web->shop/api":   2,
		"connections_total destination /(none)->shop/api":           1,
		"connections_closed_total destination /(none)->shop/api":    1,
		"aval_proxy_pairs_other_total":                              0,
		"requests_total destination /(none)->shop/api 4xx,denied":   0,
		"connections_total source shop/web->shop/api":               0,
	}
	eventually(t, "the inbound proxy counts", func() bool {
		for _, c := range []*http.Client{direct, plain, through} {
			c.CloseIdleConnections()
		}
		got := series(t, p.Collectors())
		for name, n := range want {
			if got[name] != n {
				return false
			}
		}
		return got["bytes_total destination shop/web->shop/api in"] > 100 && got["bytes_total destination shop/web->shop/api out"] > 100
	})
	eventually(t, "the outbound proxy counts", func() bool {
		got := series(t, q.Collectors())
		return got["connections_total source shop/web->shop/api"] == 1 && got["connections_closed_total source shop/web->shop/api"] == 1 &&
			got["bytes_total source shop/web->shop/api in"] > 10
	})
}

func TestPairsBeyondTheBoundAreCountedAsOther(t *testing.T) {
	m := request.NewMetrics()
	api := mustID(t, "spiffe://example.org/ns/shop/sa/api")
	const clients = 1000
	for i := range clients {
		m.Pairs.Of(mustID(t, fmt.Sprintf("spiffe://example.org/ns/shop/sa/c%d", i)), api, request.ByDestination).Opened()
	}
	total, pairs := 0.0, 0
	got := series(t, m.Collectors())
	for name, n := range got {
		if strings.HasPrefix(name, "connections_total") {
			total, pairs = total+n, pairs+1
		}
	}
	other := got["connections_total destination (other)/(other)->(other)/(other)"]
	if total != clients || pairs > 201 || other != clients-float64(pairs-1) || got["aval_proxy_pairs_other_total"] != other {
		t.Errorf("%v connections in %d pairs, %v of others", total, pairs, other)
	}
}

func TestAWorkloadIsNamedWithoutItsSPIFFEID(t *testing.T) {
	own := mustID(t, "spiffe://example.org/x").TrustDomain()
	for id, want := range map[string]request.Name{
		"spiffe://example.org/ns/shop/sa/web":      {Namespace: "shop", Workload: "web"},
		"spiffe://example.org/prod/batch":          {Workload: "batch"},
		"spiffe://example.org/ns/a/sa/b/ns/c/sa/d": {Workload: "d"},
		"spiffe://partner.example/ns/shop/sa/web":  {Workload: "partner.example"},
	} {
		if got := request.NameOf(mustID(t, id), own); got != want {
			t.Errorf("%s: %+v", id, got)
		}
	}
	if got := request.NameOf(identity.ID{}, own); got != (request.Name{Workload: request.NoIdentity}) {
		t.Errorf("plaintext: %+v", got)
	}
}

func mustID(t testing.TB, text string) identity.ID {
	t.Helper()
	id, err := identity.ParseID(text)
	if err != nil {
		t.Fatal(err)
	}
	return id
}
