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
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "aval", Subsystem: "agent", Name: name, Help: help}, value)
	}
	counter := func(name, help string, labels prometheus.Labels, value func() float64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "aval", Subsystem: "agent", Name: name, Help: help, ConstLabels: labels}, value)
	}
	const renewals = "SVIDs asked for, renewals included, by result."
	return &metrics{[]prometheus.Collector{
		gauge("connected", "1 while the stream to the server is open.", func() float64 {
			if a.upstream.Status().Connected {
				return 1
			}
			return 0
		}),
		gauge("clock_skew_seconds", "Clock of the server less the clock of this node, at the last welcome.", func() float64 {
			return a.upstream.Status().Skew.Seconds()
		}),
		gauge("connections", "Open connections to the socket.", func() float64 { return float64(a.endpoint.Stats().Connections) }),
		gauge("svids", "Valid SVIDs held.", func() float64 { return float64(a.ring.Stats(time.Now()).SVIDs) }),
		gauge("svid_lifetime_fraction", "Least part of a lifetime that is left of any SVID held; 1 where there are none.", func() float64 {
			return a.ring.Stats(time.Now()).Fraction
		}),
		counter("renewals_total", renewals, prometheus.Labels{"result": "issued"}, func() float64 {
			return float64(a.ring.Stats(time.Now()).Issued)
		}),
		counter("renewals_total", renewals, prometheus.Labels{"result": "failed"}, func() float64 {
			return float64(a.ring.Stats(time.Now()).Failed)
		}),
		counter("denied_total", "Calls on the socket that were denied.", nil, func() float64 { return float64(a.endpoint.Stats().Denied) }),
		counter("panics_total", "Calls on the socket that ended in a fault of the agent.", nil, func() float64 {
			return float64(a.endpoint.Stats().Panics)
		}),
		gauge("endpoints_announced", "Endpoints that proxies of this node announce.", func() float64 { return float64(a.directory.Announced()) }),
		gauge("endpoints_held", "Endpoints of the registry that are held for proxies.", func() float64 { return float64(a.directory.Held()) }),
		gauge("spool_events", "Connection records that wait for the server.", func() float64 {
			waiting, _ := a.spool.Stats()
			return float64(waiting)
		}),
		counter("lost_total", "Connection records dropped since the start.", nil, func() float64 {
			_, dropped := a.spool.Stats()
			return float64(dropped)
		}),
	}}
}
