// This file holds the tests of orders as they come from the wire.

package upstream

import (
	"fmt"
	"testing"
	"time"

	"github.com/aval-id/aval/identity/wire"
)

func TestAnOrderIsObeyedOnce(t *testing.T) {
	c := &Client{}
	if !c.firstTime("a") || c.firstTime("a") || !c.firstTime("") || !c.firstTime("") {
		t.Fatal("an order with a name is obeyed once, one without always")
	}
	for i := range 2 * maxObeyed {
		c.firstTime(fmt.Sprint(i))
	}
	if len(c.obeyed) != maxObeyed {
		t.Fatalf("%d orders are remembered", len(c.obeyed))
	}
}

func TestAServerSpreadsWithinBounds(t *testing.T) {
	for asked, want := range map[int64]time.Duration{-5: 0, 0: 0, 1500: 1500 * time.Millisecond, 1 << 62: maxSpread} {
		if got := orderOf(&wire.Reissue{Spread: asked}).Spread; got != want {
			t.Errorf("asked for %d ms: %v, want %v", asked, got, want)
		}
	}
}
