// This file holds Set: the policies that apply to one workload, and the
// decision about a connection.

package policy

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/aval-id/aval/identity"
)

// Set is the policies that apply to one workload, compiled. It is immutable
// and safe for concurrent use. A nil or zero Set admits nothing.
type Set struct {
	domain     identity.TrustDomain
	whole      resolved
	ports      map[uint16]resolved
	halted     bool   // a policy cannot be read
	unreadable string // "ns/name" of the first such policy
	deny       []AuthorizationPolicy
	allow      []AuthorizationPolicy
	audit      []AuthorizationPolicy
	openByRule bool // no ALLOW policy applies, and the setting says allow
	consulted  []string
	generation uint64
}

// Compile selects the policies that apply to w. The order of the input does
// not matter; keys must be unique. A policy that this evaluator cannot read
// makes the Set deny everything, whatever its action. The generation is the
// caller's number for this state of the policies.
func Compile(s Settings, w Workload, pas []PeerAuthentication, aps []AuthorizationPolicy, generation uint64) *Set {
	set := &Set{domain: s.TrustDomain, generation: generation}
	set.whole, set.ports = resolve(s, w, pas)
	var applied []AuthorizationPolicy
	for i := range aps {
		if aps[i].appliesTo(s, w) {
			applied = append(applied, aps[i])
		}
	}
	slices.SortStableFunc(applied, func(a, b AuthorizationPolicy) int { return a.key.Compare(b.key) })
	for _, p := range applied {
		switch {
		case !p.readable():
			if !set.halted {
				set.halted, set.unreadable = true, p.path
			}
			set.consulted = append(set.consulted, p.path)
		case p.action == Deny:
			set.deny = append(set.deny, p)
		case p.action == Allow:
			set.allow = append(set.allow, p)
		default:
			set.audit = append(set.audit, p)
		}
	}
	set.openByRule = len(set.allow) == 0 && !s.DefaultDeny
	for _, list := range [][]AuthorizationPolicy{set.deny, set.allow, set.audit} {
		for i := range list {
			set.consulted = append(set.consulted, list[i].path)
		}
	}
	return set
}

// Generation returns the number that was given to Compile.
func (s *Set) Generation() uint64 {
	if s == nil {
		return 0
	}
	return s.generation
}

// HasAllow reports whether an ALLOW policy applies to the workload. Where
// none does, the setting of the trust domain decides.
func (s *Set) HasAllow() bool { return s != nil && len(s.allow) > 0 }

// Mode returns the mode in force on a port of the workload and the "ns/name"
// of the PeerAuthentication that set it, "" for the default. Only a nil or
// zero Set answers Unset, which admits no plaintext.
func (s *Set) Mode(port uint16) (mode Mode, source string) {
	if s == nil {
		return Unset, ""
	}
	if r, ok := s.ports[port]; ok {
		return r.mode, r.source
	}
	return s.whole.mode, s.whole.source
}

// NeedsHTTP reports whether a policy that may apply to the port has fields
// that only requests of HTTP have. No policy that this version admits has.
func (s *Set) NeedsHTTP(port uint16) bool { return false }

// DecideRequest judges a request, or with HTTP nil a connection, as Decide
// does.
func (s *Set) DecideRequest(r *Request) Decision { return s.Decide(r.Connection) }

// Decide judges a connection by mode and policies together: plaintext where
// the mode refuses it, then DENY, then the trust domain, then ALLOW. It
// allocates nothing.
func (s *Set) Decide(c Connection) Decision {
	d := Decision{Reason: ReasonPolicyDenied, Rule: -1}
	if s == nil {
		return d
	}
	d.Mode, d.ModeSource = s.Mode(c.Port)
	d.Consulted, d.Generation = s.consulted, s.generation
	f := s.facts(c)
	if p, _ := firstMatch(s.audit, &f); p != nil {
		d.Audit = p.path
	}
	if f.peer.IsZero() && !d.Mode.AdmitsPlaintext() {
		d.Reason = ReasonPlaintextRefused
		return d
	}
	if s.halted {
		d.Policy = s.unreadable
		return d
	}
	if p, rule := firstMatch(s.deny, &f); p != nil {
		d.Policy, d.Rule = p.path, rule
		return d
	}
	p, rule := firstMatch(s.allow, &f)
	switch {
	case p != nil:
		d.Policy, d.Rule, d.Allowed = p.path, rule, true
	case f.foreign:
		d.Reason = ReasonWrongTrustDomain
	case s.openByRule:
		d.Allowed = true
	}
	if d.Allowed {
		d.Reason = ReasonAllowed
		if f.peer.IsZero() {
			d.Reason = ReasonPlaintextAllowed
		}
	}
	return d
}

func firstMatch(list []AuthorizationPolicy, f *facts) (*AuthorizationPolicy, int) {
	for i := range list {
		if rule, ok := list[i].match(f); ok {
			return &list[i], rule
		}
	}
	return nil, -1
}

// facts brings a connection into the form that terms compare.
func (s *Set) facts(c Connection) facts {
	f := facts{
		peer:        c.Peer,
		source:      plainAddr(c.Source),
		destination: plainAddr(c.Destination),
		port:        c.Port,
		sni:         strings.TrimSuffix(c.SNI, "."),
	}
	if c.Peer.IsZero() {
		return f
	}
	f.domain, f.path = c.Peer.TrustDomain().String(), c.Peer.Path()
	f.foreign = c.Peer.TrustDomain() != s.domain
	if !f.foreign {
		f.account.namespace, f.account.name, f.hasAccount = c.Peer.ServiceAccount()
	}
	return f
}

// plainAddr makes IPv4 of IPv4 in IPv6, and drops the zone, which would keep
// an address out of every block.
func plainAddr(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }
