// This file holds reporter: the bounded queue of records on their way to the
// agent. It never holds up a connection.

package proxy

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/rotation"
)

const (
	// flushEvery is how long a record waits for others to travel with.
	flushEvery = 100 * time.Millisecond
	// batchRecords bounds a batch; a record is about a kilobyte.
	batchRecords = 1000
	// batchBytes bounds it too: a record that names many policies is larger,
	// and the agent takes no more than twice this at once. One larger record
	// still goes.
	batchBytes = 1 << 20
	// reportGrace is how long the last records may take at the end.
	reportGrace = time.Second
)

// reporter queues records. When the agent is away or slow the oldest go, and
// their number is reported.
type reporter struct {
	limit   int
	log     *slog.Logger
	metrics *metrics
	wake    chan struct{} // of size 1: something is waiting

	mu      sync.Mutex
	queue   []*audit.Event   // guarded by mu, oldest first
	lost    uint64           // guarded by mu: dropped and not yet reported
	second  int64            // guarded by mu: what tallies belongs to
	tallies map[alike]*tally // guarded by mu

	requests requestTallies // guarded by mu
}

func newReporter(limit int, every time.Duration, log *slog.Logger, m *metrics) *reporter {
	return &reporter{limit: limit, log: log, metrics: m, wake: make(chan struct{}, 1), tallies: make(map[alike]*tally),
		requests: newRequestTallies(every)}
}

// add queues a record. It never blocks; e is the reporter's from now on.
func (r *reporter) add(e *audit.Event, source netip.Addr) {
	r.mu.Lock()
	if !r.merge(e, source) {
		r.push(e)
	}
	r.mu.Unlock()
	r.rouse()
}

// count counts a request, whose key is in alike's full form. Where it has no
// like in the window, describe makes its record.
func (r *reporter) count(key alike, now time.Time, describe func() *audit.Event) {
	r.mu.Lock()
	if r.requests.due(now) {
		r.settleRequests()
	}
	e, key := r.requests.find(key)
	if e != nil {
		e.Time, e.Count = now, e.Count+1
		r.mu.Unlock()
		return
	}
	r.requests.put(key, describe())
	r.mu.Unlock()
	r.rouse()
}

// rouse says that there is something to ship, now or at a time.
func (r *reporter) rouse() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// push appends and drops the oldest beyond the limit. The caller holds mu.
func (r *reporter) push(e *audit.Event) {
	if len(r.queue) >= r.limit {
		n := max(1, r.limit/100) // a few at once, so that a full queue stays cheap
		for _, old := range r.queue[:min(n, len(r.queue))] {
			r.drop(max(1, old.Count))
		}
		clear(r.queue[:n])
		r.queue = r.queue[n:]
	}
	r.queue = append(r.queue, e)
}

func (r *reporter) drop(n uint64) {
	r.lost += n
	r.metrics.lost.Add(float64(n))
}

// settle queues the counted records of the second that is over. The caller
// holds mu.
func (r *reporter) settle() {
	for _, t := range r.tallies {
		if t.merged != nil {
			r.push(t.merged)
		}
	}
	clear(r.tallies)
}

// settleRequests queues the counted requests of the window that is over. The
// caller holds mu.
func (r *reporter) settleRequests() {
	for _, e := range r.requests.take() {
		r.push(e)
	}
}

// batch takes the oldest records off the queue, and the number lost. Counted
// records leave once their window is over, or at the end, when all is set.
func (r *reporter) batch(now time.Time, all bool) (events []*audit.Event, lost uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if all || now.Unix() != r.second {
		r.settle()
	}
	if all || r.requests.due(now) {
		r.settleRequests()
	}
	n := min(len(r.queue), batchRecords)
	events = r.queue[:n:n]
	r.queue = r.queue[n:]
	if len(r.queue) == 0 {
		r.queue = nil
	}
	lost, r.lost = r.lost, 0
	return events, lost
}

// putBack returns a batch that was not acknowledged to the front.
func (r *reporter) putBack(events []*audit.Event, lost uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lost += lost
	room := max(0, r.limit-len(r.queue))
	for len(events) > room {
		r.drop(max(1, events[0].Count))
		events = events[1:]
	}
	r.queue = append(events[:len(events):len(events)], r.queue...)
}

// pending reports whether anything waits, counted ones included.
func (r *reporter) pending() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.queue) > 0 || r.lost > 0 || len(r.tallies) > 0 || len(r.requests.all) > 0
}

// due returns how long there is nothing to ship, and false where nothing is
// counted either.
func (r *reporter) due(now time.Time) (time.Duration, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case len(r.queue) > 0 || r.lost > 0 || len(r.tallies) > 0:
		return 0, true
	case len(r.requests.all) > 0:
		return max(0, r.requests.ends.Sub(now)), true
	}
	return 0, false
}

// waiting returns how many records wait for the agent, counted refusals as
// one each.
func (r *reporter) waiting() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return uint64(len(r.queue))
}

// run ships records until ctx ends, and then what is left within a grace
// time.
func (r *reporter) run(ctx context.Context, client wire.ProxyClient) error {
	last := ""
	for attempt := 0; ; attempt++ {
		sent, err := r.stream(ctx, client)
		if ctx.Err() != nil {
			break
		}
		if sent {
			attempt = 0
		}
		if sent || err.Error() != last {
			r.log.Warn("records wait for the agent", "error", err)
		}
		last = err.Error()
		if !rotation.Pause(ctx, rotation.Backoff(attempt, retryBase, retryLimit)) {
			break
		}
	}
	final, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportGrace)
	defer cancel()
	if _, err := r.flush(final, client); err != nil {
		r.log.Warn("last records are lost", "error", err)
	}
	return ctx.Err()
}

// stream ships records as they come over one stream.
func (r *reporter) stream(ctx context.Context, client wire.ProxyClient) (sent bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := client.Report(ctx)
	if err != nil {
		return false, err
	}
	for seq := uint64(1); ; {
		if err := r.waitForWork(ctx); err != nil {
			return sent, err
		}
		n, err := r.exchange(s, seq, false)
		if err != nil {
			return sent, err
		}
		if n > 0 {
			seq, sent = seq+1, true
		}
	}
}

// waitForWork returns once a record waited long enough for others.
func (r *reporter) waitForWork(ctx context.Context) error {
	for {
		wait, counting := r.due(time.Now())
		if counting && wait == 0 {
			break
		}
		if !counting {
			wait = time.Hour
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if !rotation.Pause(ctx, flushEvery) {
		return ctx.Err()
	}
	return nil
}

// flush ships everything that is left over a stream of its own.
func (r *reporter) flush(ctx context.Context, client wire.ProxyClient) (int, error) {
	if !r.pending() {
		return 0, nil
	}
	s, err := client.Report(ctx)
	if err != nil {
		return 0, err
	}
	total := 0
	for seq := uint64(1); ; seq++ {
		n, err := r.exchange(s, seq, true)
		total += n
		if err != nil || n == 0 {
			return total, err
		}
	}
}

// exchange sends one batch and waits until the agent has it. It returns how
// many records that were. What is not acknowledged goes back to the queue.
func (r *reporter) exchange(s wire.Proxy_ReportClient, seq uint64, all bool) (int, error) {
	events, lost := r.batch(time.Now(), all)
	if len(events) == 0 && lost == 0 {
		return 0, nil
	}
	b := &wire.RecordBatch{Sequence: seq, Lost: lost, Events: make([][]byte, 0, len(events))}
	size := 0
	for i, e := range events {
		doc, err := json.Marshal(e)
		if err != nil {
			r.log.Error("record cannot be encoded", "error", err)
			continue
		}
		if size += len(doc); size > batchBytes && i > 0 {
			r.putBack(events[i:], 0)
			events = events[:i]
			break
		}
		b.Events = append(b.Events, doc)
	}
	err := s.Send(b)
	for err == nil {
		var ack *wire.RecordsAck
		if ack, err = s.Recv(); err == nil && ack.GetSequence() >= seq {
			r.metrics.reported.Add(float64(len(events)))
			return max(1, len(events)), nil
		}
	}
	r.putBack(events, lost)
	return 0, err
}
