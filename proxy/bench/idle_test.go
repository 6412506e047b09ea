// This file holds the benchmarks of idle connections: the memory that each
// holds, and what handshakes cost beside many of them.

package bench

import (
	"crypto/tls"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/aval-id/aval/cmd/measure"
)

const (
	fewIdle = 2000
	// manyIdle fits into 20,000 open files at two for each.
	manyIdle = 9000
)

// BenchmarkIdle is resident memory of the serving process for each connection
// that has said one byte and idles, and without any connection. Each round
// has new processes, since what is freed isn't given back.
func BenchmarkIdle(b *testing.B) {
	s := newStage(b, "app")
	sides := []side{{name: "aval"}, {name: "floor"}}
	starts := []func() side{
		func() side { return s.start(b, "proxy", nil) },
		func() side { return s.start(b, "floor", nil) },
	}
	for _, p := range installed() {
		sides = append(sides, side{name: p.program})
		starts = append(starts, func() side {
			var f foreign
			p.start(b, s.job, &f)
			return f.secure[0]
		})
	}
	b.Run("none", func(b *testing.B) {
		for b.Loop() {
			measure.Figure{What: "the proxy without connections", Unit: "MiB", Ours: s.start(b, "proxy", nil).memory(b) / 1024, Most: 30}.Tell(b)
		}
	})
	for _, tt := range []struct {
		name                string
		rounds, connections int
	}{{"few", 3, fewIdle}, {"many", 1, manyIdle}} {
		b.Run(tt.name, func(b *testing.B) {
			for b.Loop() {
				var turns []func() float64
				for _, start := range starts {
					turns = append(turns, func() float64 { return s.idle(b, start(), tt.connections) })
				}
				tell(b, fmt.Sprintf("an idle connection of %d", tt.connections), "KiB", map[string]float64{"floor": 0.5},
					sides, measure.Interleave(tt.rounds, turns...))
			}
		})
	}
}

// idle returns the KiB of each connection, and closes them.
func (s *stage) idle(b *testing.B, to side, connections int) float64 {
	b.Helper()
	before := to.memory(b)
	release := s.hold(b, to, connections)
	defer release()
	return (to.memory(b) - before) / float64(connections)
}

// hold opens connections, each of which says one byte, and waits until the
// side has come to rest.
func (s *stage) hold(b *testing.B, to side, connections int) (release func()) {
	b.Helper()
	config := s.returning(tls.X25519)
	conns := make([]*tls.Conn, connections)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < len(conns); i += 8 {
				conn, err := tls.Dial("tcp", to.address, config)
				if err == nil {
					conns[i] = conn
					err = ping(conn)
				}
				if err != nil {
					b.Errorf("%s: %v", to.name, err)
					return
				}
			}
		})
	}
	wg.Wait()
	release = func() {
		for _, conn := range conns {
			if conn != nil {
				conn.NetConn().Close()
			}
		}
	}
	if b.Failed() {
		release()
		b.FailNow()
	}
	rest := time.NewTimer(2 * time.Second)
	<-rest.C
	return release
}

// BenchmarkCrowd is what handshakes cost a proxy that holds many idle
// connections, and how many it does a second, beside one that holds none.
func BenchmarkCrowd(b *testing.B) {
	s := newStage(b, "app")
	config := s.returning(tls.X25519)
	crowded, empty := s.start(b, "proxy", nil), s.start(b, "proxy", nil)
	defer s.hold(b, crowded, manyIdle)()
	await(b, "each of them is in the record", func() bool { return s.agent.records.Load() >= manyIdle })
	for b.Loop() {
		var rates [2][]float64
		var turns []func() float64
		for i, side := range []side{crowded, empty} {
			turns = append(turns, func() float64 {
				cost, rate := handshakes(b, side, config, roundTime)
				rates[i] = append(rates[i], rate)
				return cost
			})
		}
		costs := measure.Interleave(measure.Rounds, turns...)
		beside := fmt.Sprintf("handshake, %d idle connections held", manyIdle)
		measure.Figure{What: beside, Unit: "µs of CPU", Ours: costs[0], Beside: "none held:", Baseline: costs[1]}.Tell(b)
		measure.Figure{What: beside, Unit: "per second", Ours: measure.Median(rates[0]), Beside: "none held:", Baseline: measure.Median(rates[1])}.Tell(b)
	}
}
