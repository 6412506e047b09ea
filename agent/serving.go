// This file holds what the stream to the server asks of the rest of the
// agent: what this node serves, and the reissue of it.

package agent

import (
	"encoding/hex"
	"maps"
	"slices"
	"time"

	"github.com/aval-id/aval/agent/keyring"
	"github.com/aval-id/aval/agent/roster"
	"github.com/aval-id/aval/agent/upstream"
)

// serving joins the keyring, the node's own credential and the proxies.
type serving struct {
	agent   *Agent
	changed chan struct{}
}

// note tells that what is served may have changed. It never blocks.
func (s *serving) note() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Changed receives when Served may have another answer.
func (s *serving) Changed() <-chan struct{} { return s.changed }

// Served says what this node and the proxies behind it serve and trust.
func (s *serving) Served(r *roster.Roster, now time.Time) upstream.Served {
	held := s.agent.endpoint.Holdings(r.Bundle)
	set := map[string]bool{}
	for _, ski := range slices.Concat(s.agent.ring.Issuers(now), held.Issuers) {
		set[ski] = true
	}
	if c := s.agent.node.Credentials(); c.HasSVID() {
		set[hex.EncodeToString(c.SVID.Leaf().AuthorityKeyId)] = true
	}
	return upstream.Served{Issuers: slices.Sorted(maps.Keys(set)), Lagging: held.Lagging,
		Bundles: append([][32]byte{r.Bundle.Hash()}, held.Bundles...)}
}

// Reissue has SVIDs and the node's own credential issued anew.
func (s *serving) Reissue(o keyring.Order, now time.Time) {
	s.agent.ring.Reissue(o, now)
	if c := s.agent.node.Credentials(); c.HasSVID() && o.Covers(c.SVID) {
		s.agent.node.RenewAt(o.Due(now))
	}
}

// Reconnected has asked what the server's absence held up.
func (s *serving) Reconnected() { s.agent.ring.Reconnected() }

var _ upstream.Serving = (*serving)(nil)
