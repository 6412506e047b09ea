// This file holds the step in which certificates rotate under a stream of
// requests.

package demo

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/aval-id/aval/audit"
)

const (
	// rotationsEach is how many new leaves each of web and api gets before
	// the step ends.
	rotationsEach = 3
	// rotationLimit bounds the step.
	rotationLimit = 25 * time.Second
	// requestPause is between two requests of one stream.
	requestPause = 15 * time.Millisecond
)

// load counts what a stream of requests met.
type load struct {
	mu        sync.Mutex
	requests  int
	failed    int
	kept      int
	reopened  int
	slowest   time.Duration
	lastError error
}

// rotate asks api through web without pause, on new connections and on one
// that stays open, until both have had new leaves several times.
func (p *play) rotate(ctx context.Context) error {
	p.out.comment("leaves live %s here; requests run on new connections, and on one that stays open", leafTTL)
	p.showAval("audit", "tail", "-f")
	from, start := p.records.mark(), time.Now()
	var l load
	work, stop := context.WithCancel(ctx)
	var workers sync.WaitGroup
	for _, path := range []string{"/", "/keep"} {
		workers.Go(func() { l.run(work, "http://"+p.site.app["web"]+path, path == "/keep") })
	}
	err := p.awaitRotations(ctx, from)
	stop()
	workers.Wait()
	if err != nil {
		return err
	}
	r := Rotation{
		Count:    len(p.records.since(from, issuanceTo(spiffeID("web"), spiffeID("api")))),
		Requests: l.requests, Failed: l.failed, Kept: l.kept, Reopened: l.reopened,
		DurationMS: millis(time.Since(start)), SlowestMS: millis(l.slowest),
	}
	r.Serials = p.serialsSeen(from)
	p.result.Rotation = r
	p.out.good("%d rotations in %.1f s, %d certificates seen in handshakes", r.Count, r.DurationMS/1e3, r.Serials)
	p.out.good("%d requests, %d failed, the slowest took %.1f ms; one connection carried %d of them", r.Requests, r.Failed, r.SlowestMS, r.Kept)
	p.result.expect(r.Failed == 0 && r.Requests > 0, "%d of %d requests failed while certificates rotated, the last with: %v", r.Failed, r.Requests, l.lastError)
	p.result.expect(r.Kept > 0 && r.Reopened == 0, "the open connection was made anew %d times while certificates rotated", r.Reopened)
	p.result.expect(r.Serials > 2, "only %d certificates were seen in handshakes while they rotated", r.Serials)
	return nil
}

// awaitRotations waits until web and api each got their new leaves.
func (p *play) awaitRotations(ctx context.Context, from int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, rotationLimit, fmt.Errorf("no %d rotations of each within %s", rotationsEach, rotationLimit))
	defer cancel()
	for _, name := range []string{"web", "api"} {
		at := from
		for n := range rotationsEach {
			what := fmt.Sprintf("rotation %d of %s", n+1, name)
			next, err := p.records.next(ctx, at, what, issuanceTo(spiffeID(name)))
			if err != nil {
				return err
			}
			at = next + 1
		}
	}
	return nil
}

// serialsSeen counts the certificates of handshakes recorded since a mark.
func (p *play) serialsSeen(from int) int {
	serials := map[string]bool{}
	for _, r := range p.records.since(from, inbound(audit.VerdictAllowed, mainPort)) {
		serials[r.ClientSerial] = true
		serials[r.ServerSerial] = true
	}
	delete(serials, "")
	return len(serials)
}

// run makes one request after the other until the context ends.
func (l *load) run(ctx context.Context, url string, keep bool) {
	client := &http.Client{Timeout: upstreamTimeout, Transport: &http.Transport{MaxConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	pause := time.NewTicker(requestPause)
	defer pause.Stop()
	for first := true; ; first = false {
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		start := time.Now()
		// A request that has begun is finished: it counts.
		answer, err := ask(context.WithoutCancel(ctx), client, url)
		l.count(answer, err, time.Since(start), keep && !first)
	}
}

func (l *load) count(answer *reply, err error, took time.Duration, kept bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests++
	l.slowest = max(l.slowest, took)
	switch {
	case err != nil:
		l.failed++
		l.lastError = err
	case kept && answer.Connection == "reused":
		l.kept++
	case kept:
		l.reopened++
	}
}
