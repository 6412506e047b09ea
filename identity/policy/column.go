// This file holds the index over one attribute: which rows of a block have a
// term about it, and which of them match a value. A row is a bit.

package policy

import (
	"math/bits"
	"net/netip"
	"slices"
)

const (
	wordBits   = 64
	blockWords = 16
	blockRows  = wordBits * blockWords
)

// rows is a set of rows of one block.
type rows [blockWords]uint64

func (r *rows) set(row int)      { r[row/wordBits] |= 1 << (row % wordBits) }
func (r *rows) has(row int) bool { return r[row/wordBits]&(1<<(row%wordBits)) != 0 }

// first returns the lowest row, or -1.
func (r *rows) first() int {
	for i, w := range r {
		if w != 0 {
			return i*wordBits + bits.TrailingZeros64(w)
		}
	}
	return -1
}

// hit is rows of one word: those whose term has the pattern among its
// values, apart for plain terms and for those with not.
type hit struct {
	word     int
	pos, neg uint64
}

// posting is the rows that have a pattern, each word at most once.
type posting []hit

func (p *posting) add(row int, not bool) {
	i := slices.IndexFunc(*p, func(h hit) bool { return h.word == row/wordBits })
	if i < 0 {
		i = len(*p)
		*p = append(*p, hit{word: row / wordBits})
	}
	bit := uint64(1) << (row % wordBits)
	if not {
		(*p)[i].neg |= bit
	} else {
		(*p)[i].pos |= bit
	}
}

// hits collects the rows that match a value.
type hits struct{ pos, neg rows }

func (h *hits) add(p posting) {
	for i := range p {
		h.pos[p[i].word] |= p[i].pos
		h.neg[p[i].word] |= p[i].neg
	}
}

// column is the terms of a block about one attribute, at most one with and
// one without not for each row.
type column struct {
	attribute attribute
	name      string
	fold      bool
	pos, neg  rows // that have a term
	any       posting
	forward   *trie
	backward  *trie // of texts read from their end
	templates *segments
	accounts  map[account]posting
	ports     map[uint16]posting
	blocks    map[netip.Prefix]posting
	lengths   [2][]int // of blocks, for IPv4 and IPv6
}

// add puts a term into a row.
func (c *column) add(t *term, row int) {
	c.fold = t.attribute.folded()
	if t.not {
		c.neg.set(row)
	} else {
		c.pos.set(row)
	}
	if t.text.any {
		c.any.add(row, t.not)
	}
	for _, s := range t.text.exact {
		c.forward = orNew(c.forward)
		c.forward.leaf(s).exact.add(row, t.not)
	}
	for _, s := range t.text.prefixes {
		c.forward = orNew(c.forward)
		c.forward.leaf(s).prefix.add(row, t.not)
	}
	for _, s := range t.text.suffixes {
		c.backward = orNew(c.backward)
		c.backward.leaf(reversed(s)).prefix.add(row, t.not)
	}
	for _, s := range t.text.templates {
		c.templates = orNew(c.templates)
		c.templates.insert(s).add(row, t.not)
	}
	for _, a := range t.accounts {
		addTo(&c.accounts, a, row, t.not)
	}
	for _, p := range t.ports {
		addTo(&c.ports, p, row, t.not)
	}
	for _, b := range t.blocks {
		addTo(&c.blocks, b, row, t.not)
		lengths := &c.lengths[family(b.Addr())]
		if !slices.Contains(*lengths, b.Bits()) {
			*lengths = append(*lengths, b.Bits())
		}
	}
}

func orNew[T any](p *T) *T {
	if p == nil {
		return new(T)
	}
	return p
}

func addTo[K comparable](m *map[K]posting, key K, row int, not bool) {
	if *m == nil {
		*m = map[K]posting{}
	}
	p := (*m)[key]
	p.add(row, not)
	(*m)[key] = p
}

func reversed(s string) string {
	b := []byte(s)
	slices.Reverse(b)
	return string(b)
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// lookup collects the rows whose terms match f. It reports false where the
// attribute cannot be known, because the request is none of HTTP, the address
// is missing, or the attribute is no known one.
func (c *column) lookup(h *hits, f *facts) (known bool) {
	if c.attribute.ofHTTP() && f.http == nil {
		return false
	}
	switch c.attribute {
	case attrPrincipal:
		c.joined(h, f.domain, "", f.path)
	case attrNamespace:
		account, _ := f.serviceAccount()
		c.one(h, account.namespace)
	case attrServiceAccount:
		if account, ok := f.serviceAccount(); ok {
			h.add(c.accounts[account])
		}
	case attrTrustDomain:
		c.one(h, f.domain)
	case attrSourceIP, attrRemoteIP, attrDestinationIP:
		return c.address(h, f.address(c.attribute))
	case attrDestinationPort:
		h.add(c.ports[f.request.Port])
	case attrSNI:
		c.one(h, f.sni())
	case attrHost:
		c.one(h, f.http.Host)
	case attrMethod:
		c.one(h, f.http.Method)
	case attrPath:
		c.path(h, f.http.Path)
	case attrHeader:
		c.one(h, f.http.header(c.name))
	case attrRequestPrincipal, attrAudiences, attrPresenter, attrClaim:
		if f.jwt != nil {
			c.token(h, f.jwt)
		}
	default:
		return false
	}
	return true
}

func (c *column) token(h *hits, t *JWT) {
	switch c.attribute {
	case attrRequestPrincipal:
		if t.Issuer != "" && t.Subject != "" {
			c.joined(h, t.Issuer, "/", t.Subject)
		}
	case attrAudiences:
		for _, s := range t.Audiences {
			c.one(h, s)
		}
	case attrPresenter:
		c.one(h, t.Presenter)
	case attrClaim:
		switch v := t.claim(c.name).(type) {
		case string:
			c.one(h, v)
		case []string:
			for _, s := range v {
				c.one(h, s)
			}
		case []any:
			for _, s := range v {
				if s, ok := s.(string); ok {
					c.one(h, s)
				}
			}
		}
	}
}

// one collects the patterns that match a text.
func (c *column) one(h *hits, text string) { c.joined(h, text, "", "") }

// joined collects the patterns that match a text in three parts.
func (c *column) joined(h *hits, x, y, z string) {
	if x == "" {
		return
	}
	h.add(c.any)
	if c.forward != nil {
		at := cursor{node: c.forward}
		at.forward(h, x, c.fold)
		at.forward(h, y, c.fold)
		at.forward(h, z, c.fold)
		at.end(h)
	}
	if c.backward != nil {
		at := cursor{node: c.backward}
		at.backward(h, z, c.fold)
		at.backward(h, y, c.fold)
		at.backward(h, x, c.fold)
	}
}

func (c *column) path(h *hits, path string) {
	c.one(h, path)
	if c.templates != nil && path != "" && path[0] == '/' {
		c.templates.walk(h, path[1:])
	}
}

func (c *column) address(h *hits, a netip.Addr) (known bool) {
	if !a.IsValid() {
		return false
	}
	for _, length := range c.lengths[family(a)] {
		if block, err := a.Prefix(length); err == nil {
			h.add(c.blocks[block])
		}
	}
	return true
}
