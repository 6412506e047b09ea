// This file holds Bounds: the verdict on a request of which not everything is
// known, where it is the same whatever the rest was.

package policy

import (
	"slices"
	"strings"
)

// Unknown says what is not known of requests.
type Unknown struct {
	Headers bool // all but Host, and the ones of HTTP/2 that Method and Host are
	Token   bool // the JSON Web Token
	Path    bool
	Host    bool // and the method
}

// Bounds judges requests of which some parts are not known: once so that every
// field about these refuses, and once so that every one lets through. It is
// immutable and safe for concurrent use.
type Bounds struct {
	least, most *Set
	asked       map[place][]string // the fields of each rule that are not known
}

// CompileBounds selects the policies that apply to w, as Compile does.
func CompileBounds(s Settings, w Workload, pas []PeerAuthentication, aps []AuthorizationPolicy, generation uint64, u Unknown) *Bounds {
	b := &Bounds{asked: map[place][]string{}}
	least, most := make([]AuthorizationPolicy, len(aps)), make([]AuthorizationPolicy, len(aps))
	for i, p := range aps {
		for n := range p.rules {
			if fields := p.rules[n].unknown(u); len(fields) > 0 {
				b.asked[place{p.path, n}] = fields
			}
		}
		least[i], most[i] = p.assuming(u, p.action != Allow), p.assuming(u, p.action == Allow)
	}
	b.least, b.most = Compile(s, w, pas, least, generation), Compile(s, w, pas, most, generation)
	return b
}

// Decide judges a request, in which what is not known is not looked at. It
// reports certain false where the verdict depends on that, and then names the
// fields of the first rule that it depends on, each as "ns/name FIELD".
func (b *Bounds) Decide(r *Request) (d Decision, certain bool, fields []string) {
	least, most := b.least.DecideRequest(r), b.most.DecideRequest(r)
	switch {
	case least.Allowed:
		return least, true, nil
	case !most.Allowed:
		return most, true, nil
	}
	// A DENY that may match, or an ALLOW that may not.
	for _, d := range []Decision{least, most} {
		for _, f := range b.asked[place{d.Policy, d.Rule}] {
			fields = append(fields, d.Policy+" "+f)
		}
		if len(fields) > 0 {
			break
		}
	}
	return least, false, fields
}

// assuming returns the policy with each term about what is not known taken as
// true, or as false. Rules keep their places.
func (p AuthorizationPolicy) assuming(u Unknown, holds bool) AuthorizationPolicy {
	rules := slices.Clone(p.rules)
	for i := range rules {
		r, possible := &rules[i], true
		for _, part := range []*[]clause{&r.from, &r.to} {
			var kept []clause
			for _, c := range *part {
				if c, ok := c.assuming(u, holds); ok {
					kept = append(kept, c)
				}
			}
			possible = possible && (len(kept) > 0 || len(*part) == 0)
			*part = kept
		}
		when, ok := r.when.assuming(u, holds)
		if r.when = when; !possible || !ok {
			*r = rule{when: clause{{attribute: attrDestinationPort}}, requestFields: r.requestFields} // none of no ports
		}
	}
	p.rules = rules
	return p
}

func (c clause) assuming(u Unknown, holds bool) (clause, bool) {
	known := slices.DeleteFunc(slices.Clone(c), u.covers)
	return known, holds || len(known) == len(c)
}

// covers reports whether a term is about what is not known.
func (u Unknown) covers(t term) bool {
	switch t.attribute {
	case attrPath:
		return u.Path
	case attrHost, attrMethod:
		return u.Host
	case attrHeader:
		switch t.name {
		case "host", ":authority", ":method":
			return u.Host
		}
		return u.Headers
	case attrRequestPrincipal, attrAudiences, attrPresenter, attrClaim:
		return u.Token
	}
	return false
}

// unknown returns the fields of a rule that are about what is not known, in
// order and each once.
func (r *rule) unknown(u Unknown) []string {
	var out []string
	for _, c := range slices.Concat(r.from, r.to, []clause{r.when}) {
		for _, t := range c {
			if u.covers(t) {
				out = append(out, t.field())
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// field names what a term of HTTP looks at, for people.
func (t term) field() string {
	switch t.attribute {
	case attrPath:
		return "path"
	case attrHost:
		return "host"
	case attrMethod:
		return "method"
	case attrHeader:
		return "header " + t.name
	case attrClaim:
		return "claim " + strings.ReplaceAll(t.name, claimSep, ".")
	}
	return "token"
}
