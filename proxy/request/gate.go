// This file holds gate: where tokens are looked for in requests, compiled
// from the rules of the moment.

package request

import (
	"crypto/sha256"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"

	"github.com/aval-id/aval/identity/policy"
)

// gate is made from one Authentication and serves until the next one.
type gate struct {
	auth    *policy.Authentication
	headers map[string][]*tokenPlace // by name, the longest prefix first
	params  []*tokenPlace
	cookies []*tokenPlace
	outputs []string
	cache   tokenCache
}

// gateFor returns the gate of an Authentication. Tokens that passed an older
// one are verified anew.
func (s *Server) gateFor(auth *policy.Authentication) *gate {
	if g := s.gate.Load(); g != nil && g.auth == auth {
		return g
	}
	g := newGate(auth)
	s.gate.Store(g)
	return g
}

// The kinds of places.
type placeKind byte

const (
	inHeader placeKind = iota
	inParam
	inCookie
)

// tokenPlace is where a token may be, and whose tokens are taken there.
type tokenPlace struct {
	kind   placeKind
	name   string
	header policy.TokenHeader // of inHeader
	rules  []*policy.TokenRule
}

func newGate(auth *policy.Authentication) *gate {
	g := &gate{auth: auth, headers: map[string][]*tokenPlace{}, outputs: auth.Outputs(), cache: tokenCache{held: map[[sha256.Size]byte]*verified{}}}
	rules := auth.Rules()
	for i := range rules {
		r := &rules[i]
		for _, h := range r.Headers {
			g.headers[h.Name] = admitAt(g.headers[h.Name], tokenPlace{kind: inHeader, name: h.Name, header: h}, r)
		}
		for _, name := range r.Params {
			g.params = admitAt(g.params, tokenPlace{kind: inParam, name: name}, r)
		}
		for _, name := range r.Cookies {
			g.cookies = admitAt(g.cookies, tokenPlace{kind: inCookie, name: name}, r)
		}
	}
	for _, places := range g.headers {
		slices.SortStableFunc(places, func(a, b *tokenPlace) int { return len(b.header.Prefix) - len(a.header.Prefix) })
	}
	return g
}

// admitAt enters a rule at a place among others.
func admitAt(places []*tokenPlace, at tokenPlace, r *policy.TokenRule) []*tokenPlace {
	for _, p := range places {
		if p.name == at.name && p.header == at.header {
			p.rules = append(p.rules, r)
			return places
		}
	}
	at.rules = []*policy.TokenRule{r}
	return append(places, &at)
}

// candidate is a token and where it was.
type candidate struct {
	place *tokenPlace
	token string
}

// sum names the token at its place.
func (c candidate) sum() [sha256.Size]byte {
	b := make([]byte, 0, 1+len(c.place.name)+len(c.place.header.Prefix)+2+len(c.token))
	b = append(b, byte(c.place.kind))
	b = append(append(b, c.place.name...), 0)
	b = append(append(b, c.place.header.Prefix...), 0)
	return sha256.Sum256(append(b, c.token...))
}

// find returns the tokens of a request.
func (g *gate) find(h http.Header, query string) []candidate {
	var found []candidate
	for name, places := range g.headers {
		values, before := h[name], len(found)
		for _, v := range values {
			if c, ok := tokenIn(v, places); ok {
				found = append(found, c)
			}
		}
		if n := len(found); n == before+1 && len(values) > 1 {
			found = append(found, found[n-1]) // who reads the other value sees another request
		}
	}
	if len(g.params) > 0 && query != "" {
		for pair, rest := nextPair(query, "&;"); ; pair, rest = nextPair(rest, "&;") {
			name, value, _ := strings.Cut(pair, "=")
			if p := named(g.params, unescaped(name)); p != nil {
				found = append(found, candidate{p, unescaped(value)})
			}
			if rest == "" {
				break
			}
		}
	}
	if len(g.cookies) > 0 {
		for _, line := range h["Cookie"] {
			for pair := range strings.SplitSeq(line, ";") {
				name, value, _ := strings.Cut(pair, "=")
				if p := named(g.cookies, strings.TrimSpace(name)); p != nil {
					found = append(found, candidate{p, strings.Trim(strings.TrimSpace(value), `"`)})
				}
			}
		}
	}
	return found
}

func named(places []*tokenPlace, name string) *tokenPlace {
	for _, p := range places {
		if p.name == name {
			return p
		}
	}
	return nil
}

// tokenIn takes the token out of a header's value. A value that doesn't begin
// as any place says is no token: it may be another way to authenticate.
func tokenIn(value string, places []*tokenPlace) (candidate, bool) {
	value = textproto.TrimString(value)
	for _, p := range places {
		prefix := p.header.Prefix
		scheme := strings.TrimRight(prefix, " ")
		switch {
		case p.header.IsBearer() && len(value) >= len(scheme) && strings.EqualFold(value[:len(scheme)], scheme) &&
			(len(value) == len(scheme) || value[len(scheme)] == ' ' || value[len(scheme)] == '\t'):
			return candidate{p, textproto.TrimString(value[len(scheme):])}, true
		case !p.header.IsBearer() && value != "" && strings.HasPrefix(value, prefix):
			return candidate{p, textproto.TrimString(value[len(prefix):])}, true
		}
	}
	return candidate{}, false
}

// nextPair cuts the first pair off a query.
func nextPair(query, separators string) (pair, rest string) {
	if i := strings.IndexAny(query, separators); i >= 0 {
		return query[:i], query[i+1:]
	}
	return query, ""
}

// unescaped decodes a part of a query; what cannot be decoded stays.
func unescaped(s string) string {
	if !strings.ContainsAny(s, "%+") {
		return s
	}
	if text, err := url.QueryUnescape(s); err == nil {
		return text
	}
	return s
}

// remove takes the place's token out of a request.
func (p *tokenPlace) remove(h http.Header, t *target) {
	switch p.kind {
	case inHeader:
		delete(h, p.name)
	case inParam:
		t.query = withoutParam(t.query, p.name)
		t.asked = t.asked && t.query != ""
	case inCookie:
		lines := h["Cookie"][:0:0]
		for _, line := range h["Cookie"] {
			if line = withoutCookie(line, p.name); line != "" {
				lines = append(lines, line)
			}
		}
		if h["Cookie"] = lines; len(lines) == 0 {
			delete(h, "Cookie")
		}
	}
}

func withoutParam(query, without string) string {
	var b strings.Builder
	for rest := query; rest != ""; {
		pair, after := nextPair(rest, "&;")
		whole := rest[:len(rest)-len(after)] // with its separator
		if name, _, _ := strings.Cut(pair, "="); unescaped(name) != without {
			b.WriteString(whole)
		}
		rest = after
	}
	out := b.String()
	if !strings.HasSuffix(query, "&") && !strings.HasSuffix(query, ";") {
		out = strings.TrimRight(out, "&;")
	}
	return out
}

func withoutCookie(line, without string) string {
	var kept []string
	for pair := range strings.SplitSeq(line, ";") {
		if name, _, _ := strings.Cut(pair, "="); strings.TrimSpace(name) != without {
			kept = append(kept, strings.TrimSpace(pair))
		}
	}
	return strings.Join(kept, "; ")
}

// clean removes what only a verified token may say, and spellings of headers
// that an application might take for one that is looked at here.
func (g *gate) clean(h http.Header) {
	for _, name := range g.outputs {
		delete(h, name)
	}
	for name := range h {
		if strings.Contains(name, "_") && g.claims(name) {
			delete(h, name)
		}
	}
}

// claims reports whether a header is one of the outputs or holds tokens,
// '_' taken for '-'. Without a gate none is.
func (g *gate) claims(name string) bool {
	if g == nil {
		return false
	}
	name = textproto.CanonicalMIMEHeaderKey(strings.ReplaceAll(name, "_", "-"))
	_, token := g.headers[name]
	return token || slices.Contains(g.outputs, name)
}
