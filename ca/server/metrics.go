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
	lost      prometheus.Counter
	delayed   prometheus.Counter
	nodes     prometheus.GaugeFunc
	entries   []prometheus.Collector

	signTime     prometheus.Histogram
	signFailures prometheus.Counter
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
		delayed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "aval_server_records_delayed_total", Help: "Batches of connection records that waited because their node sent too many."}),
		nodes: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "aval_server_nodes_connected", Help: "Nodes with an open stream."},
			func() float64 { return float64(s.sessions.count()) }),
	}
	m.entries = append(m.entries, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "aval_server_endpoints", Help: "Endpoints of the registry that count."},
		func() float64 { return float64(s.registry.Len()) }), s.claimsMetric())
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
	m.entries = append(m.entries, s.keySets.collectors()...)
	m.addRotation(s)
	return m
}

// addRotation adds what is told of rotations.
func (m *metrics) addRotation(s *Server) {
	gauge := func(name, help string, labels prometheus.Labels, value func() float64) {
		m.entries = append(m.entries, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, value))
	}
	for _, role := range []string{roleRoot, roleIntermediate} {
		gauge("aval_server_rotation_overdue_fraction", "How much of the time between an authority's due time and its end has passed; 0 where it is not due.",
			prometheus.Labels{"role": role}, func() float64 { return s.overdueFraction(role, time.Now()) })
	}
	for _, phase := range rotation.Phases() {
		gauge("aval_server_rollover_phase", "1 for the phase that the root's rollover is in.",
			prometheus.Labels{"phase": phase.String()}, func() float64 {
				if s.rollover.inForce().State.Phase == phase {
					return 1
				}
				return 0
			})
	}
	gauge("aval_server_rollover_nodes", "Nodes that a rollover counts: live ones, and those that have followed.", prometheus.Labels{"state": "live"},
		func() float64 { live, _ := s.rollover.nodesNow(time.Now()); return float64(live) })
	gauge("aval_server_rollover_nodes", "Nodes that a rollover counts: live ones, and those that have followed.", prometheus.Labels{"state": "acked"},
		func() float64 { _, acked := s.rollover.nodesNow(time.Now()); return float64(acked) })
}

func (m *metrics) collectors() []prometheus.Collector {
	return append([]prometheus.Collector{m.issued, m.refused, m.issueTime, m.panics, m.lost, m.delayed, m.nodes, m.signTime, m.signFailures}, m.entries...)
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
