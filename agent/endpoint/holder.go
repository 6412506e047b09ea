// This file holds the answer to proxies that ask which process of this machine
// dialled them.

package endpoint

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/aval-id/aval/identity/neighbour"
	"github.com/aval-id/aval/identity/wire"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Bounds of the looks through /proc, for all proxies of the machine together.
const (
	searchEvery = 250 * time.Millisecond
	searchTime  = 200 * time.Millisecond
)

// searches says when the next look through /proc may begin.
type searches struct {
	mu   sync.Mutex
	next time.Time // guarded by mu
}

func (s *searches) may(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Before(s.next) {
		return false
	}
	s.next = now.Add(searchEvery)
	return true
}

// Holder names the process that dialled a connection. The caller must have an
// identity, and the other end must be a socket of its own user, as the kernel
// says: nobody learns of processes that did not dial him.
func (p *proxies) Holder(ctx context.Context, req *wire.HolderRequest) (*wire.HolderResponse, error) {
	who, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := p.reporter(ctx, who); err != nil {
		return nil, err
	}
	source, err := netip.ParseAddrPort(req.GetSource())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "source: not ip:port")
	}
	destination, err := netip.ParseAddrPort(req.GetDestination())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "destination: not ip:port")
	}
	own, err := neighbour.Find(destination, source)
	if err != nil || own.UID != who.UID {
		return nil, status.Error(codes.NotFound, "the caller holds no such connection")
	}
	far, err := neighbour.Find(source, destination)
	if err != nil {
		return nil, status.Error(codes.NotFound, "no process of this machine holds the other end")
	}
	now := time.Now()
	if !p.s.searches.may(now) {
		return nil, status.Error(codes.ResourceExhausted, "another search has just begun")
	}
	found := neighbour.Holders([]neighbour.Socket{far}, now.Add(searchTime))[far]
	return &wire.HolderResponse{Uid: far.UID, Unit: found.Unit, Exe: found.Exe}, nil
}
