// This file tells which patterns, terms, clauses and rules take in which
// others, whatever the request: what makes a rule needless or contradictory.

package policy

import (
	"net/netip"
	"slices"
	"strings"
)

// takesAll reports whether every value of t is taken in by a value of u,
// both read without their not.
func (u *term) takesAll(t *term) bool {
	if u.attribute != t.attribute || u.name != t.name {
		return false
	}
	if u.text.any {
		return true
	}
	for _, a := range t.accounts {
		if !slices.Contains(u.accounts, a) {
			return false
		}
	}
	for _, p := range t.ports {
		if !slices.Contains(u.ports, p) {
			return false
		}
	}
	for _, b := range t.blocks {
		if !slices.ContainsFunc(u.blocks, func(w netip.Prefix) bool { return w.Bits() <= b.Bits() && w.Contains(b.Addr()) }) {
			return false
		}
	}
	return u.text.takes(&t.text)
}

// takes reports whether whatever matches q certainly matches p.
func (p *patterns) takes(q *patterns) bool {
	if p.any {
		return true
	}
	if q.any {
		return false
	}
	for _, s := range q.exact {
		if !p.matches(s) {
			return false
		}
	}
	for _, s := range q.prefixes {
		if !slices.ContainsFunc(p.prefixes, func(w string) bool { return strings.HasPrefix(s, w) }) {
			return false
		}
	}
	for _, s := range q.suffixes {
		if !slices.ContainsFunc(p.suffixes, func(w string) bool { return strings.HasSuffix(s, w) }) {
			return false
		}
	}
	for _, t := range q.templates {
		same := func(w template) bool {
			return w.rest == t.rest && w.tail == t.tail && slices.Equal(w.segments, t.segments)
		}
		begins := t.begins()
		if !slices.ContainsFunc(p.templates, same) && !slices.ContainsFunc(p.prefixes, func(w string) bool { return strings.HasPrefix(begins, w) }) {
			return false
		}
	}
	return true
}

// begins returns the text that every match of a template begins with.
func (t template) begins() string {
	s := "/"
	for i, segment := range t.segments {
		if segment == oneSegment {
			return s
		}
		s += segment
		if t.rest || i < len(t.segments)-1 {
			s += "/"
		}
	}
	return s
}

// matches reports whether s, which is not empty, matches.
func (p *patterns) matches(s string) bool {
	if p.any || slices.Contains(p.exact, s) {
		return true
	}
	if slices.ContainsFunc(p.prefixes, func(w string) bool { return strings.HasPrefix(s, w) }) ||
		slices.ContainsFunc(p.suffixes, func(w string) bool { return strings.HasSuffix(s, w) }) {
		return true
	}
	if len(p.templates) == 0 || s[0] != '/' {
		return false
	}
	var root segments
	for _, t := range p.templates {
		root.insert(t).add(0, false)
	}
	var h hits
	root.walk(&h, s[1:])
	return h.pos.has(0)
}

// takes reports whether whatever t holds for, u certainly holds for.
func (u *term) takes(t *term) bool {
	if u.not != t.not {
		return false
	}
	if u.not {
		return t.takesAll(u)
	}
	return u.takesAll(t)
}

// takes reports whether whatever matches c certainly matches d.
func (d clause) takes(c clause) bool {
	for i := range d {
		if !slices.ContainsFunc(c, func(t term) bool { return d[i].takes(&t) }) {
			return false
		}
	}
	return true
}

// takes reports whether whatever matches r certainly matches q, both as
// rules of one action. With allow, foreign peers count: q must write out what
// r does.
func (q *rule) takes(r *rule, allow bool) bool {
	if allow && len(q.requestFields) > 0 && len(r.requestFields) == 0 {
		return false
	}
	return q.when.takes(r.when) && anyTakes(q.to, r.to, false) && anyTakes(q.from, r.from, allow)
}

// anyTakes reports whether each of cs is taken in by one of ds. No clause
// means everything.
func anyTakes(ds, cs []clause, written bool) bool {
	admits := func(d, c clause) bool {
		if !d.takes(c) {
			return false
		}
		domains := d.domains()
		return !written || !slices.ContainsFunc(c.domains(), func(s string) bool { return !slices.Contains(domains, s) })
	}
	if len(ds) == 0 {
		return !written || !slices.ContainsFunc(cs, func(c clause) bool { return len(c.domains()) > 0 })
	}
	if len(cs) == 0 {
		return slices.ContainsFunc(ds, func(d clause) bool { return len(d) == 0 })
	}
	for _, c := range cs {
		if !slices.ContainsFunc(ds, func(d clause) bool { return admits(d, c) }) {
			return false
		}
	}
	return true
}
