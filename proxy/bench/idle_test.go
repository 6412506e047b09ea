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
// that has said one byte and idles, and without any connection.
func BenchmarkIdle(b *testing.B) {
	b.Run("few", func(b *testing.B) {
		for b.Loop() {
			s := newStage(b, "app")
			secure := startPeers(b, s.job).secure
			sides := []side{s.start(b, "proxy", nil), s.start(b, "floor", nil)}
			base := sides[0].memory(b) / 1024
			figures := s.idleRounds(b, 3, secure, fewIdle)
			tell(b, fmt.Sprintf("an idle connection of %d", fewIdle), "KiB", map[string]float64{"floor": 0.5}, append(sides, secure...), figures)
			measure.Figure{What: "the proxy without connections", Unit: "MiB", Ours: base, Most: 30}.Tell(b)
		}
	})
	b.Run("many", func(b *testing.B) {
		for b.Loop() {
			s := newStage(b, "app")
			secure := startPeers(b, s.job).secure
			figures := s.idleRounds(b, 1, secure, manyIdle)
			tell(b, fmt.Sprintf("an idle connection of %d", manyIdle), "KiB", map[string]float64{"floor": 0.5},
				append([]side{{name: "aval"}, {name: "floor"}}, secure...), figures)
		}
	})
}

// idleRounds measures proxy and floor, each a new process in each round, and
// the others.
func (s *stage) idleRounds(b *testing.B, rounds int, others []side, connections int) []float64 {
	b.Helper()
	var turns []func() float64
	for _, role := range []string{"proxy", "floor"} {
		turns = append(turns, func() float64 { return s.idle(b, s.start(b, role, nil), connections) })
	}
	for _, o := range others {
		turns = append(turns, func() float64 { return s.idle(b, o, connections) })
	}
	return measure.Interleave(rounds, turns...)
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
