// This file holds a session's part in the registry of endpoints: the node's
// report up, deltas down.

package upstream

import (
	"context"
	"time"

	"github.com/aval-id/aval/identity/directory/protocol"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/rotation"
)

// reportPause gathers changes that come together into one report.
const reportPause = 20 * time.Millisecond

// report tells the server where this node's workloads take connections, at
// once and at each change, until ctx ends.
func (s *session) report(ctx context.Context) error {
	if !s.registry {
		<-ctx.Done()
		return ctx.Err()
	}
	for {
		r, changed, again := s.client.cfg.Directory.Report(time.Now())
		if err := s.put(ctx, &wire.NodeFrame{Frame: &wire.NodeFrame_Endpoints{Endpoints: r}}); err != nil {
			return err
		}
		var late <-chan time.Time
		if again > 0 {
			late = time.After(again)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-late:
		}
		if !rotation.Pause(ctx, reportPause) {
			return ctx.Err()
		}
	}
}

// endpoints takes a delta of the registry.
func (s *session) endpoints(d *wire.EndpointDelta) {
	delta, faults := protocol.ToEndpointDelta(d)
	if fault := s.client.cfg.Directory.Apply(delta); fault != nil {
		faults = append(faults, fault)
	}
	if len(faults) > 0 {
		s.client.cfg.Logger.Warn("endpoints of the registry were left out", "endpoints", len(faults), "error", faults[0])
	}
}
