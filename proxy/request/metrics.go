// This file holds the metrics of requests. No label is ever a SPIFFE ID, a
// path or anything else that a client chooses.

package request

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts requests. Servers of one process share one.
type Metrics struct {
	requests  *prometheus.CounterVec
	byClass   [6]struct{ allowed, denied prometheus.Counter }
	seconds   prometheus.Histogram
	malformed prometheus.Counter
	open      prometheus.Gauge
	tokens    *prometheus.CounterVec
	// Pairs counts requests, and for the proxy connections, by pair of
	// workloads.
	Pairs *Pairs
}

// classes are the classes of a status, as labels have them.
var classes = [...]string{"other", "1xx", "2xx", "3xx", "4xx", "5xx"}

// classOf returns the place of a status among classes.
func classOf(status int) int {
	if class := status / 100; class >= 1 && class <= 5 {
		return class
	}
	return 0
}

// NewMetrics returns metrics that are not registered yet.
func NewMetrics() *Metrics {
	m := &Metrics{
		Pairs: newPairs(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "aval_proxy_requests_total",
			Help: "Requests by the class of their status and by the verdict of the policies.",
		}, []string{"code", "verdict"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "aval_proxy_request_seconds",
			Help:    "Time from a request's header to the end of its answer, of requests that policies allowed.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15),
		}),
		malformed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "aval_proxy_requests_malformed_total",
			Help: "Connections ended because a request on them could be read in more than one way.",
		}),
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "aval_proxy_requests_open",
			Help: "Requests being served now, upgraded connections included.",
		}),
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "aval_proxy_request_tokens_total",
			Help: "Requests to which a RequestAuthentication applied, by what came of their token: valid, invalid or missing.",
		}, []string{"result"}),
	}
	for i, class := range classes {
		m.byClass[i].allowed = m.requests.WithLabelValues(class, "allowed")
		m.byClass[i].denied = m.requests.WithLabelValues(class, "denied")
	}
	return m
}

// Collectors returns the metrics for registration.
func (m *Metrics) Collectors() []prometheus.Collector {
	return append([]prometheus.Collector{m.requests, m.seconds, m.malformed, m.open, m.tokens}, m.Pairs.collectors()...)
}

// done counts a request that is over.
func (m *Metrics) done(status int, allowed bool, took time.Duration) {
	class := classOf(status)
	if !allowed {
		m.byClass[class].denied.Inc()
		return
	}
	m.byClass[class].allowed.Inc()
	m.seconds.Observe(took.Seconds())
}
