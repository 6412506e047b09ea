// This file holds the pace of the garbage collector in a process that is a
// proxy and nothing else: seldom under load, and once when it comes to rest.

package proxy

import (
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"time"
)

const (
	// gcPercent is the target while connections fill the heap: they are many
	// and small, and what a handshake leaves behind should not stay for long.
	gcPercent = 50
	// heapFloor is the heap that a busy proxy without many connections may
	// use up between collections. Without it the collector would run every
	// few dozen handshakes, for a tenth of their CPU.
	heapFloor = 16 << 20
	// A proxy that allocates less than restRate a second for restAfter is at
	// rest. Where restWorth has been allocated since it last was, and a quarter
	// of what lives, it collects and gives the memory back: garbage and grown
	// stacks would stay for minutes otherwise.
	restRate  = 1 << 20
	restAfter = time.Second
	restWorth = 4 << 20
)

// pace sets the collector's target by what lives, and collects at rest. The
// sweep owns it.
type pace struct {
	percent int
	samples []runtimemetrics.Sample

	since     time.Time // the start of what may be rest
	allocated uint64    // by then
	collected uint64    // what was allocated by the last collection at rest
}

func newPace(now time.Time) *pace {
	p := &pace{since: now, samples: []runtimemetrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}, {Name: "/gc/heap/allocs:bytes"}}}
	p.adjust(now)
	return p
}

// adjust looks and sets. Small changes are not worth stopping the world for.
func (p *pace) adjust(now time.Time) {
	runtimemetrics.Read(p.samples)
	live := p.samples[0].Value.Uint64()
	next := percentFor(live, live+p.samples[1].Value.Uint64()+p.samples[2].Value.Uint64())
	if diff := next - p.percent; diff > p.percent/8 || -diff > p.percent/8 {
		p.percent = next
		debug.SetGCPercent(next)
	}
	if p.rests(live, p.samples[3].Value.Uint64(), now) {
		debug.FreeOSMemory()
	}
}

// rests takes what lives and how much has been allocated ever, and reports
// whether to collect now.
func (p *pace) rests(live, allocated uint64, now time.Time) bool {
	quiet := now.Sub(p.since)
	if float64(allocated-p.allocated) > restRate*max(quiet, restAfter).Seconds() {
		p.since, p.allocated = now, allocated
		return false
	}
	if quiet < restAfter || allocated-p.collected < max(restWorth, live/4) {
		return false
	}
	p.collected = allocated
	return true
}

// percentFor returns the target for a live heap, and for what the target is a
// percentage of: the heap, stacks and globals.
func percentFor(live, scanned uint64) int {
	if live >= heapFloor || scanned == 0 {
		return gcPercent
	}
	const most = heapFloor * 100 / (4 << 20) // the runtime's least heap is that percentage of 4 MiB
	return int(min(max(gcPercent, (heapFloor-live)*100/scanned), most))
}
