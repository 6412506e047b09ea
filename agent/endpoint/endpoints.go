// This file holds the registry of endpoints as proxies see it: they announce
// where their workloads take connections, and ask where others do.

package endpoint

import (
	"context"
	"sync"
	"time"

	"github.com/aval-id/aval/agent/roster"
	"github.com/aval-id/aval/identity/directory"
	"github.com/aval-id/aval/identity/directory/protocol"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/rotation"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	// endpointsPause is the least time between two sets on one stream.
	endpointsPause = 50 * time.Millisecond
	// endpointsAtOnce bounds the endpoints of one message.
	endpointsAtOnce = 2000
)

// Announce takes where the caller takes connections, stamps it with the
// identity that the caller is attested to have, and forgets it with the call,
// or when the caller is no longer entitled.
func (p *proxies) Announce(req *wire.Announcement, stream wire.Proxy_AnnounceServer) error {
	announcement := p.s.cfg.Directory.Announce()
	defer announcement.Close()
	stamped := ""
	return p.s.follow(stream.Context(), p.as(req.GetIdentity(), func(reg *roster.Registration) error {
		if stamped == reg.Path()+" "+reg.ID.String() {
			return nil
		}
		endpoints, err := stampEndpoints(req.GetEndpoints(), reg)
		if err != nil {
			return status.Errorf(codes.InvalidArgument, "%v", err)
		}
		if err := announcement.Set(endpoints); err != nil {
			return status.Errorf(codes.ResourceExhausted, "announcement: %v", err)
		}
		stamped = reg.Path() + " " + reg.ID.String()
		return stream.Send(&wire.Announced{})
	}))
}

// as follows the caller's entitlement to one identity, without SVIDs. What it
// is entitled by is given to push at the start and after each change.
func (p *proxies) as(wanted string, push func(*roster.Registration) error) follower {
	var chosen *roster.Registration
	return follower{
		choose: func(matches []*roster.Registration) ([]*roster.Registration, error) {
			one, err := pick(matches, wanted)
			if err == nil {
				chosen = one[0]
			}
			return one, err
		},
		push: func(_ moment, check func() error) error {
			if err := check(); err != nil {
				return err
			}
			return push(chosen)
		},
	}
}

// stampEndpoints checks what a proxy announces and says whose it is.
func stampEndpoints(list []*wire.Endpoint, reg *roster.Registration) ([]*wire.Endpoint, error) {
	if len(list) > directory.MaxPerProxy {
		list = list[:directory.MaxPerProxy+1] // refused by the caller
	}
	out := make([]*wire.Endpoint, 0, len(list))
	for _, w := range list {
		w = proto.CloneOf(w)
		w.Node, w.Registration, w.SpiffeId = "", reg.Path(), reg.ID.String()
		e, err := protocol.ToEndpoint(w)
		if err != nil {
			return nil, err
		}
		out = append(out, protocol.FromEndpoint(e))
	}
	return out, nil
}

// Endpoints streams the registry to a proxy that has an identity: whole each
// time, as soon as it is known and after each change.
func (p *proxies) Endpoints(req *wire.EndpointsRequest, stream wire.Proxy_EndpointsServer) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	entitled := make(chan struct{})
	var once sync.Once
	var following sync.WaitGroup
	following.Go(func() {
		cancel(p.s.follow(ctx, p.as(req.GetIdentity(), func(*roster.Registration) error {
			once.Do(func() { close(entitled) })
			return nil
		})))
	})
	defer following.Wait()
	defer cancel(nil)
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-entitled:
	}
	p.s.cfg.Directory.Want()
	for {
		set, revision, changed := p.s.cfg.Directory.Set()
		if set != nil {
			if err := sendEndpoints(set, revision, stream); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
		if !rotation.Pause(ctx, endpointsPause) {
			return context.Cause(ctx)
		}
	}
}

func sendEndpoints(set *directory.Set, revision uint64, stream wire.Proxy_EndpointsServer) error {
	all := set.All()
	for {
		n := min(len(all), endpointsAtOnce)
		part := &wire.EndpointSet{Revision: revision, Complete: n == len(all)}
		for _, e := range all[:n] {
			part.Endpoints = append(part.Endpoints, protocol.FromEndpoint(e))
		}
		if err := stream.Send(part); err != nil {
			return err
		}
		if all = all[n:]; part.Complete {
			return nil
		}
	}
}
