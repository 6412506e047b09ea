// This file holds the proxy's two streams to its agent: Watch, which brings
// snapshots, and Report, which takes records. Both come back by themselves.

package proxy

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/policy"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/rotation"
)

// Reconnects to the agent, which is on the same machine, are tried quickly.
const (
	retryBase  = 50 * time.Millisecond
	retryLimit = 2 * time.Second

	// silentAfter is when an agent that does not answer is complained of.
	silentAfter = 5 * time.Second
)

// dialAgent makes the client of the agent's socket. The socket's peer is
// trusted by its path, which only the agent's owner can replace; the agent
// attests this process by its pid.
func dialAgent(path string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix:"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(wire.MaxMessageBytes), grpc.WaitForReady(true)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: retryBase, Multiplier: 1.6, Jitter: 0.2, MaxDelay: retryLimit},
			MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithIdleTimeout(0),
	)
	if err != nil {
		return nil, fmt.Errorf("client of the agent at %s: %w", path, err)
	}
	return conn, nil
}

// watch keeps a Watch stream open until ctx ends, and swaps in each snapshot
// that can be used.
func (p *Proxy) watch(ctx context.Context, client wire.ProxyClient) error {
	last := ""
	for attempt := 0; ; attempt++ {
		got, err := p.watchOnce(ctx, client, p.wanted(attempt))
		p.connected.Store(false)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if got {
			attempt = 0
		} else if status.Code(err) == codes.PermissionDenied {
			// The end of a stream may only say that something changed; a new
			// one that is denied at once says what holds.
			p.withdraw(err, time.Now())
		}
		if got || err.Error() != last { // the same refusal again is no news
			p.log.Warn("agent's stream ended", "error", err, "holds_snapshot", p.state.Load() != nil)
		}
		last = err.Error()
		if !rotation.Pause(ctx, rotation.Backoff(attempt, retryBase, retryLimit)) {
			return ctx.Err()
		}
	}
}

// wanted is the identity to ask for. A proxy whose file names none takes the
// process's only one and asks for that by name from then on: that the process
// gets another takes nothing away. Once it is denied, the only one is asked
// for again every other time, for it may be another now.
func (p *Proxy) wanted(attempt int) identity.ID {
	s := p.state.Load()
	if !p.cfg.Identity.IsZero() || s == nil || p.withdrawn.Load() != nil && attempt%2 == 1 {
		return p.cfg.Identity
	}
	return s.id()
}

// watchOnce serves one stream and reports whether anything came over it.
func (p *Proxy) watchOnce(ctx context.Context, client wire.ProxyClient, wanted identity.ID) (got bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Watch(ctx, &wire.WatchRequest{
		Identity:  wanted.String(),
		Evaluator: policy.EvaluatorVersion,

		Acknowledges: true,
	})
	if err != nil {
		return false, err
	}
	silence := time.AfterFunc(silentAfter, func() {
		p.log.Warn("the agent does not answer; waiting for it", "socket", p.socket, "holds_snapshot", p.state.Load() != nil)
	})
	defer silence.Stop()
	for {
		snap, err := stream.Recv()
		if err != nil {
			return got, err
		}
		silence.Stop()
		got = true
		p.connected.Store(true)
		if p.take(snap, time.Now()) {
			p.acknowledge(ctx, client, snap.GetTag())
		}
	}
}

// ackTimeout bounds the call that acknowledges a snapshot.
const ackTimeout = 5 * time.Second

// acknowledge tells the agent that a snapshot is in use and nothing older. A
// rollover of authorities waits for that; nothing of this proxy does.
func (p *Proxy) acknowledge(ctx context.Context, client wire.ProxyClient, tag uint64) {
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	_, err := client.Took(ctx, &wire.TookRequest{Tag: tag})
	if err != nil && ctx.Err() == nil && status.Code(err) != codes.Unimplemented {
		p.log.Warn("the agent did not take an acknowledgement", "error", err)
	}
}

// take swaps in the snapshot, or keeps what is in force where it cannot be
// used, and applies changed policies to open connections. It reports whether
// the snapshot is in force.
func (p *Proxy) take(snap *wire.Snapshot, now time.Time) bool {
	prev := p.state.Load()
	next, err := newState(snap, p.cfg.Identity, prev, now)
	if err != nil {
		p.log.Error("snapshot refused; the last complete one stays in force", "error", err)
		p.metrics.snapshots.WithLabelValues("refused").Inc()
		text := brief(err.Error())
		p.fault.Store(&text)
		return false
	}
	p.state.Store(next)
	p.fault.Store(nil)
	if p.withdrawn.Swap(nil) != nil {
		p.log.Info("the identity is granted again")
	}
	p.metrics.snapshots.WithLabelValues("taken").Inc()
	changed := prev == nil || prev.set != next.set
	if changed && next.unreadable != nil {
		p.log.Error("a policy cannot be read, so everything it may cover is denied", "error", next.unreadable)
	}
	p.log.Info("snapshot taken", "spiffe_id", next.id().String(), "serial", next.serial(),
		"not_after", next.end(), "generation", next.set.Generation(), "policies_changed", changed)
	if changed {
		p.warnDropped(next.set)
		p.announcer.notify() // the modes may be others
	}
	if prev == nil {
		close(p.first)
	} else if changed {
		p.reconsider(next)
	}
	p.cutRevoked(next, now)
	return true
}
