// This file holds the index over rules. Rules lie in blocks of rows, and all
// rules of a block are judged together, by operations on words of bits.

package policy

// place says which rule of which policy rows belong to.
type place struct {
	policy string // "ns/name"
	rule   int
}

// index is the rules of all policies of one action, in their order.
type index struct {
	allow  bool // an ALLOW rule must be certain; others match what cannot be known
	blocks []*block
}

// block is up to blockRows rows. Each rule has as many rows side by side in
// one word as it has sources or operations, whichever are more, and each
// source and each operation is one of them. A rule matches if one of its
// rows holds as a source, one as an operation, and its last row as a
// condition.
type block struct {
	rows       int
	last       rows // the last row of each rule
	http       rows // of last, the rules that name what only HTTP has
	sources    space
	operations space
	conditions space
	written    map[string]posting // trust domains that sources write out
	places     []place            // by row
}

// space is the clauses of one part of the rules.
type space struct {
	taken   rows // that have a clause, also one without terms
	columns []*column
}

// add appends a rule to the index.
func (x *index) add(p place, r *rule) {
	// More than a word of sources or operations is split; what one part of
	// the sources and one part of the operations allow, the rule allows.
	for from := 0; from == 0 || from < len(r.from); from += wordBits {
		for to := 0; to == 0 || to < len(r.to); to += wordBits {
			part := *r
			part.from = r.from[from:min(len(r.from), from+wordBits)]
			part.to = r.to[to:min(len(r.to), to+wordBits)]
			x.place(p, &part)
		}
	}
}

func (x *index) place(p place, r *rule) {
	width := max(1, len(r.from), len(r.to))
	var b *block
	if n := len(x.blocks); n > 0 {
		b = x.blocks[n-1]
		if used := b.rows % wordBits; used+width > wordBits {
			b.fill(wordBits - used)
		}
	}
	if b == nil || b.rows+width > blockRows {
		b = &block{}
		x.blocks = append(x.blocks, b)
	}
	first, last := b.rows, b.rows+width-1
	b.rows += width
	b.last.set(last)
	b.places = append(b.places, make([]place, width)...)
	b.places[last] = p
	if len(r.requestFields) > 0 {
		b.http.set(last)
	}
	for i, c := range r.from {
		b.sources.add(c, first+i)
		for _, domain := range c.domains() {
			addTo(&b.written, domain, first+i, false)
		}
	}
	for i, c := range r.to {
		b.operations.add(c, first+i)
	}
	b.conditions.add(r.when, last)
	if len(r.from) == 0 {
		b.sources.add(nil, last)
	}
	if len(r.to) == 0 {
		b.operations.add(nil, last)
	}
}

// fill leaves rows out, so that the next rule lies in one word.
func (b *block) fill(n int) {
	b.rows += n
	b.last.set(b.rows - 1)
	b.places = append(b.places, make([]place, n)...)
}

// add puts a clause into a row. A second term about an attribute goes into a
// column of its own, so that both must hold.
func (s *space) add(c clause, row int) {
	s.taken.set(row)
	for i := range c {
		t := &c[i]
		s.column(t, row).add(t, row)
	}
}

func (s *space) column(t *term, row int) *column {
	for _, c := range s.columns {
		if c.attribute != t.attribute || c.name != t.name {
			continue
		}
		if taken := &c.pos; t.not {
			taken = &c.neg
			if !taken.has(row) {
				return c
			}
		} else if !taken.has(row) {
			return c
		}
	}
	c := &column{attribute: t.attribute, name: t.name}
	s.columns = append(s.columns, c)
	return c
}

// holds leaves of set the rows whose clause holds, in the first words. With
// allow, what cannot be known does not hold.
func (s *space) holds(set []uint64, f *facts, allow bool) {
	copy(set, s.taken[:])
	for _, c := range s.columns {
		var h hits
		known := c.lookup(&h, f)
		pos, neg := c.pos[:len(set)], c.neg[:len(set)]
		switch {
		case known:
			matched, missed := h.pos[:len(set)], h.neg[:len(set)]
			for i := range set {
				set[i] &= (matched[i] | ^pos[i]) &^ missed[i]
			}
		case allow:
			for i := range set {
				set[i] &^= pos[i] | neg[i]
			}
		}
	}
}

// match returns the rules of a block that match, each by its last row.
func (b *block) match(f *facts, allow bool) (matched rows) {
	var sources, operations rows
	words := (b.rows + wordBits - 1) / wordBits
	b.conditions.holds(matched[:words], f, allow)
	b.operations.holds(operations[:words], f, allow)
	b.sources.holds(sources[:words], f, allow)
	if allow && f.foreign {
		var h hits
		h.add(b.written[f.domain])
		for i := range words {
			sources[i] &= h.pos[i]
		}
	}
	for i := range words {
		matched[i] &= b.reach(i, sources[i]) & b.reach(i, operations[i]) & b.last[i]
		if allow && f.http == nil {
			matched[i] &^= b.http[i]
		}
	}
	return matched
}

// reach sets the last row of each rule of which any row is set. Adding all
// ones below the last row carries into it exactly then.
func (b *block) reach(word int, set uint64) uint64 {
	last := b.last[word]
	return ((set &^ last) + ^last) | set
}

// first returns the first rule that matches.
func (x *index) first(f *facts) (place, bool) {
	for _, b := range x.blocks {
		m := b.match(f, x.allow)
		if row := m.first(); row >= 0 {
			return b.places[row], true
		}
	}
	return place{rule: -1}, false
}

// all returns every rule that matches, in order.
func (x *index) all(f *facts) []place {
	var out []place
	for _, b := range x.blocks {
		m := b.match(f, x.allow)
		for row := range b.rows {
			if m.has(row) {
				out = append(out, b.places[row])
			}
		}
	}
	return out
}
