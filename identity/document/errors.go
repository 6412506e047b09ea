// This file holds Error and Errors: what is wrong with a document or a
// configuration file, and where.

package document

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Error is one fault of a file. It prints as
// "web.yaml:7: spec.ttl: wrong type; found number 10; allowed: a duration".
type Error struct {
	File    string // as given to Parse or Decode; "" where unknown
	Line    int    // counted from 1; 0 where unknown
	Field   string // path such as spec.rules[0].to; "" for the whole document
	Found   string // what is written there, shortened; "" where that says nothing
	Allowed string // what may be written there; "" where Reason says it all
	Hint    string // what to do about it; "" where there is nothing to say
	Reason  string // what is wrong

	cause error
}

// Error prints where, which field, what is wrong, found and allowed.
func (e *Error) Error() string {
	var b strings.Builder
	switch {
	case e.File != "" && e.Line > 0:
		fmt.Fprintf(&b, "%s:%d: ", e.File, e.Line)
	case e.File != "":
		fmt.Fprintf(&b, "%s: ", e.File)
	case e.Line > 0:
		fmt.Fprintf(&b, "line %d: ", e.Line)
	}
	if e.Field != "" {
		b.WriteString(e.Field + ": ")
	}
	b.WriteString(e.Reason)
	if e.Found != "" {
		b.WriteString("; found " + e.Found)
	}
	if e.Allowed != "" {
		b.WriteString("; allowed: " + e.Allowed)
	}
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

// Unwrap returns what the format of Errorf wrapped, or nil.
func (e *Error) Unwrap() error { return e.cause }

// Errors is every fault of a file in the order of its lines. It is never
// empty where it is returned as an error.
type Errors []*Error

// Error prints one fault on each line.
func (es Errors) Error() string {
	lines := make([]string, 0, len(es))
	for _, e := range es {
		lines = append(lines, e.Error())
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the faults, so that errors.As finds an *Error.
func (es Errors) Unwrap() []error {
	all := make([]error, 0, len(es))
	for _, e := range es {
		all = append(all, e)
	}
	return all
}

func (es Errors) sorted() Errors {
	slices.SortStableFunc(es, func(a, b *Error) int { return a.Line - b.Line })
	return es
}

// orNil returns es as an error, sorted, or nil if there is no fault.
func (es Errors) orNil() error {
	if len(es) == 0 {
		return nil
	}
	return es.sorted()
}

// at reports whether a fault is already known at this very field.
func (es Errors) at(field string) bool {
	return slices.ContainsFunc(es, func(e *Error) bool { return e.Field == field })
}

// Collect joins errors that packages found in one document, each an *Error or
// an Errors, into one Errors in the order of the lines. It returns nil if all
// are nil. Other errors are kept with their text as the reason.
func Collect(errs ...error) error {
	var all Errors
	for _, err := range errs {
		if err == nil {
			continue
		}
		if many, ok := errors.AsType[Errors](err); ok {
			all = append(all, many...)
		} else if one, ok := errors.AsType[*Error](err); ok {
			all = append(all, one)
		} else {
			all = append(all, &Error{Reason: err.Error(), cause: err})
		}
	}
	return all.orNil()
}

// Errorf returns an error at this field, with its file and line. The found
// text is what is written there, unquoted; found and allowed may be empty.
// The format is the reason and may wrap with %w.
func (d Document) Errorf(field, found, allowed, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	e := &Error{File: d.file, Line: d.Line(field), Field: field, Allowed: allowed, Reason: err.Error(), cause: errors.Unwrap(err)}
	if found != "" {
		e.Found = quoted(found)
	}
	return e
}

// maxFound bounds how much of a file an error repeats.
const maxFound = 80

// quoted returns s in quotes, shortened.
func quoted(s string) string {
	if len(s) > maxFound {
		s = strings.ToValidUTF8(s[:maxFound], "") + "…"
	}
	return strconv.Quote(s)
}

func joined(names []string) string { return strings.Join(names, ", ") }

// suggestion is the hint that name was meant, or "" without a name.
func suggestion(name string) string {
	if name == "" {
		return ""
	}
	return "did you mean " + name + "?"
}
