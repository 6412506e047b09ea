// This file holds the proxy's metrics. No label is ever a SPIFFE ID.

package proxy

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/aval-id/aval/rotation"
)

type metrics struct {
	connections *prometheus.CounterVec
	firstBytes  *prometheus.CounterVec
	open        prometheus.GaugeFunc
	handshake   prometheus.Histogram
	lifetime    prometheus.GaugeFunc
	snapshots   *prometheus.CounterVec
	lost        prometheus.Counter
	reported    prometheus.Counter
	panics      prometheus.Counter
	resolved    *prometheus.CounterVec
	registered  prometheus.GaugeFunc
}

func newMetrics(p *Proxy) *metrics {
	return &metrics{
		connections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "aval_proxy_connections_total",
			Help: "Connections by how they were decided.",
		}, []string{"direction", "transport", "verdict", "reason"}),
		firstBytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "aval_proxy_first_bytes_total",
			Help: "Inbound connections by what their first bytes turned out to be.",
		}, []string{"kind"}),
		open: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "aval_proxy_connections_open",
			Help: "Connections open now, those in their handshake included.",
		}, func() float64 { return float64(p.open.Load()) }),
		handshake: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "aval_proxy_handshake_seconds",
			Help:    "Time of successful TLS handshakes, first byte to finished.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		lifetime: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "aval_proxy_credential_lifetime_fraction",
			Help: "Fraction of the SVID's lifetime that is left.",
		}, func() float64 {
			s := p.state.Load()
			if s == nil {
				return 0
			}
			return rotation.Remaining(s.creds.SVID.IssuedAt, s.end(), time.Now())
		}),
		snapshots: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "aval_proxy_snapshots_total",
			Help: "Snapshots from the agent, taken or refused.",
		}, []string{"result"}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "aval_proxy_lost_total",
			Help: "Records dropped because the agent did not take them in time.",
		}),
		reported: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "aval_proxy_reported_total",
			Help: "Records that the agent has taken.",
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "aval_proxy_panics_total",
			Help: "Connections that ended in a panic. Any is a bug.",
		}),
		resolved: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "aval_proxy_destinations_total",
			Help: "Redirected outbound connections by where the identity behind their destination is known from.",
		}, []string{"origin"}),
		registered: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "aval_proxy_registry_endpoints",
			Help: "Endpoints of the registry that the proxy holds.",
		}, func() float64 {
			if held := p.registry.held.Load(); held != nil {
				return float64(held.set.Len())
			}
			return 0
		}),
	}
}

// Collectors returns the proxy's metrics for registration.
func (p *Proxy) Collectors() []prometheus.Collector {
	m := p.metrics
	return append([]prometheus.Collector{m.connections, m.firstBytes, m.open, m.handshake, m.lifetime, m.snapshots, m.lost, m.reported, m.panics, m.resolved, m.registered},
		p.requestMetrics.Collectors()...)
}
