// This file holds the agent's metrics.

package agent

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are read from the parts when they are scraped.
type metrics struct{ collectors []prometheus.Collector }

// Collectors returns the agent's metrics for registration.
func (a *Agent) Collectors() []prometheus.Collector { return a.metrics.collectors }

func newMetrics(a *Agent) *metrics {
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	counter := func(name, help string, labels prometheus.Labels, value func() float64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}, value)
	}
	const renewals = "SVIDs asked for, renewals included, by result."
	return &metrics{[]prometheus.Collector{
		gauge("aval_agent_connected", "1 while the stream to the server is open.", func() float64 {
			if a.upstream.Status().Connected {
				return 1
			}
			return 0
		}),
		gauge("aval_agent_clock_skew_seconds", "Clock of the server less the clock of this node, at the last welcome.", func() float64 {
			return a.upstream.Status().Skew.Seconds()
		}),
		gauge("aval_agent_connections", "Open connections to the socket.", func() float64 { return float64(a.endpoint.Stats().Connections) }),
		gauge("aval_agent_svids", "Valid SVIDs held.", func() float64 { return float64(a.ring.Stats(time.Now()).SVIDs) }),
		gauge("aval_agent_svid_lifetime_fraction", "Least part of a lifetime that is left of any SVID held; 1 where there are none.", func() float64 {
			return a.ring.Stats(time.Now()).Fraction
		}),
		counter("aval_agent_renewals_total", renewals, prometheus.Labels{"result": "issued"}, func() float64 {
			return float64(a.ring.Stats(time.Now()).Issued)
		}),
		counter("aval_agent_renewals_total", renewals, prometheus.Labels{"result": "failed"}, func() float64 {
			return float64(a.ring.Stats(time.Now()).Failed)
		}),
		counter("aval_agent_denied_total", "Calls on the socket that were denied.", nil, func() float64 { return float64(a.endpoint.Stats().Denied) }),
		counter("aval_agent_panics_total", "Calls on the socket that ended in a fault of the agent.", nil, func() float64 {
			return float64(a.endpoint.Stats().Panics)
		}),
		gauge("aval_agent_endpoints_announced", "Endpoints that proxies of this node announce.", func() float64 { return float64(a.directory.Announced()) }),
		gauge("aval_agent_endpoints_held", "Endpoints of the registry that are held for proxies.", func() float64 { return float64(a.directory.Held()) }),
		gauge("aval_agent_spool_events", "Connection records that wait for the server.", func() float64 {
			waiting, _ := a.spool.Stats()
			return float64(waiting)
		}),
		counter("aval_agent_lost_total", "Connection records dropped since the start.", nil, func() float64 {
			_, dropped := a.spool.Stats()
			return float64(dropped)
		}),
	}}
}
