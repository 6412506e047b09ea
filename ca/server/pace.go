// This file holds the pace of each node: how many certificates and records it
// may cause, so that a compromised one can't fill a log.

package server

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Pace is a bound on how often something happens: so many times a second in
// the long run, and so many at once.
type Pace struct {
	PerSecond float64 // zero means the default, negative no bound
	Burst     int     // zero means the default
}

// The paces of a node where none is set, far above what an honest one needs:
// ten thousand SVIDs of the shortest lifetime, renewed at its half, are 67 a
// second, and a busy proxy counts alike connections together.
var (
	DefaultIssuePace  = Pace{PerSecond: 100, Burst: 20_000}
	DefaultRecordPace = Pace{PerSecond: 2_000, Burst: 100_000}
)

// withDefault fills in what is not set, and checks the rest.
func (p Pace) withDefault(name string, def Pace) (Pace, error) {
	switch {
	case p.PerSecond == 0:
		p.PerSecond = def.PerSecond
	case p.PerSecond < 0:
		p.PerSecond = float64(rate.Inf)
	}
	if p.Burst == 0 {
		p.Burst = def.Burst
	}
	if math.IsNaN(p.PerSecond) || p.Burst < 1 {
		return p, fmt.Errorf("server config: %s pace of %v a second, %d at once: both must be above zero", name, p.PerSecond, p.Burst)
	}
	return p, nil
}

func (p Pace) limiter() *rate.Limiter { return rate.NewLimiter(rate.Limit(p.PerSecond), p.Burst) }

// nodePaces holds what each node has left, by its ID.
type nodePaces struct {
	issue, record Pace

	mu    sync.Mutex
	nodes map[string]*nodePace // guarded by mu
}

type nodePace struct{ issue, record *rate.Limiter }

func (p *nodePaces) of(node string) *nodePace {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, ok := p.nodes[node]
	if !ok {
		if p.nodes == nil {
			p.nodes = make(map[string]*nodePace)
		}
		n = &nodePace{p.issue.limiter(), p.record.limiter()}
		p.nodes[node] = n
	}
	return n
}

// certificates takes up to n certificates from what a node has left. Where
// that is fewer, the error says when to ask for the rest.
func (p *nodePaces) certificates(node string, n int, now time.Time) (granted int, over error) {
	l := p.of(node).issue
	if l.Limit() == rate.Inf {
		return n, nil
	}
	granted = max(0, min(n, int(l.TokensAt(now))))
	if !l.AllowN(now, granted) {
		granted = 0
	}
	if granted == n {
		return n, nil
	}
	// What it lacks comes at its pace, as far as it can be saved up at all.
	lacks := float64(min(n-granted, l.Burst())) - max(0, l.TokensAt(now))
	after := time.Duration(max(1, lacks/float64(l.Limit())) * float64(time.Second))
	return granted, &overPace{pace: p.issue, after: min(after, maxRetryAfter)}
}

// records waits until a node may store n records. They wait with it: its next
// batch is not taken before.
func (p *nodePaces) records(ctx context.Context, node string, n int) (waited bool, err error) {
	l := p.of(node).record
	n = min(n, l.Burst())
	if l.AllowN(time.Now(), n) {
		return false, nil
	}
	return true, l.WaitN(ctx, n)
}

// maxRetryAfter bounds the hint of when to ask again.
const maxRetryAfter = time.Minute

// overPace refuses what goes beyond a node's pace. It passes later.
type overPace struct {
	pace  Pace
	after time.Duration
}

// Error says what the bound is.
func (e *overPace) Error() string {
	return fmt.Sprintf("this node asked for more than %g certificates a second, %d at once: ask again in %s",
		e.pace.PerSecond, e.pace.Burst, e.after.Round(time.Millisecond))
}
