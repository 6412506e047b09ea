// This file reads streams of JSON values and of YAML documents piece by
// piece, each with the line it starts at.

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// rawDocument is one value of a stream, as JSON.
type rawDocument struct {
	line int // counted from 1
	json []byte
}

// moveFrom puts a document of one namespace of Istio's into another, and
// reports whether it did.
func (r *rawDocument) moveFrom(from, to string) bool {
	var doc object
	if json.Unmarshal(r.json, &doc) != nil || from == to {
		return false
	}
	version, _ := doc["apiVersion"].(string)
	meta, _ := doc["metadata"].(object)
	if !strings.HasPrefix(version, istioGroup) || meta["namespace"] != from {
		return false
	}
	meta["namespace"] = to
	moved, err := json.Marshal(doc)
	if err != nil {
		return false
	}
	r.json = moved
	return true
}

// parts returns the elements of a list, or the value itself.
func (r rawDocument) parts() []rawDocument {
	var elements []json.RawMessage
	if json.Unmarshal(r.json, &elements) != nil || elements == nil {
		return []rawDocument{r}
	}
	var out []rawDocument
	for _, e := range elements {
		out = append(out, rawDocument{r.line, e})
	}
	return out
}

// documentsIn returns every value of a stream, those of lists apart.
func documentsIn(data []byte) ([]rawDocument, error) {
	var out []rawDocument
	next := valuesIn(data)
	for {
		raw, err := next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		var wrapper struct {
			Kind  string            `json:"kind"`
			Items []json.RawMessage `json:"items"`
		}
		if json.Unmarshal(raw.json, &wrapper) == nil && strings.HasSuffix(wrapper.Kind, "List") && wrapper.Items != nil {
			for _, item := range wrapper.Items {
				out = append(out, rawDocument{raw.line, item})
			}
			continue
		}
		out = append(out, raw)
	}
}

// valuesIn returns what yields the values of a stream one by one: JSON where
// the first of it is JSON, else YAML. The end is io.EOF.
func valuesIn(data []byte) func() (rawDocument, error) {
	if json.NewDecoder(bytes.NewReader(data)).Decode(&json.RawMessage{}) == nil {
		return jsonValues(data)
	}
	return yamlValues(data)
}

func jsonValues(data []byte) func() (rawDocument, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	line, counted := 1, 0
	return func() (rawDocument, error) {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			if errors.Is(err, io.EOF) {
				return rawDocument{}, io.EOF
			}
			return rawDocument{}, fmt.Errorf("after line %d: not valid JSON: %w", line, err)
		}
		start := int(dec.InputOffset()) - len(raw)
		line += bytes.Count(data[counted:start], []byte("\n"))
		counted = start
		return rawDocument{line, raw}, nil
	}
}

func yamlValues(data []byte) func() (rawDocument, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	return func() (rawDocument, error) {
		for {
			var node yaml.Node
			if err := dec.Decode(&node); err != nil {
				if errors.Is(err, io.EOF) {
					return rawDocument{}, io.EOF
				}
				return rawDocument{}, fmt.Errorf("not valid YAML: %w", err)
			}
			var value any
			if err := node.Decode(&value); err != nil {
				return rawDocument{}, fmt.Errorf("line %d: not valid YAML: %w", node.Line, err)
			}
			if value == nil {
				continue
			}
			raw, err := json.Marshal(plainYAML(value))
			if err != nil {
				return rawDocument{}, fmt.Errorf("line %d: %w", node.Line, err)
			}
			return rawDocument{node.Line, raw}, nil
		}
	}
}

// plainYAML makes of a YAML value what JSON has: keys that are texts, and
// times as RFC 3339 writes them.
func plainYAML(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = plainYAML(e)
		}
	case map[any]any:
		out := make(object, len(v))
		for k, e := range v {
			out[fmt.Sprint(k)] = plainYAML(e)
		}
		return out
	case []any:
		for i, e := range v {
			v[i] = plainYAML(e)
		}
	case time.Time:
		return v.Format(time.RFC3339Nano)
	}
	return v
}
