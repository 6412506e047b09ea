// This file holds the tests of the collector's pace.

package proxy

import (
	"runtime/debug"
	"testing"
)

func TestTheCollectorIsPacedByWhatLives(t *testing.T) {
	const mib = 1 << 20
	for _, tt := range []struct {
		live, scanned uint64
		want          int
	}{
		{0, 0, gcPercent},
		{0, 1 * mib, 400},          // before the first collection
		{4 * mib, 5 * mib, 240},    // up to the floor
		{12 * mib, 13 * mib, 50},   // the floor asks for less than the target
		{16 * mib, 20 * mib, 50},   // at the floor
		{300 * mib, 400 * mib, 50}, // many connections
	} {
		if got := percentFor(tt.live, tt.scanned); got != tt.want {
			t.Errorf("%d MiB alive, %d scanned: %d%%, not %d%%", tt.live/mib, tt.scanned/mib, got, tt.want)
		}
	}
}

func TestThePaceSetsTheCollector(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	p := newPace()
	if got := debug.SetGCPercent(100); got != p.percent || got < gcPercent {
		t.Errorf("the collector's target is %d, not %d", got, p.percent)
	}
}
