// This file holds the tests of the collector's pace.

package proxy

import (
	"runtime/debug"
	"testing"
	"time"
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
	p := newPace(time.Now())
	if got := debug.SetGCPercent(100); got != p.percent || got < gcPercent {
		t.Errorf("the collector's target is %d, not %d", got, p.percent)
	}
}

func TestAProxyAtRestCollectsOnce(t *testing.T) {
	began := time.Unix(1, 0)
	p := &pace{since: began}
	for _, tt := range []struct {
		after           time.Duration
		live, allocated uint64
		want            bool
	}{
		{250 * time.Millisecond, 3 << 20, 20 << 20, false},      // busy
		{500 * time.Millisecond, 3 << 20, 40 << 20, false},      // still
		{1000 * time.Millisecond, 3 << 20, 40<<20 + 100, false}, // quiet for half a second
		{1500 * time.Millisecond, 3 << 20, 40<<20 + 200, true},
		{1750 * time.Millisecond, 3 << 20, 40<<20 + 300, false}, // nothing has come up since
		{9 * time.Second, 3 << 20, 41 << 20, false},
		{10 * time.Second, 3 << 20, 45 << 20, true}, // little by little it has
		{10250 * time.Millisecond, 3 << 20, 60 << 20, false},
		{11500 * time.Millisecond, 80 << 20, 60 << 20, false}, // not worth it beside so much that lives
		{11750 * time.Millisecond, 3 << 20, 60 << 20, true},   // after the next load
	} {
		if got := p.rests(tt.live, tt.allocated, began.Add(tt.after)); got != tt.want {
			t.Errorf("%v, %d MiB allocated: %v", tt.after, tt.allocated>>20, got)
		}
	}
}
