// This file reads YAML into the tree, and refuses what JSON has no word for.

package document

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// parseStream returns the trees of all documents that are not empty. JSON is
// read as JSON, because YAML does not know all of its escapes.
func parseStream(file string, data []byte) ([]*node, Errors) {
	if len(data) > MaxStreamBytes {
		return nil, Errors{{File: file, Reason: fmt.Sprintf("input is %d bytes, more than %d", len(data), MaxStreamBytes)}}
	}
	if trimmed := bytes.TrimSpace(data); len(trimmed) > 0 && trimmed[0] == '{' {
		if roots, err := parseJSONStream(data, true); err == nil {
			return roots, nil
		} else if !err.syntax {
			err.fault.File = file
			return nil, Errors{err.fault}
		}
	}
	r := yamlReader{file: file}
	var roots []*node
	for dec := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var y yaml.Node
		err := dec.Decode(&y)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			r.errs = append(r.errs, yamlError(file, err))
			break
		}
		if len(y.Content) != 1 || isEmpty(y.Content[0]) {
			continue
		}
		if root := r.tree(y.Content[0], "", 0); root != nil {
			roots = append(roots, root)
		}
	}
	return roots, r.errs
}

func isEmpty(y *yaml.Node) bool {
	return y.Kind == yaml.ScalarNode && y.Value == "" && y.Style == 0 && y.Anchor == ""
}

var yamlLine = regexp.MustCompile(`^line (\d+): `)

// yamlError turns the parser's message into an Error with its line.
func yamlError(file string, err error) *Error {
	e := &Error{File: file, cause: err}
	reason := strings.TrimPrefix(err.Error(), "yaml: ")
	if m := yamlLine.FindStringSubmatch(reason); m != nil {
		// The digits come from the parser; a number too large leaves no line.
		e.Line, _ = strconv.Atoi(m[1])
		reason = reason[len(m[0]):]
	}
	e.Reason = "not valid YAML: " + reason
	return e
}

type yamlReader struct {
	file string
	errs Errors
}

func (r *yamlReader) fault(line int, path, reason, hint string) {
	r.errs = append(r.errs, &Error{File: r.file, Line: line, Field: path, Reason: reason, Hint: hint})
}

// tree converts y. It returns nil after a fault in y itself.
func (r *yamlReader) tree(y *yaml.Node, path string, depth int) *node {
	switch {
	case len(r.errs) >= maxFaults:
		return nil
	case depth > maxDepth:
		r.fault(y.Line, path, fmt.Sprintf("is nested deeper than %d", maxDepth), "")
		return nil
	case y.Kind == yaml.AliasNode:
		r.fault(y.Line, path, "aliases are not supported", "write the value out")
		return nil
	case y.Anchor != "":
		r.fault(y.Line, path, "anchors are not supported", "write the value out")
		return nil
	case y.Style&yaml.TaggedStyle != 0:
		r.fault(y.Line, path, "tags such as "+quoted(y.Tag)+" are not supported", "")
		return nil
	}
	n := &node{line: y.Line}
	switch y.Kind {
	case yaml.MappingNode:
		n.kind = mapNode
		r.mapping(n, y, path, depth)
	case yaml.SequenceNode:
		n.kind = listNode
		for i, item := range y.Content {
			if v := r.tree(item, path+"["+strconv.Itoa(i)+"]", depth+1); v != nil {
				n.items = append(n.items, v)
			}
		}
	case yaml.ScalarNode:
		return r.scalar(n, y, path)
	default:
		r.fault(y.Line, path, "is not YAML that is understood here", "")
		return nil
	}
	return n
}

func (r *yamlReader) mapping(n *node, y *yaml.Node, path string, depth int) {
	seen := make(map[string]int, len(y.Content)/2)
	for i := 0; i+1 < len(y.Content); i += 2 {
		key, value := y.Content[i], y.Content[i+1]
		if len(r.errs) >= maxFaults {
			return
		}
		if len(key.Value) > maxNameBytes {
			r.fault(key.Line, path, fmt.Sprintf("has a name of more than %d bytes", maxNameBytes), "")
			continue
		}
		at := dotted(path, key.Value)
		switch {
		case key.Kind != yaml.ScalarNode || key.Anchor != "" || key.Style&yaml.TaggedStyle != 0 || key.ShortTag() == "!!null":
			r.fault(key.Line, path, "has a key that is not a plain name", "")
			continue
		case key.ShortTag() == "!!merge":
			r.fault(key.Line, path, "merge keys (<<) are not supported", "write the fields out")
			continue
		case seen[key.Value] > 0:
			r.fault(key.Line, at, fmt.Sprintf("is already written on line %d", seen[key.Value]), "")
			continue
		}
		seen[key.Value] = key.Line
		if v := r.tree(value, at, depth+1); v != nil {
			n.fields = append(n.fields, field{name: key.Value, line: key.Line, value: v})
		}
	}
}

// scalar gives quoted text, dates and plain text as strings. A number is one
// only in the form that JSON has: 010 and 1_000 mean different things to
// different readers.
func (r *yamlReader) scalar(n *node, y *yaml.Node, path string) *node {
	n.kind, n.text = stringNode, y.Value
	if y.Style != 0 {
		return n
	}
	switch tag := y.ShortTag(); {
	case isJSONNumber(y.Value): // also one too large for the YAML library
		n.kind = numberNode
	case tag == "!!null":
		n.kind, n.text = nullNode, ""
	case tag == "!!bool":
		n.kind, n.text = boolNode, strings.ToLower(y.Value)
	case tag == "!!int" || tag == "!!float":
		r.fault(y.Line, path, "number "+quoted(y.Value)+" is written in a form that readers disagree about", "write it in decimal, or quote it to mean the text")
		return nil
	}
	return n
}

func dotted(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
