// This file holds Attributes, what attestation found out about a node or a
// process, and Selector, what a registration asks of them.

package identity

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Attributes are the facts that attestation established, by name, such as
// unix.uid or node.name. A name may have several values
// (unix.supplementary_gid). They are immutable once shared.
type Attributes map[string][]string

// With returns a copy that has value added under name.
func (a Attributes) With(name, value string) Attributes {
	out := maps.Clone(a)
	if out == nil {
		out = Attributes{}
	}
	if !slices.Contains(out[name], value) {
		out[name] = append(slices.Clone(out[name]), value)
	}
	return out
}

// Equal reports whether both hold the same values.
func (a Attributes) Equal(b Attributes) bool {
	return maps.EqualFunc(a, b, slices.Equal[[]string])
}

// String prints the attributes as name=value, sorted, separated by spaces.
func (a Attributes) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(a)) {
		for _, v := range a[name] {
			parts = append(parts, name+"="+v)
		}
	}
	return strings.Join(parts, " ")
}

// Selector asks for attributes: every name must be present with any of its
// values. An empty selector matches everything; whether that is allowed is
// the owner's decision.
type Selector map[string][]string

// Matches reports whether all of the selector holds for a.
func (s Selector) Matches(a Attributes) bool {
	for name, wanted := range s {
		if !anyOf(wanted, a[name]) {
			return false
		}
	}
	return true
}

// Missing returns the parts of the selector that do not hold for a, as
// name=value texts in order, for messages.
func (s Selector) Missing(a Attributes) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(s)) {
		if !anyOf(s[name], a[name]) {
			out = append(out, fmt.Sprintf("%s=%s", name, strings.Join(s[name], "|")))
		}
	}
	return out
}

// String prints the selector as name=value|value, sorted.
func (s Selector) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(s)) {
		parts = append(parts, name+"="+strings.Join(s[name], "|"))
	}
	return strings.Join(parts, " ")
}

func anyOf(wanted, have []string) bool {
	for _, w := range wanted {
		if slices.Contains(have, w) {
			return true
		}
	}
	return false
}
