// This file parses the values that only requests of HTTP are compared with:
// hosts, methods and paths.

package policy

import (
	"errors"
	"fmt"
	"strings"
)

// host adds a host. Ports are taken off before matching, so a value with one
// would match nothing; ":*", which Istio's users write for any port, is taken
// off too.
func (p *parser) host(t *term, value, path string) error {
	name := strings.TrimSuffix(value, ":*")
	if name != value {
		p.warn(path, "the port is taken off a host before it is compared: %q says the same", name)
	}
	if strings.HasPrefix(name, "[") {
		canonical, err := CanonicalHost(name)
		if err != nil {
			return err
		}
		if !strings.HasSuffix(name, "]") {
			return fmt.Errorf("has a port, which is taken off before hosts are compared; write %s and ports", canonical)
		}
		t.text.add(canonical)
		return nil
	}
	if host, port, ok := strings.Cut(name, ":"); ok {
		return fmt.Errorf("has a port, which is taken off before hosts are compared; write %q and ports: [%q]", host, port)
	}
	return addPattern(&t.text, lowered(strings.TrimSuffix(name, ".")), checkServerName)
}

// method adds a method. Methods have case (RFC 9110 §9.1).
func (p *parser) method(t *term, value, path string) error {
	if upper := strings.ToUpper(value); upper != value {
		p.warn(path, "methods are compared with their case: %q does not match %s", value, upper)
	}
	return addPattern(&t.text, value, func(s string) error {
		if !isHeaderName(s) || s[0] == ':' {
			return errors.New("is not a method")
		}
		return nil
	})
}

// path adds a path in the form in which paths are compared.
func (p *parser) path(t *term, value, path string) error {
	if strings.Contains(value, oneSegment) || strings.Contains(value, anySegments) {
		template, err := parseTemplate(value)
		t.text.templates = append(t.text.templates, template)
		return err
	}
	if value == "*" {
		t.text.any = true
		return nil
	}
	part, prefix := strings.CutSuffix(value, "*")
	suffix := false
	if !prefix {
		part, suffix = strings.CutPrefix(value, "*")
	}
	switch {
	case part == "":
		return errEmpty
	case strings.Contains(part, "*"):
		return errWildcard
	case strings.Contains(part, "?"):
		return errors.New("has a '?': the query is not part of the path; it is not compared")
	case !suffix && part[0] != '/':
		return fmt.Errorf("does not start with '/', as every path does; did you mean %q?", "/"+value)
	}
	canonical, err := canonicalEncoding(part)
	if err == nil && !suffix {
		canonical, err = canonicalPart(canonical, prefix)
	}
	if err != nil {
		return fmt.Errorf("is never seen, since such requests are refused: %w", err)
	}
	if canonical != part {
		p.warn(path, "paths are compared in their canonical form: %q is taken as %q", part, canonical)
	}
	switch {
	case prefix:
		if !strings.HasSuffix(canonical, "/") {
			p.warnSegment(path, value, canonical)
		}
		t.text.prefixes = append(t.text.prefixes, canonical)
	case suffix:
		t.text.suffixes = append(t.text.suffixes, canonical)
	default:
		t.text.exact = append(t.text.exact, canonical)
	}
	return nil
}

// canonicalPart resolves a path, or the beginning of one. A beginning may end
// inside a segment that only looks like a dot segment.
func canonicalPart(part string, prefix bool) (string, error) {
	if !prefix {
		return resolveSegments(part)
	}
	i := strings.LastIndexByte(part, '/')
	whole, err := resolveSegments(part[:i+1])
	return whole + part[i+1:], err
}

// parseTemplate parses a path with {*} or {**}. An operator is a whole
// segment; after {**} only text may follow.
func parseTemplate(value string) (template, error) {
	var t template
	if value[0] != '/' {
		return t, errors.New("does not start with '/'")
	}
	rest := value[1:]
	for {
		segment, after, more := strings.Cut(rest, "/")
		switch {
		case t.rest && (segment == oneSegment || segment == anySegments):
			return t, errors.New("has an operator after {**}, which must be the last")
		case segment == anySegments:
			t.rest = true
		case segment == oneSegment:
			t.segments = append(t.segments, oneSegment)
		case strings.ContainsAny(segment, "{}"):
			return t, fmt.Errorf("has a segment %q: {*} and {**} stand for whole segments", segment)
		case strings.Contains(segment, "*"):
			return t, fmt.Errorf("has a '*' in the segment %q: beside {*} and {**} there is no other wildcard", segment)
		default:
			canonical, err := canonicalEncoding(segment)
			if err != nil {
				return t, err
			}
			if canonical == "." || canonical == ".." || canonical == "" && more && !t.rest {
				return t, fmt.Errorf("has a segment %q, which no canonical path has", segment)
			}
			if t.rest {
				t.tail += "/" + canonical
			} else {
				t.segments = append(t.segments, canonical)
			}
		}
		if !more {
			return t, nil
		}
		rest = after
	}
}

// checkText checks a value that is compared as it is.
func checkText(s string) error {
	for i := range len(s) {
		if s[i] < ' ' && s[i] != '\t' || s[i] == 0x7f {
			return fmt.Errorf("has the control byte %#02x", s[i])
		}
	}
	return nil
}
