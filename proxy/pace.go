// This file holds the pace of the garbage collector in a process that is a
// proxy and nothing else.

package proxy

import (
	"runtime/debug"
	runtimemetrics "runtime/metrics"
)

const (
	// gcPercent is the target while connections fill the heap: they are many
	// and small, and what a handshake leaves behind should not stay for long.
	gcPercent = 50
	// heapFloor is the heap that a busy proxy without many connections may
	// use up between collections. Without it the collector would run every
	// few dozen handshakes, for a tenth of their CPU.
	heapFloor = 16 << 20
)

// pace sets the collector's target by what lives.
type pace struct {
	percent int
	samples []runtimemetrics.Sample
}

func newPace() *pace {
	p := &pace{samples: []runtimemetrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}}
	p.adjust()
	return p
}

// adjust looks and sets. Small changes are not worth stopping the world for.
func (p *pace) adjust() {
	runtimemetrics.Read(p.samples)
	live := p.samples[0].Value.Uint64()
	next := percentFor(live, live+p.samples[1].Value.Uint64()+p.samples[2].Value.Uint64())
	if diff := next - p.percent; diff > p.percent/8 || -diff > p.percent/8 {
		p.percent = next
		debug.SetGCPercent(next)
	}
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
