// This file holds the tests of how findings are printed.

package main

import (
	"fmt"
	"strings"
	"testing"
)

func TestFindingsThatSayTheSameAreSummedUp(t *testing.T) {
	f := &findings{group: "documents"}
	for i := range 1000 {
		f.add(checkWarn, fmt.Sprintf("registration shop/w%d", i), "name nodes", "open to every node")
	}
	f.add(checkWarn, "conflict", "delete one", "of another kind")
	var out strings.Builder
	c := &cli{streams: streams{out: &out}}
	c.printFindings(f)
	text := out.String()
	if n := strings.Count(text, "open to every node"); n != alike {
		t.Errorf("%d findings are printed one by one, want %d:\n%s", n, alike, text)
	}
	for _, want := range []string{"and 995 more", "of another kind", "0 ok, 1001 warnings, 0 failed"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if n := strings.Count(text, "hint: name nodes"); n != 1 {
		t.Errorf("the hint is printed %d times, want once", n)
	}
}
