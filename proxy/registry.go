// This file holds the registry of endpoints as a transparent proxy uses it:
// whom it expects behind the addresses that processes dial.

package proxy

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/directory"
	"github.com/aval-id/aval/identity/directory/protocol"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/rotation"
)

// The origins of what is expected behind a destination.
const (
	originConfigured = "configured" // a destination of the configuration
	originRegistry   = "registry"   // the registry of endpoints
	originUnknown    = "unknown"    // neither
)

// registry is what the proxy holds of the registry. What it holds stays in
// use while the agent is gone.
type registry struct {
	held  atomic.Pointer[heldRegistry] // nil until the first whole one
	first chan struct{}                // closed with it

	mu       sync.Mutex
	resolved map[netip.AddrPort]*resolution // guarded by mu
}

type heldRegistry struct {
	set      *directory.Set
	revision uint64
}

// maxResolved bounds the destinations that status shows.
const maxResolved = 256

// resolution is what was made of a destination lately.
type resolution struct {
	origin  string
	ids     []identity.ID
	refused bool
	count   uint64
	last    time.Time
}

// take puts a whole registry in force.
func (r *registry) take(set *directory.Set, revision uint64) {
	if r.held.Swap(&heldRegistry{set, revision}) == nil {
		close(r.first)
	}
}

// find returns who is expected at an address. Until the first registry has
// come it waits, and reports known false where none does: whether plaintext
// may go there is not known then.
func (r *registry) find(ctx context.Context, to netip.AddrPort, patience time.Duration) (a directory.Answer, registered, known bool) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-r.first:
	case <-timer.C:
		return a, false, false
	case <-ctx.Done():
		return a, false, false
	}
	a, registered = r.held.Load().set.Find(to)
	return a, registered, true
}

// note keeps what was made of a destination.
func (r *registry) note(to netip.AddrPort, origin string, ids []identity.ID, refused bool, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	one := r.resolved[to]
	if one == nil {
		if len(r.resolved) >= maxResolved {
			r.forgetOldest()
		}
		one = &resolution{}
		r.resolved[to] = one
	}
	one.origin, one.ids, one.refused, one.last = origin, ids, refused, now
	one.count++
}

// forgetOldest makes room. The caller holds mu.
func (r *registry) forgetOldest() {
	var oldest netip.AddrPort
	for to, one := range r.resolved {
		if !oldest.IsValid() || one.last.Before(r.resolved[oldest].last) {
			oldest = to
		}
	}
	delete(r.resolved, oldest)
}

// describe lists the destinations, newest first.
func (r *registry) describe() []*wire.ProxyDestination {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*wire.ProxyDestination
	for to, one := range r.resolved {
		d := &wire.ProxyDestination{Address: to.String(), Origin: one.origin, Refused: one.refused, Count: one.count, Last: one.last.UnixMilli()}
		for _, id := range one.ids {
			d.Identities = append(d.Identities, id.String())
		}
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b *wire.ProxyDestination) int { return int(b.Last - a.Last) })
	return out
}

// followRegistry keeps the registry up to date until ctx ends, where the
// configuration needs it.
func (p *Proxy) followRegistry(ctx context.Context, client wire.ProxyClient) {
	if !p.wantsRegistry() {
		return
	}
	select {
	case <-ctx.Done():
		return
	case <-p.first:
	}
	for attempt := 0; ; attempt++ {
		got, err := p.followOnce(ctx, client)
		if ctx.Err() != nil {
			return
		}
		switch {
		case got:
			attempt = 0
		case status.Code(err) == codes.Unimplemented && p.registry.held.Load() == nil:
			p.log.Info("the agent keeps no registry of endpoints")
			p.registry.take(nil, 0)
		}
		if !rotation.Pause(ctx, rotation.Backoff(attempt, retryBase, retryLimit)) {
			return
		}
	}
}

func (p *Proxy) wantsRegistry() bool {
	return p.cfg.Transparent != nil && p.cfg.Transparent.Outbound != nil
}

// followOnce serves one stream and reports whether a registry came over it.
// One that is not whole, or that holds what cannot be read, is not taken.
func (p *Proxy) followOnce(ctx context.Context, client wire.ProxyClient) (got bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Endpoints(ctx, &wire.EndpointsRequest{Identity: p.wanted(0).String()})
	if err != nil {
		return false, err
	}
	var gathered []directory.Endpoint
	for {
		part, err := stream.Recv()
		if err != nil {
			return got, err
		}
		for _, w := range part.GetEndpoints() {
			e, err := protocol.ToEndpoint(w)
			if err != nil {
				p.log.Error("registry refused; the last one stays in force", "error", err)
				return got, err
			}
			gathered = append(gathered, e)
		}
		if len(gathered) > 2*directory.MaxTotal {
			p.log.Error("registry refused as too large; the last one stays in force", "endpoints", len(gathered))
			return got, status.Error(codes.ResourceExhausted, "too many endpoints")
		}
		if part.GetComplete() {
			p.registry.take(directory.NewSet(gathered), part.GetRevision())
			gathered, got = nil, true
		}
	}
}
