// This file finds what contradicts itself: fields that no peer and no request
// can satisfy together.

package policy

import (
	"github.com/aval-id/aval/identity"
)

// maxCompared bounds the work on one source.
const maxCompared = 64

// contradictions looks at the terms of one source, operation or condition.
func (p *parser) contradictions(c clause, path string) {
	if len(p.errs) > 0 {
		return // what could not be parsed cannot be compared
	}
	for i := range c {
		for j := range c {
			t, u := &c[i], &c[j]
			if !t.not && u.not && u.takesAll(t) {
				p.contradiction(path, "never matches: its not-values take away every value of %s", t.attribute.field())
			}
		}
	}
	p.impossiblePeers(c, path)
}

func (p *parser) contradiction(path, format string, args ...any) {
	p.contradictory = append(p.contradictory, p.doc.Errorf(path, "", "", format, args...))
}

// impossiblePeers refuses a source whose principals are whole IDs none of
// which the other fields about the peer admit, and warns where only the trust
// domain keeps them out.
func (p *parser) impossiblePeers(c clause, path string) {
	var peer clause
	var principals []string
	for i := range c {
		t := &c[i]
		if !t.attribute.identifies() {
			continue
		}
		if t.attribute == attrPrincipal && !t.not {
			if t.text.any || len(t.text.prefixes)+len(t.text.suffixes) > 0 {
				return
			}
			principals = t.text.exact
		}
		peer = append(peer, *t)
	}
	if len(peer) < 2 || len(principals) == 0 || len(principals) > maxCompared {
		return
	}
	var x index
	x.add(place{}, &rule{from: []clause{peer}})
	somewhere, here := false, false
	for _, s := range principals {
		id, err := identity.ParseID(spiffeScheme + s)
		if err != nil {
			return
		}
		for _, own := range []identity.TrustDomain{id.TrustDomain(), p.settings.TrustDomain} {
			set := Set{domain: own}
			f := set.facts(&Request{Connection: Connection{Peer: id}}, true)
			_, ok := x.first(&f)
			somewhere = somewhere || ok
			here = here || ok && own == p.settings.TrustDomain
		}
	}
	switch {
	case !somewhere:
		p.contradiction(path, "never matches: none of its principals satisfies its other fields")
	case !here:
		p.warn(path, "matches nobody: namespaces and service accounts are those of the own trust domain, %s; name foreign peers by principals and trustDomains", p.settings.TrustDomain)
	}
}
