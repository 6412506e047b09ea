// This file holds the record of refusals. They are gathered by subject and
// reason, so that a flood of them costs a bounded number of records and never
// stands in the way of anything.

package server

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca"
)

const (
	refusalPause    = 100 * time.Millisecond // between two writes
	refusalWindow   = 10 * time.Second       // in which repeats are counted together
	maxRefusalKinds = 1024                   // subjects and reasons told apart at a time
)

// refusalKey tells apart what is counted together.
type refusalKey struct {
	log     string
	kind    audit.Kind
	reason  string
	subject string // a node, an address without port, or an actor
}

type refusalCount struct {
	event audit.Event // the last one
	first time.Time
	count uint64    // not written yet
	hold  time.Time // written before: not again until then
}

// refusals gathers refusals and writes them when Run gets to it.
type refusals struct {
	logs    map[string]ca.Recorder
	metrics *metrics
	log     *slog.Logger
	signal  chan struct{}

	mu     sync.Mutex
	counts map[refusalKey]*refusalCount // guarded by mu
}

// note takes a refusal. It never blocks and never fails: what does not fit is
// counted with the rest of its kind.
func (r *refusals) note(log, subject string, e audit.Event) {
	r.metrics.refused.WithLabelValues(e.Reason).Inc()
	key := refusalKey{log, e.Kind, e.Reason, subject}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.counts[key]
	if c == nil && len(r.counts) >= maxRefusalKinds {
		key.subject = ""
		e.Source, e.Node, e.Actor, e.SPIFFEID, e.ClientID = "", "", "", "", ""
		c = r.counts[key]
	}
	if c == nil {
		c = &refusalCount{}
		r.counts[key] = c
	}
	if c.count == 0 {
		c.first = e.Time
	}
	c.event = e
	c.count++
	select {
	case r.signal <- struct{}{}:
	default:
	}
}

// run writes what was gathered until ctx ends, and then what is left.
func (r *refusals) run(ctx context.Context) error {
	timer := time.NewTimer(refusalPause)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			r.flush(context.WithoutCancel(ctx), time.Time{})
			return ctx.Err()
		case <-r.signal:
		case <-timer.C:
		}
		next := r.flush(ctx, time.Now())
		timer.Reset(next)
		select {
		case <-ctx.Done():
		case <-time.After(refusalPause):
		}
	}
}

// flush writes what is due at now, or everything where now is zero, and
// returns how long until something may be due.
func (r *refusals) flush(ctx context.Context, now time.Time) time.Duration {
	byLog, next := r.take(now)
	for name, events := range byLog {
		if _, err := r.logs[name].RecordAll(ctx, events); err != nil {
			var lost uint64
			for _, e := range events {
				lost += max(e.Count, 1)
			}
			r.metrics.lost.Add(float64(lost))
			r.log.Warn("recording of refusals", "log", name, "lost", lost, "error", err)
		}
	}
	return next
}

func (r *refusals) take(now time.Time) (map[string][]audit.Event, time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := time.Hour
	byLog := map[string][]audit.Event{}
	for key, c := range r.counts {
		switch {
		case !now.IsZero() && now.Before(c.hold):
			if c.count > 0 {
				next = min(next, c.hold.Sub(now))
			}
		case c.count == 0:
			delete(r.counts, key)
		default:
			e := c.event
			if c.count > 1 {
				e.Count, e.FirstTime = c.count, c.first
			}
			byLog[key.log] = append(byLog[key.log], e)
			c.count, c.hold = 0, now.Add(refusalWindow)
			next = min(next, refusalWindow)
		}
	}
	return byLog, next
}
