// This file holds the metrics by pair of workloads: who calls whom, how often,
// how long and with what outcome. A label is never a SPIFFE ID, and there are
// never more pairs than a bound.

package request

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/aval-id/aval/identity"
)

// maxPairs bounds the pairs of workloads that a process tells apart. What
// comes later is counted under Other.
const maxPairs = 200

// The names of workloads that are none. No segment of a SPIFFE ID has a
// parenthesis.
const (
	NoIdentity = "(none)"  // plaintext
	Other      = "(other)" // beyond maxPairs
)

// Reporter says which side of a connection counts.
type Reporter string

// The reporters.
const (
	BySource      Reporter = "source"
	ByDestination Reporter = "destination"
)

// Name is a workload as labels have it.
type Name struct{ Namespace, Workload string }

// NameOf returns namespace and service account where the ID has a run of
// segments ns/N/sa/S, and else its last segment as the workload, without a
// namespace. A peer of another trust domain than own is named by that domain
// alone, so that it is never taken for one of the same name here.
func NameOf(id identity.ID, own identity.TrustDomain) Name {
	switch {
	case id.IsZero():
		return Name{Workload: NoIdentity}
	case id.TrustDomain() != own:
		return Name{Workload: id.TrustDomain().String()}
	}
	if namespace, account, ok := id.ServiceAccount(); ok {
		return Name{namespace, account}
	}
	return Name{Workload: id.Path()[strings.LastIndexByte(id.Path(), '/')+1:]}
}

// pairKey is what tells pairs apart.
type pairKey struct {
	reporter            Reporter
	source, destination Name
}

func (k pairKey) labels(more ...string) []string {
	return append([]string{string(k.reporter), k.source.Namespace, k.source.Workload, k.destination.Namespace, k.destination.Workload}, more...)
}

var pairLabels = pairKey{"reporter", Name{"source_namespace", "source_workload"}, Name{"destination_namespace", "destination_workload"}}

// Pairs counts by pair of workloads. It is safe for concurrent use.
type Pairs struct {
	requests    *prometheus.CounterVec
	seconds     *prometheus.HistogramVec
	connections *prometheus.CounterVec
	closed      *prometheus.CounterVec
	bytes       *prometheus.CounterVec
	beyond      prometheus.Counter

	mu    sync.Mutex
	pairs map[pairKey]*Pair // guarded by mu
}

func newPairs() *Pairs {
	counter := func(name, help string, more ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, pairLabels.labels(more...))
	}
	return &Pairs{
		requests: counter("aval_proxy_pair_requests_total", "Requests by pair of workloads, class of the status and verdict.", "code", "verdict"),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "aval_proxy_pair_request_seconds",
			Help:    "Time from a request's header to the end of its answer, by pair of workloads, of requests that policies allowed.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}, pairLabels.labels()),
		connections: counter("aval_proxy_pair_connections_total", "Connections that were let in, by pair of workloads."),
		closed:      counter("aval_proxy_pair_connections_closed_total", "Connections that were let in and have ended, by pair of workloads."),
		bytes:       counter("aval_proxy_pair_bytes_total", "The application's bytes of connections that have ended, by pair of workloads; in is from the dialling side.", "flow"),
		beyond: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "aval_proxy_pairs_other_total",
			Help: "Connections of pairs of workloads beyond those told apart, which are counted as (other).",
		}),
		pairs: map[pairKey]*Pair{},
	}
}

func (p *Pairs) collectors() []prometheus.Collector {
	return []prometheus.Collector{p.requests, p.seconds, p.connections, p.closed, p.bytes, p.beyond}
}

// Of returns the pair that a connection counts for. The reporter's own side
// says which trust domain is its own.
func (p *Pairs) Of(source, destination identity.ID, by Reporter) *Pair {
	own := destination.TrustDomain()
	if by == BySource {
		own = source.TrustDomain()
	}
	key := pairKey{by, NameOf(source, own), NameOf(destination, own)}
	p.mu.Lock()
	defer p.mu.Unlock()
	pair := p.pairs[key]
	if pair == nil && len(p.pairs) >= maxPairs {
		p.beyond.Inc()
		key = pairKey{by, Name{Other, Other}, Name{Other, Other}}
		pair = p.pairs[key]
	}
	if pair == nil {
		pair = &Pair{all: p, key: key}
		p.pairs[key] = pair
	}
	return pair
}

// Pair counts for one pair of workloads. What never happened has no series.
type Pair struct {
	all     *Pairs
	key     pairKey
	codes   [len(classes)][2]atomic.Pointer[prometheus.Counter]
	seconds atomic.Pointer[prometheus.Observer]
}

// request counts a request that is over.
func (p *Pair) request(status int, allowed bool, took time.Duration) {
	class, verdict := classOf(status), 0
	if allowed {
		verdict = 1
		o := p.seconds.Load()
		if o == nil {
			made := p.all.seconds.WithLabelValues(p.key.labels()...)
			o = &made
			p.seconds.Store(o)
		}
		(*o).Observe(took.Seconds())
	}
	c := p.codes[class][verdict].Load()
	if c == nil {
		made := p.all.requests.WithLabelValues(p.key.labels(classes[class], [...]string{"denied", "allowed"}[verdict])...)
		c = &made
		p.codes[class][verdict].Store(c)
	}
	(*c).Inc()
}

// Opened counts a connection that was let in.
func (p *Pair) Opened() { p.all.connections.WithLabelValues(p.key.labels()...).Inc() }

// Closed counts its end, with the application's bytes from and to the
// dialling side.
func (p *Pair) Closed(in, out uint64) {
	p.all.closed.WithLabelValues(p.key.labels()...).Inc()
	p.all.bytes.WithLabelValues(p.key.labels("in")...).Add(float64(in))
	p.all.bytes.WithLabelValues(p.key.labels("out")...).Add(float64(out))
}
