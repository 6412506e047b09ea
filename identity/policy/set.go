// This file holds Set: the policies that apply to one workload, compiled.

package policy

import (
	"slices"

	"github.com/aval-id/aval/identity"
)

// Set is the policies that apply to one workload, compiled. It is immutable
// and safe for concurrent use. A nil or zero Set admits nothing.
type Set struct {
	domain     identity.TrustDomain
	enforced   ruling
	trial      *ruling // of the enforced policies and those on dry run; nil where none of these applies
	fields     []requestField
	generation uint64

	authentication *Authentication // nil where tokens are not looked at
}

// ruling is policies that decide together.
type ruling struct {
	whole      resolved
	ports      map[uint16]resolved
	halted     bool   // a policy cannot be read
	unreadable string // "ns/name" of the first such policy
	deny       index
	allow      index
	audit      index
	hasAllow   bool
	open       bool // what no DENY matches is allowed: no ALLOW policy applies, and the setting says so
	consulted  []string
}

// requestField is a field that only HTTP has, in a rule that may apply to some
// ports.
type requestField struct {
	policy, field string
	ports         []uint16 // nil means all
}

// Compile selects the policies that apply to w. The order of the input does
// not matter; keys must be unique. A policy that this evaluator cannot read
// makes the Set deny everything, whatever its action. The generation is the
// caller's number for this state of the policies.
func Compile(s Settings, w Workload, pas []PeerAuthentication, aps []AuthorizationPolicy, generation uint64) *Set {
	set := &Set{domain: s.TrustDomain, generation: generation}
	var enforced, applied []AuthorizationPolicy
	tried := slices.ContainsFunc(pas, func(p PeerAuthentication) bool { return p.dryRun && p.appliesTo(s, w) })
	for i := range aps {
		if !aps[i].appliesTo(s, w) {
			continue
		}
		applied = append(applied, aps[i])
		if aps[i].dryRun {
			tried = true
		} else {
			enforced = append(enforced, aps[i])
		}
		set.fields = append(set.fields, aps[i].requestFields()...)
	}
	settled := slices.DeleteFunc(slices.Clone(pas), func(p PeerAuthentication) bool { return p.dryRun })
	set.enforced = rulingOf(s, w, settled, enforced)
	if tried {
		trial := rulingOf(s, w, pas, applied)
		set.trial = &trial
	}
	return set
}

func rulingOf(s Settings, w Workload, pas []PeerAuthentication, aps []AuthorizationPolicy) ruling {
	r := ruling{allow: index{allow: true}}
	r.whole, r.ports = resolve(s, w, pas)
	slices.SortStableFunc(aps, func(a, b AuthorizationPolicy) int { return a.key.Compare(b.key) })
	var deny, allow, audit []string
	for i := range aps {
		p := &aps[i]
		switch {
		case !p.readable():
			if !r.halted {
				r.halted, r.unreadable = true, p.path
			}
			r.consulted = append(r.consulted, p.path)
		case p.action == Deny:
			deny = append(deny, p.path)
			r.deny.addPolicy(p)
		case p.action == Allow:
			allow = append(allow, p.path)
			r.allow.addPolicy(p)
		default:
			audit = append(audit, p.path)
			r.audit.addPolicy(p)
		}
	}
	r.hasAllow = len(allow) > 0
	r.open = !r.hasAllow && !s.DefaultDeny
	r.consulted = slices.Concat(r.consulted, deny, allow, audit)
	return r
}

func (x *index) addPolicy(p *AuthorizationPolicy) {
	for i := range p.rules {
		x.add(place{policy: p.path, rule: i}, &p.rules[i])
	}
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
func (s *Set) HasAllow() bool { return s != nil && s.enforced.hasAllow }

// HasAllow reports whether an enforced ALLOW policy among aps applies to w,
// as the Set of both would, without compiling them.
func HasAllow(s Settings, w Workload, aps []AuthorizationPolicy) bool {
	return slices.ContainsFunc(aps, func(p AuthorizationPolicy) bool {
		return p.action == Allow && !p.dryRun && p.readable() && p.appliesTo(s, w)
	})
}

// Mode returns the mode in force on a port of the workload and the "ns/name"
// of the PeerAuthentication that set it, "" for the default. Only a nil or
// zero Set answers Unset, which admits no plaintext.
func (s *Set) Mode(port uint16) (mode Mode, source string) {
	if s == nil {
		return Unset, ""
	}
	m := s.enforced.mode(port)
	return m.mode, m.source
}

// Modes returns the mode in force on the workload's ports, and on those where
// a policy sets one for the port.
func (s *Set) Modes() (whole Mode, ports map[uint16]Mode) {
	if s == nil {
		return Unset, nil
	}
	ports = make(map[uint16]Mode, len(s.enforced.ports))
	for port, m := range s.enforced.ports {
		ports[port] = m.mode
	}
	return s.enforced.whole.mode, ports
}

func (r *ruling) mode(port uint16) resolved {
	if m, ok := r.ports[port]; ok {
		return m
	}
	return r.whole
}

// NeedsHTTP reports whether the port's connections are to be judged request
// by request where they are HTTP: because of a policy, or of tokens.
func (s *Set) NeedsHTTP(port uint16) bool {
	return s != nil && (s.authentication != nil || s.AsksRequests(port))
}

// AsksRequests reports whether a policy that may apply to the port, also one
// on dry run, has fields that only requests of HTTP have.
func (s *Set) AsksRequests(port uint16) bool {
	return s != nil && slices.ContainsFunc(s.fields, func(f requestField) bool { return f.on(port) })
}

// RequestFields returns the fields that NeedsHTTP means, as "ns/name FIELD",
// in order. Where the port's connections are not HTTP they are dropped: in an
// ALLOW rule with the whole rule, in DENY and AUDIT alone. The rules of a
// RequestAuthentication have no effect there.
func (s *Set) RequestFields(port uint16) []string {
	if s == nil {
		return nil
	}
	var out []string
	for _, f := range s.fields {
		if f.on(port) {
			out = append(out, f.policy+" "+f.field)
		}
	}
	if s.authentication != nil {
		for _, name := range s.authentication.policies {
			out = append(out, name+" spec.jwtRules")
		}
	}
	slices.Sort(out)
	return out
}

func (f requestField) on(port uint16) bool { return f.ports == nil || slices.Contains(f.ports, port) }

// requestFields returns the fields of p that only HTTP has.
func (p *AuthorizationPolicy) requestFields() []requestField {
	var out []requestField
	for i := range p.rules {
		r := &p.rules[i]
		for _, field := range r.requestFields {
			out = append(out, requestField{policy: p.path, field: field, ports: r.ports()})
		}
	}
	return out
}

// ports returns the ports that a rule can match, nil for all.
func (r *rule) ports() []uint16 {
	if ports := r.when.ports(); ports != nil {
		return ports
	}
	var out []uint16
	for _, c := range r.to {
		ports := c.ports()
		if ports == nil {
			return nil
		}
		out = append(out, ports...)
	}
	return out
}

// ports returns the ports that a clause can match, nil for all.
func (c clause) ports() []uint16 {
	for i := range c {
		if c[i].attribute == attrDestinationPort && !c[i].not {
			return c[i].ports
		}
	}
	return nil
}
