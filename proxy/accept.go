// This file holds the accept loop, the connection limit, and the life of a
// link from accept to finish.

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/wire/sources"
	"github.com/aval-id/aval/rotation"
)

// accept serves one listener until it is closed. ctx ends accepting, lasting
// ends what was accepted.
func (p *Proxy) accept(ctx, lasting context.Context, port port) {
	for attempt := 0; ; {
		c, err := port.listener.AcceptTCP()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors, most likely: others must close first.
			p.log.Error("accept", "address", port.listener.Addr().String(), "error", err)
			if !rotation.Pause(ctx, rotation.Backoff(attempt, 5*time.Millisecond, time.Second)) {
				return
			}
			attempt++
			continue
		}
		attempt = 0
		l, err := p.admitLink(c, port)
		if err != nil {
			p.turnAway(c, port.direction, err)
			continue
		}
		p.table.add(l)
		p.conns.Add(1)
		// The handshake has a goroutine of its own: its stack grows to 16 KiB
		// and more, and is given back with it.
		go p.begin(lasting, port, l)
	}
}

// admitLink takes everything that a connection occupies, or says which bound
// it is over.
func (p *Proxy) admitLink(c *net.TCPConn, port port) (*link, error) {
	l := &link{direction: port.direction, target: port.target, source: addrOf(c.RemoteAddr()), began: time.Now()}
	if most := p.limitOf(port.direction); p.open.Add(1) > most {
		p.open.Add(-1)
		return nil, fmt.Errorf("more than %d connections", most)
	}
	err := p.takeSeat(l, port)
	if err == nil {
		l.near, err = newRaw(c, nil)
	}
	if err != nil {
		p.open.Add(-1)
		l.seat.Leave()
		return nil, err
	}
	return l, nil
}

// newSources bounds who occupies the inbound ports. Where nothing is set for
// sources, loopback is none.
func newSources(l Limits) *sources.Sources {
	s := sources.Limits{Handshakes: l.MaxHandshakes, SourceConnections: l.MaxConnectionsPerSource, SourceHandshakes: l.MaxHandshakesPerSource,
		SpareLoopback: l.MaxConnectionsPerSource == 0 && l.MaxHandshakesPerSource == 0}
	orDefault(&s.SourceConnections, max(1, l.MaxConnections/2))
	orDefault(&s.SourceHandshakes, max(1, l.MaxHandshakes/4))
	return sources.New(s)
}

// takeSeat counts an inbound connection. One from a load balancer is counted
// for its source once that is told.
func (p *Proxy) takeSeat(l *link, port port) (err error) {
	if p.memory.full.Load() {
		return fmt.Errorf("the process holds more than %d MiB", p.cfg.Limits.MaxMemoryMiB)
	}
	if port.direction != audit.DirectionInbound {
		return nil
	}
	if l.seat, err = p.sources.Seat(); err != nil || port.in.trusts(l.source.Addr()) {
		return err
	}
	return l.seat.Charge(l.source.Addr())
}

// begin serves a link up to its verdict. What a stranger sends must not end
// the process, so a panic on its way ends that connection alone.
func (p *Proxy) begin(ctx context.Context, port port, l *link) {
	forwarded := false
	defer func() {
		if fault := recover(); fault != nil {
			p.metrics.panics.Inc()
			p.log.Error("panic while serving a connection", "direction", port.direction, "panic", fault, "stack", string(debug.Stack()))
		}
		if !forwarded {
			p.finish(l)
		}
	}()
	forwarded = port.serve(ctx, l)
}

// turnAway refuses a connection over the limit at once and cheaply.
func (p *Proxy) turnAway(c *net.TCPConn, direction string, over error) {
	source := addrOf(c.RemoteAddr())
	e := p.event(time.Now(), direction, audit.VerdictDenied, audit.ReasonLimit)
	e.Source, e.Destination, e.Detail = source.String(), c.LocalAddr().String(), over.Error()
	c.SetLinger(0)
	c.Close()
	p.record(e, source)
}

// finish ends a link for good.
func (p *Proxy) finish(l *link) {
	l.close(false)
	p.recordEnd(l, time.Now())
	l.seat.Leave()
	p.table.remove(l)
	p.open.Add(-1)
	p.conns.Done()
}

// forward starts both directions and returns. The last to end finishes the
// link.
func (p *Proxy) forward(l *link, near, far half) {
	now := time.Now()
	l.opened.Store(&now)
	left := new(atomic.Int32)
	left.Store(2)
	go p.direction(l, far, near, left)
	go p.direction(l, near, far, left)
}

func (p *Proxy) direction(l *link, to, from half, left *atomic.Int32) {
	if err := pump(to, from); err != nil {
		// A reset on one side becomes a reset on the other.
		if isReset(err) {
			l.because(audit.ReasonReset)
		}
		l.close(isReset(err))
	}
	if left.Add(-1) == 0 {
		p.finish(l)
	}
}
