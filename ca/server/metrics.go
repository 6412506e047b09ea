// This file holds the server's metrics. No label ever holds a SPIFFE ID.

package server

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/aval-id/aval/rotation"
)

type metrics struct {
	issued    *prometheus.CounterVec
	refused   *prometheus.CounterVec
	issueTime prometheus.Histogram
	panics    prometheus.Counter

	signTime     prometheus.Histogram
	signFailures prometheus.Counter
	lost         prometheus.Counter
	nodes        prometheus.GaugeFunc
	entries      []prometheus.Collector
}

func newMetrics(s *Server) *metrics {
	m := &metrics{
		issued: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "aval_server_issued_total", Help: "Certificates issued, by role."}, []string{"role"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "aval_server_refused_total", Help: "Requests and connections refused, by reason."}, []string{"reason"}),
		issueTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "aval_server_issue_seconds", Help: "Time from a batch's arrival to its durable record.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 5}}),
		signTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "aval_server_upstream_sign_seconds", Help: "Time that the root's key or the upstream took to sign an intermediate.",
			Buckets: []float64{.005, .02, .1, .5, 1, 5, 30}}),
		signFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "aval_server_upstream_failures_total", Help: "Intermediates that the root's key or the upstream did not sign."}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "aval_server_panics_total", Help: "Requests that ended in a recovered panic."}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "aval_server_lost_total", Help: "Connection records and refusals that could not be stored."}),
		nodes: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "aval_server_nodes_connected", Help: "Nodes with an open stream."},
			func() float64 { return float64(s.sessions.count()) }),
	}
	for name, log := range s.logs() {
		m.entries = append(m.entries, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "aval_server_log_entries", Help: "Durable entries of a log.", ConstLabels: prometheus.Labels{"log": name}},
			func() float64 { return float64(log.Size()) }))
	}
	for _, role := range []string{roleRoot, roleIntermediate, roleServer} {
		m.entries = append(m.entries, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "aval_server_authority_lifetime_fraction", Help: "Fraction of a certificate's lifetime that is left.",
			ConstLabels: prometheus.Labels{"role": role}},
			func() float64 { return s.lifetimeLeft(role, time.Now()) }))
	}
	return m
}

func (m *metrics) collectors() []prometheus.Collector {
	return append([]prometheus.Collector{m.issued, m.refused, m.issueTime, m.panics, m.lost, m.nodes, m.signTime, m.signFailures}, m.entries...)
}

// lifetimeLeft returns the fraction of life left of the certificate in force
// for a role, 0 while there is none.
func (s *Server) lifetimeLeft(role string, now time.Time) float64 {
	for _, c := range s.certificates() {
		if c.role == role {
			return rotation.Remaining(c.issued(), c.cert.NotAfter, now)
		}
	}
	return 0
}
