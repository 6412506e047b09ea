// This file holds plaintext exceptions on the inbound path: what they make of
// a decision, and their end.

package proxy

import (
	"context"
	"net/netip"
	"time"

	"github.com/aval-id/aval/identity/policy"
	"github.com/aval-id/aval/rotation"
)

// exemptionCheck is how often the end of an exception is looked for: what it
// let in is closed within a second of it.
const exemptionCheck = 500 * time.Millisecond

// decide judges a connection by policies, mode and exceptions, and names the
// exception that let it in, if one did.
func (s *state) decide(c policy.Connection, now time.Time) (policy.Decision, string) {
	return s.exempt.Decide(s.set.Decide(c), c, now)
}

// modeFor returns the mode in force for a client: an exception makes STRICT
// mean PERMISSIVE.
func (s *state) modeFor(source netip.Addr, port uint16, now time.Time) policy.Mode {
	mode, _ := s.set.Mode(port)
	if mode == policy.Strict && s.exempt.Covering(source, port, now) != "" {
		return policy.Permissive
	}
	return mode
}

// exempted reports whether an exception lets the client in where the mode
// would not. Its connection is then judged as a whole, never by request.
func (v *visit) exempted() bool {
	return v.st.exempt.Covering(v.source.Addr(), v.in.Port, time.Now()) != ""
}

// endExemptions closes what an exception let in once it has ended, until ctx
// ends.
func (p *Proxy) endExemptions(ctx context.Context) {
	for last := time.Now(); rotation.Pause(ctx, exemptionCheck); {
		now := time.Now()
		if s := p.state.Load(); s != nil && s.exempt.EndedBetween(last, now) {
			p.reconsider(s)
		}
		last = now
	}
}
