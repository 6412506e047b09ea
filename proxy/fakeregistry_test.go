// This file holds the registry of endpoints of the agent that tests use.

package proxy

import (
	"slices"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/identity/wire"
)

// fakeRegistry is what a fakeAgent keeps of it. The zero value keeps none.
type fakeRegistry struct {
	keeps     bool
	set       []*wire.Endpoint // nil is not known yet
	sets      int              // how often set was given
	announced map[*wire.Announcement]bool
}

// register puts a registry in force, in parts of one endpoint.
func (a *fakeAgent) register(all ...*wire.Endpoint) {
	a.change(func() {
		a.registry.keeps, a.registry.set = true, append([]*wire.Endpoint{}, all...)
		a.registry.sets++
	})
}

// at is an endpoint for register.
func at(id, address string, port uint32, mode string) *wire.Endpoint {
	return &wire.Endpoint{Node: "spiffe://example.org/aval/node/n1", SpiffeId: id, Address: address, Port: port, Mode: mode}
}

func (a *fakeAgent) Endpoints(_ *wire.EndpointsRequest, stream grpc.ServerStreamingServer[wire.EndpointSet]) error {
	sent := 0
	for {
		a.mu.Lock()
		r, changed := a.registry, a.changed
		a.mu.Unlock()
		if !r.keeps {
			return status.Error(codes.Unimplemented, "no registry")
		}
		if r.set != nil && r.sets != sent {
			sent = r.sets
			for _, e := range r.set {
				if err := stream.Send(&wire.EndpointSet{Endpoints: []*wire.Endpoint{e}}); err != nil {
					return err
				}
			}
			if err := stream.Send(&wire.EndpointSet{Complete: true, Revision: uint64(sent)}); err != nil {
				return err
			}
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-changed:
		}
	}
}

func (a *fakeAgent) Announce(req *wire.Announcement, stream grpc.ServerStreamingServer[wire.Announced]) error {
	a.mu.Lock()
	keeps := a.registry.keeps
	a.mu.Unlock()
	if !keeps {
		return status.Error(codes.Unimplemented, "no registry")
	}
	a.change(func() {
		if a.registry.announced == nil {
			a.registry.announced = map[*wire.Announcement]bool{}
		}
		a.registry.announced[req] = true
	})
	defer a.change(func() { delete(a.registry.announced, req) })
	if err := stream.Send(&wire.Announced{}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// awaitAnnounced waits until exactly one announcement is in force for which
// ok holds; nil waits until there is none.
func (a *fakeAgent) awaitAnnounced(t testing.TB, what string, ok func([]*wire.Endpoint) bool) {
	t.Helper()
	var last []*wire.Endpoint
	defer func() {
		if t.Failed() {
			t.Logf("announced: %v", last)
		}
	}()
	eventually(t, what, func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		if ok == nil || len(a.registry.announced) != 1 {
			return ok == nil && len(a.registry.announced) == 0
		}
		for one := range a.registry.announced {
			last = slices.Clone(one.GetEndpoints())
		}
		return ok(last)
	})
}
