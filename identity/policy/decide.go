// This file holds the decision about a connection or a request.

package policy

// Decide judges a connection that is not HTTP, or not known to be, as
// DecideRequest does. It allocates nothing.
func (s *Set) Decide(c Connection) Decision {
	r := Request{Connection: c}
	return s.DecideRequest(&r)
}

// DecideRequest judges a request, or with HTTP nil a connection, by mode and
// policies together: plaintext where the mode refuses it, then DENY, then
// ALLOW, then the trust domain. Where the mode is DISABLE no TLS is offered,
// so there is no peer either. It allocates nothing.
func (s *Set) DecideRequest(r *Request) Decision {
	if s == nil {
		return Decision{Reason: ReasonPolicyDenied, Rule: -1}
	}
	d := s.judge(&s.enforced, r)
	d.Consulted, d.Generation = s.enforced.consulted, s.generation
	if s.trial != nil {
		t := s.judge(s.trial, r)
		d.Trial = Trial{Ran: true, Allowed: t.Allowed, Reason: t.Reason, Policy: t.Policy, Rule: t.Rule, Mode: t.Mode, ModeSource: t.ModeSource}
	}
	return d
}

func (s *Set) judge(g *ruling, r *Request) Decision {
	d := Decision{Reason: ReasonPolicyDenied, Rule: -1}
	m := g.mode(r.Port)
	d.Mode, d.ModeSource = m.mode, m.source
	f := s.facts(r, m.mode != Disable)
	if p, ok := g.audit.first(&f); ok {
		d.Audit = p.policy
	}
	plaintext := f.domain == ""
	if plaintext && !d.Mode.AdmitsPlaintext() {
		d.Reason = ReasonPlaintextRefused
		return d
	}
	if g.halted {
		d.Policy = g.unreadable
		return d
	}
	if p, ok := g.deny.first(&f); ok {
		d.Policy, d.Rule = p.policy, p.rule
		return d
	}
	p, ok := g.allow.first(&f)
	switch {
	case ok:
		d.Policy, d.Rule, d.Allowed = p.policy, p.rule, true
	case f.foreign:
		d.Reason = ReasonWrongTrustDomain
	case g.open:
		d.Allowed = true
	}
	if d.Allowed {
		d.Reason = ReasonAllowed
		if plaintext {
			d.Reason = ReasonPlaintextAllowed
		}
	}
	return d
}

// Match is a rule that matches a request.
type Match struct {
	Policy string // "ns/name"
	Rule   int    // its index in the policy
	Action Action
}

// Matching returns every rule that matches a request, DENY before ALLOW before
// AUDIT, whatever the mode says, for people who ask why. With trial it takes
// in the policies on dry run.
func (s *Set) Matching(r *Request, trial bool) []Match {
	if s == nil {
		return nil
	}
	g := &s.enforced
	if trial && s.trial != nil {
		g = s.trial
	}
	f := s.facts(r, g.mode(r.Port).mode != Disable)
	var out []Match
	for _, part := range []struct {
		action Action
		index  *index
	}{{Deny, &g.deny}, {Allow, &g.allow}, {Audit, &g.audit}} {
		for _, p := range part.index.all(&f) {
			m := Match{Policy: p.policy, Rule: p.rule, Action: part.action}
			if n := len(out); n == 0 || out[n-1] != m {
				out = append(out, m)
			}
		}
	}
	return out
}

// Entrance judges a connection whose requests are judged by themselves: as a
// whole where the policies ask for nothing that only requests have, and else
// by the mode alone.
func (s *Set) Entrance(c Connection) Decision {
	d := s.Decide(c)
	if d.Allowed || !s.AsksRequests(c.Port) || d.Reason == ReasonPlaintextRefused {
		return d
	}
	d.Allowed, d.Policy, d.Rule, d.Reason = true, "", -1, ReasonAllowed
	if c.Peer.IsZero() {
		d.Reason = ReasonPlaintextAllowed
	}
	return d
}
