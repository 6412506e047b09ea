// This file reads JSON into the tree, token by token, with duplicate names
// refused.

package document

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// jsonError is a fault of a JSON text; syntax says that it is no JSON at all,
// so that another reader may have its turn.
type jsonError struct {
	syntax bool
	fault  *Error
}

type jsonReader struct {
	dec   *json.Decoder
	data  []byte
	lines bool
	at    int // how much of data is counted in line
	line  int
}

// parseJSON reads exactly one value, without lines.
func parseJSON(data []byte) (*node, *Error) {
	roots, err := parseJSONStream(data, false)
	if err != nil {
		return nil, err.fault
	}
	if len(roots) != 1 {
		return nil, &Error{Reason: fmt.Sprintf("has %d JSON values instead of one", len(roots))}
	}
	return roots[0], nil
}

func parseJSONStream(data []byte, lines bool) ([]*node, *jsonError) {
	r := jsonReader{dec: json.NewDecoder(bytes.NewReader(data)), data: data, lines: lines, line: 1}
	r.dec.UseNumber()
	var roots []*node
	for {
		tok, err := r.dec.Token()
		if errors.Is(err, io.EOF) {
			return roots, nil
		}
		if err != nil {
			return nil, r.syntax(err)
		}
		root, fault := r.tree(tok, "", 0)
		if fault != nil {
			return nil, fault
		}
		roots = append(roots, root)
	}
}

// position returns the line of the token that was just read.
func (r *jsonReader) position() int {
	if !r.lines {
		return 0
	}
	end := int(r.dec.InputOffset())
	r.line += bytes.Count(r.data[r.at:end], []byte{'\n'})
	r.at = end
	return r.line
}

func (r *jsonReader) syntax(err error) *jsonError {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return &jsonError{syntax: true, fault: &Error{Line: r.position(), Reason: "not valid JSON: " + err.Error(), cause: err}}
}

func (r *jsonReader) fault(path, format string, args ...any) *jsonError {
	return &jsonError{fault: &Error{Line: r.position(), Field: path, Reason: fmt.Sprintf(format, args...)}}
}

// tree builds the value that starts with tok.
func (r *jsonReader) tree(tok json.Token, path string, depth int) (*node, *jsonError) {
	n := &node{line: r.position()}
	switch v := tok.(type) {
	case nil:
		n.kind = nullNode
	case bool:
		n.kind, n.text = boolNode, strconv.FormatBool(v)
	case json.Number:
		n.kind, n.text = numberNode, v.String()
	case string:
		n.kind, n.text = stringNode, v
	case json.Delim:
		if depth > maxDepth {
			return nil, r.fault(path, "is nested deeper than %d", maxDepth)
		}
		if v == '[' {
			n.kind = listNode
			return n, r.list(n, path, depth)
		}
		n.kind = mapNode
		return n, r.mapping(n, path, depth)
	default:
		return nil, r.fault(path, "is not JSON that is understood here")
	}
	return n, nil
}

func (r *jsonReader) list(n *node, path string, depth int) *jsonError {
	for {
		tok, err := r.dec.Token()
		if err != nil {
			return r.syntax(err)
		}
		if tok == json.Delim(']') {
			return nil
		}
		item, fault := r.tree(tok, path+"["+strconv.Itoa(len(n.items))+"]", depth+1)
		if fault != nil {
			return fault
		}
		n.items = append(n.items, item)
	}
}

func (r *jsonReader) mapping(n *node, path string, depth int) *jsonError {
	seen := map[string]bool{}
	for {
		tok, err := r.dec.Token()
		if err != nil {
			return r.syntax(err)
		}
		name, ok := tok.(string)
		if !ok {
			return nil // the decoder gives only names and '}' here
		}
		if len(name) > maxNameBytes {
			return r.fault(path, "has a name of more than %d bytes", maxNameBytes)
		}
		at, line := dotted(path, name), r.position()
		if seen[name] {
			return r.fault(at, "is written twice")
		}
		seen[name] = true
		if tok, err = r.dec.Token(); err != nil {
			return r.syntax(err)
		}
		value, fault := r.tree(tok, at, depth+1)
		if fault != nil {
			return fault
		}
		n.fields = append(n.fields, field{name: name, line: line, value: value})
	}
}
