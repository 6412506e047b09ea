// This file prints documents: canonical JSON, which is stored, sent and
// compared, and YAML for people.

package document

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// JSON returns the canonical form: one line, names sorted, metadata without
// what an API server adds. FromJSON reads it back to a document with the
// same form.
func (d Document) JSON() ([]byte, error) {
	if d.IsZero() {
		return nil, fmt.Errorf("document is the zero value")
	}
	return d.canonical(), nil
}

// YAML returns d as YAML, apiVersion and kind first. Parse reads it back to a
// document with the same canonical form.
func (d Document) YAML() ([]byte, error) {
	if d.IsZero() {
		return nil, fmt.Errorf("document is the zero value")
	}
	root := d.tree()
	root.fields[len(root.fields)-1].value = sortedTree(d.spec)
	var b bytes.Buffer
	writeYAML(&b, root, 0)
	return b.Bytes(), nil
}

func (d Document) canonical() []byte {
	var b bytes.Buffer
	writeJSON(&b, d.tree())
	return b.Bytes()
}

// tree returns d as a tree with the metadata as it stands now, in the order
// in which people write it.
func (d Document) tree() *node {
	meta := &node{kind: mapNode}
	add := func(n *node, name string, value *node) { n.fields = append(n.fields, field{name: name, value: value}) }
	add(meta, "name", textNode(d.meta.Name))
	if d.meta.Namespace != "" {
		add(meta, "namespace", textNode(d.meta.Namespace))
	}
	if len(d.meta.Labels) > 0 {
		add(meta, "labels", textsNode(d.meta.Labels))
	}
	if len(d.meta.Annotations) > 0 {
		add(meta, "annotations", textsNode(d.meta.Annotations))
	}
	if !d.meta.CreationTimestamp.IsZero() {
		add(meta, "creationTimestamp", textNode(d.meta.CreationTimestamp.Format(time.RFC3339Nano)))
	}
	root := &node{kind: mapNode}
	add(root, "apiVersion", textNode(APIVersion))
	add(root, "kind", textNode(d.kind))
	add(root, "metadata", meta)
	add(root, "spec", d.spec)
	return root
}

func textNode(s string) *node { return &node{kind: stringNode, text: s} }

func textsNode(m map[string]string) *node {
	n := &node{kind: mapNode}
	for name, value := range m {
		n.fields = append(n.fields, field{name: name, value: textNode(value)})
	}
	n.fields = sortedFields(n)
	return n
}

func sortedFields(n *node) []field {
	return slices.SortedFunc(slices.Values(n.fields), func(a, b field) int { return strings.Compare(a.name, b.name) })
}

// sortedTree returns a copy of n with the names of all mappings sorted.
func sortedTree(n *node) *node {
	c := *n
	c.items = make([]*node, 0, len(n.items))
	for _, item := range n.items {
		c.items = append(c.items, sortedTree(item))
	}
	c.fields = sortedFields(n)
	for i := range c.fields {
		c.fields[i].value = sortedTree(c.fields[i].value)
	}
	return &c
}

func writeJSON(b *bytes.Buffer, n *node) {
	switch n.kind {
	case boolNode, numberNode:
		b.WriteString(n.text)
	case stringNode:
		writeString(b, n.text)
	case listNode:
		b.WriteByte('[')
		for i, item := range n.items {
			if i > 0 {
				b.WriteByte(',')
			}
			writeJSON(b, item)
		}
		b.WriteByte(']')
	case mapNode:
		b.WriteByte('{')
		for i, f := range sortedFields(n) {
			if i > 0 {
				b.WriteByte(',')
			}
			writeString(b, f.name)
			b.WriteByte(':')
			writeJSON(b, f.value)
		}
		b.WriteByte('}')
	default:
		b.WriteString("null")
	}
}

// writeString writes a JSON string. Bytes that are no UTF-8 become U+FFFD.
// Characters that YAML does not take raw are escaped, so that the result is
// a double-quoted YAML scalar too.
func writeString(b *bytes.Buffer, s string) {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	start := b.Len()
	_ = enc.Encode(s) // a string into a buffer always encodes
	b.Truncate(b.Len() - 1)
	text := b.Bytes()[start:]
	if !bytes.ContainsFunc(text, yamlUnprintable) {
		return
	}
	safe := strings.Builder{}
	for _, r := range string(text) {
		if yamlUnprintable(r) {
			fmt.Fprintf(&safe, `\u%04x`, r)
		} else {
			safe.WriteRune(r)
		}
	}
	b.Truncate(start)
	b.WriteString(safe.String())
}

// yamlUnprintable reports characters of the basic plane that YAML 1.2 §5.1
// excludes or reads as a line break. Control characters below 0x20 are
// already escaped by JSON.
func yamlUnprintable(r rune) bool {
	return r >= 0x7f && r < 0xa0 || r == 0xfeff || r == 0xfffe || r == 0xffff
}

// writeYAML writes n in block style; the cursor is where a value may start on
// the current line.
func writeYAML(b *bytes.Buffer, n *node, indent int) {
	switch {
	case n.kind == mapNode && len(n.fields) > 0:
		for i, f := range n.fields {
			if i > 0 {
				b.WriteString(strings.Repeat("  ", indent))
			}
			writeYAMLText(b, f.name)
			b.WriteByte(':')
			if opensBlock(f.value) {
				b.WriteByte('\n')
				b.WriteString(strings.Repeat("  ", indent+1))
			} else {
				b.WriteByte(' ')
			}
			writeYAML(b, f.value, indent+1)
		}
	case n.kind == listNode && len(n.items) > 0:
		for i, item := range n.items {
			if i > 0 {
				b.WriteString(strings.Repeat("  ", indent))
			}
			b.WriteString("- ")
			writeYAML(b, item, indent+1)
		}
	case n.kind == stringNode:
		writeYAMLText(b, n.text)
		b.WriteByte('\n')
	default:
		writeJSON(b, n)
		b.WriteByte('\n')
	}
}

func opensBlock(n *node) bool {
	return n.kind == mapNode && len(n.fields) > 0 || n.kind == listNode && len(n.items) > 0
}

// writeYAMLText writes a string plain where no reader of YAML takes it for
// anything else, and in double quotes otherwise.
func writeYAMLText(b *bytes.Buffer, s string) {
	if plainYAML(s) {
		b.WriteString(s)
	} else {
		writeString(b, s)
	}
}

func plainYAML(s string) bool {
	if s == "" || len(s) > 256 || s[len(s)-1] == ':' {
		return false
	}
	if s[0] >= '0' && s[0] <= '9' {
		// Of what starts with a digit only durations such as 4h stay plain.
		if _, err := time.ParseDuration(s); err != nil || s[len(s)-1] == '0' {
			return false
		}
	} else if !alnum(s[0]) && s[0] != '/' {
		return false
	}
	for i := range len(s) {
		if !alnum(s[i]) && !strings.ContainsRune("-_./:", rune(s[i])) {
			return false
		}
	}
	switch strings.ToLower(s) {
	case "true", "false", "yes", "no", "on", "off", "y", "n", "null":
		return false
	}
	return true
}
