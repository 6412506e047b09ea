// This file holds acknowledgements: that a position is held, and what the node
// and the proxies behind it serve and trust, told again whenever that changes.

package upstream

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/aval-id/aval/agent/keyring"
	"github.com/aval-id/aval/agent/roster"
	"github.com/aval-id/aval/identity/wire"
)

// told is what was acknowledged last on a stream.
type told struct {
	mu     sync.Mutex
	roster *roster.Roster // nil before the first complete delta; guarded by mu
	served Served         // guarded by mu
}

// acknowledge says that a roster is held, and what is served under it.
func (s *session) acknowledge(ctx context.Context, r *roster.Roster) error {
	s.told.mu.Lock()
	defer s.told.mu.Unlock()
	s.told.roster = r
	return s.sendAck(ctx, s.client.serving.Served(r, time.Now()))
}

// acknowledgeChanges says again what is served whenever that changed, until
// ctx ends.
func (s *session) acknowledgeChanges(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.client.serving.Changed():
		}
		if err := s.acknowledgeChange(ctx); err != nil {
			return err
		}
	}
}

func (s *session) acknowledgeChange(ctx context.Context) error {
	s.told.mu.Lock()
	defer s.told.mu.Unlock()
	if s.told.roster == nil {
		return nil
	}
	now := s.client.serving.Served(s.told.roster, time.Now())
	if was := s.told.served; slices.Equal(now.Issuers, was.Issuers) && slices.Equal(now.Bundles, was.Bundles) && slices.Equal(now.Lagging, was.Lagging) {
		return nil
	}
	return s.sendAck(ctx, now)
}

// sendAck sends one acknowledgement. The caller holds told.mu.
func (s *session) sendAck(ctx context.Context, served Served) error {
	ack := &wire.Ack{Position: s.told.roster.Position.Wire(), Issuers: served.Issuers, Lagging: served.Lagging, Clock: time.Now().UnixMilli()}
	for _, b := range served.Bundles {
		ack.Bundles = append(ack.Bundles, b[:])
	}
	s.told.served = served
	return s.put(ctx, &wire.NodeFrame{Frame: &wire.NodeFrame_Ack{Ack: ack}})
}

// maxSpread bounds the spread that a server may ask for.
const maxSpread = time.Hour

// orderOf takes an order from the wire.
func orderOf(r *wire.Reissue) keyring.Order {
	o := keyring.Order{Issuers: map[string]bool{}, IDs: map[string]bool{},
		Spread: time.Duration(min(max(r.GetSpread(), 0), maxSpread.Milliseconds())) * time.Millisecond}
	for _, ski := range r.GetIssuers() {
		o.Issuers[ski] = true
	}
	for _, id := range r.GetSpiffeIds() {
		o.IDs[id] = true
	}
	if r.GetBefore() != 0 {
		o.Before = time.UnixMilli(r.GetBefore())
	}
	return o
}
