// This file holds the tests of attributes and selectors.

package identity

import (
	"slices"
	"testing"
)

func TestSelectorWantsEveryNameAndAnyValue(t *testing.T) {
	have := Attributes{"unix.uid": {"1000"}, "unix.supplementary_gid": {"4", "27"}}
	for _, c := range []struct {
		s    Selector
		want bool
	}{
		{Selector{}, true},
		{Selector{"unix.uid": {"1000"}}, true},
		{Selector{"unix.uid": {"0", "1000"}}, true},
		{Selector{"unix.uid": {"0"}}, false},
		{Selector{"unix.supplementary_gid": {"27"}, "unix.uid": {"1000"}}, true},
		{Selector{"unix.supplementary_gid": {"27"}, "unix.uid": {"0"}}, false},
		{Selector{"unix.path": {"/bin/a"}}, false},
		{Selector{"unix.uid": {}}, false},
	} {
		if got := c.s.Matches(have); got != c.want {
			t.Errorf("%q matches: %v, want %v", c.s, got, c.want)
		}
		if missing := c.s.Missing(have); (len(missing) == 0) != c.want {
			t.Errorf("%q misses %q", c.s, missing)
		}
	}
}

func TestAttributesAreCopiedOnWrite(t *testing.T) {
	a := Attributes{}.With("x", "1")
	b := a.With("x", "2")
	if !slices.Equal(a["x"], []string{"1"}) || !slices.Equal(b["x"], []string{"1", "2"}) {
		t.Fatalf("a=%s b=%s", a, b)
	}
}
