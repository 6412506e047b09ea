// This file holds the tree that documents are read into: what YAML and JSON
// have in common, with lines, and nothing more.

package document

import (
	"encoding/json"
	"fmt"
	"strings"
)

const (
	maxDepth     = 32  // how deep mappings and lists nest
	maxNameBytes = 512 // how long the name of a field is
	maxFaults    = 100 // after how many faults a reader stops looking
)

type nodeKind uint8

const (
	nullNode   nodeKind = iota + 1
	boolNode            // text is "true" or "false"
	numberNode          // text is a JSON number, as written
	stringNode
	listNode
	mapNode
)

// node is immutable once it is built.
type node struct {
	kind   nodeKind
	line   int // 0 where the source has no lines
	text   string
	items  []*node // of a list
	fields []field // of a mapping, in the order written, no name twice
}

type field struct {
	name  string
	line  int
	value *node
}

// describe says what n is, for the Found of an error.
func (n *node) describe() string {
	switch n.kind {
	case nullNode:
		return "nothing"
	case boolNode:
		return n.text
	case numberNode:
		return "number " + n.text
	case stringNode:
		return quoted(n.text)
	case listNode:
		return "a list"
	case mapNode:
		return "a mapping"
	}
	return "something unknown"
}

// lineOf follows a field path as far as the tree goes. Keys may contain dots:
// at each mapping the longest key that the path starts with is taken.
func (n *node) lineOf(path string) int {
	line := n.line
	for path != "" {
		if rest, ok := strings.CutPrefix(path, "["); ok {
			var index int
			if _, err := fmt.Sscanf(rest, "%d]", &index); err != nil || n.kind != listNode || index < 0 || index >= len(n.items) {
				return line
			}
			n = n.items[index]
			line = n.line
			path = rest[strings.IndexByte(rest, ']')+1:]
		} else {
			var best *field
			for i, f := range n.fields {
				rest, ok := strings.CutPrefix(path, f.name)
				if ok && (rest == "" || rest[0] == '.' || rest[0] == '[') && (best == nil || len(f.name) > len(best.name)) {
					best = &n.fields[i]
				}
			}
			if best == nil {
				return line
			}
			n, line = best.value, best.line
			path = path[len(best.name):]
		}
		path = strings.TrimPrefix(path, ".")
	}
	return line
}

// plain returns n as encoding/json would give it with UseNumber.
func (n *node) plain() any {
	switch n.kind {
	case boolNode:
		return n.text == "true"
	case numberNode:
		return json.Number(n.text)
	case stringNode:
		return n.text
	case listNode:
		list := make([]any, 0, len(n.items))
		for _, item := range n.items {
			list = append(list, item.plain())
		}
		return list
	case mapNode:
		m := make(map[string]any, len(n.fields))
		for _, f := range n.fields {
			m[f.name] = f.value.plain()
		}
		return m
	}
	return nil
}

// isJSONNumber reports whether s is a number of RFC 8259 §6.
func isJSONNumber(s string) bool {
	return s != "" && (s[0] == '-' || s[0] >= '0' && s[0] <= '9') && json.Valid([]byte(s))
}
