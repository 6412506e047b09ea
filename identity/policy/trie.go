// This file holds the tries that find all patterns which match a text in one
// walk over it: one by bytes for exact texts, prefixes and suffixes, one by
// segments for templates of paths.

package policy

import (
	"slices"
	"strings"
)

// trie is a radix tree over bytes. It is built once and then only read.
type trie struct {
	edge     string  // bytes that lead here from the parent
	exact    posting // patterns that end here and match only this text
	prefix   posting // patterns that end here and match what goes on
	first    string  // first byte of each child's edge
	children []*trie
}

// leaf returns the node for a text, which it makes where there is none.
func (t *trie) leaf(text string) *trie {
	for text != "" {
		i := strings.IndexByte(t.first, text[0])
		if i < 0 {
			child := &trie{edge: text}
			t.first += text[:1]
			t.children = append(t.children, child)
			return child
		}
		child := t.children[i]
		n := commonPrefix(child.edge, text)
		if n < len(child.edge) {
			upper := &trie{edge: child.edge[:n], first: child.edge[n : n+1], children: []*trie{child}}
			child.edge = child.edge[n:]
			t.children[i] = upper
			child = upper
		}
		t, text = child, text[n:]
	}
	return t
}

func commonPrefix(a, b string) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// cursor is a walk through a trie. The text may come in several parts.
type cursor struct {
	node *trie // nil once no pattern can match any more
	used int   // bytes of the node's edge that are walked
}

// forward walks over a text and collects the prefixes that it passes.
func (c *cursor) forward(h *hits, text string, fold bool) {
	n, used := c.node, c.used
	for n != nil && text != "" {
		if used == len(n.edge) {
			first := text[0]
			if fold {
				first = lower(first)
			}
			n, used = n.child(first), 0
			continue
		}
		rest := n.edge[used:]
		k := min(len(rest), len(text))
		if rest[:k] != text[:k] && !(fold && equalFold(rest[:k], text[:k])) {
			n = nil
			break
		}
		used += k
		text = text[k:]
		if used == len(n.edge) {
			h.add(n.prefix)
		}
	}
	c.node, c.used = n, used
}

// backward walks over a text from its end.
func (c *cursor) backward(h *hits, text string, fold bool) {
	n, used := c.node, c.used
	for i := len(text) - 1; i >= 0 && n != nil; i-- {
		b := text[i]
		if fold {
			b = lower(b)
		}
		if used == len(n.edge) {
			if n = n.child(b); n == nil {
				break
			}
			used = 0
		}
		if n.edge[used] != b {
			n = nil
			break
		}
		if used++; used == len(n.edge) {
			h.add(n.prefix)
		}
	}
	c.node, c.used = n, used
}

// child returns the child whose edge starts with b, or nil.
func (t *trie) child(b byte) *trie {
	for i := range len(t.first) {
		if t.first[i] == b {
			return t.children[i]
		}
	}
	return nil
}

// equalFold compares with only the letters of ASCII folded.
func equalFold(a, b string) bool {
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

// end collects the patterns that are the walked text.
func (c *cursor) end(h *hits) {
	if c.node != nil && c.used == len(c.node.edge) {
		h.add(c.node.exact)
	}
}

// segments is a trie over the segments of paths, for templates.
type segments struct {
	literal map[string]*segments
	one     *segments // below {*}
	end     posting   // templates that end here
	rest    []tailed  // templates that go on with {**}
}

// tailed is what must end the path after {**}.
type tailed struct {
	tail string
	hits posting
}

// insert returns the posting of a template.
func (s *segments) insert(t template) *posting {
	for _, segment := range t.segments {
		var next *segments
		if segment == oneSegment {
			if s.one == nil {
				s.one = &segments{}
			}
			next = s.one
		} else if next = s.literal[segment]; next == nil {
			next = &segments{}
			if s.literal == nil {
				s.literal = map[string]*segments{}
			}
			s.literal[segment] = next
		}
		s = next
	}
	if !t.rest {
		return &s.end
	}
	i := slices.IndexFunc(s.rest, func(r tailed) bool { return r.tail == t.tail })
	if i < 0 {
		i = len(s.rest)
		s.rest = append(s.rest, tailed{tail: t.tail})
	}
	return &s.rest[i].hits
}

// walk collects the templates that match a path, of which rest is what
// follows the '/' before this node's segment.
func (s *segments) walk(h *hits, rest string) {
	for i := range s.rest {
		if strings.HasSuffix(rest, s.rest[i].tail) {
			h.add(s.rest[i].hits)
		}
	}
	segment, after, more := strings.Cut(rest, "/")
	for _, next := range [...]*segments{s.literal[segment], s.one} {
		switch {
		case next == nil || next == s.one && segment == "":
		case more:
			next.walk(h, after)
		default:
			h.add(next.end)
		}
	}
}
