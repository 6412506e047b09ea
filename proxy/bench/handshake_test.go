// This file holds the benchmarks of handshakes: what one costs, for whom,
// with how many cores, connections and policies.

package bench

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aval-id/aval/cmd/measure"
)

const roundTime = time.Second

// BenchmarkHandshake is CPU of the serving process for a whole connection:
// accept, full mutual TLS 1.3 handshake, dial, one byte each way, close, and
// in the proxy the policy decision and both records, of its beginning and its
// end. A returning peer's chain is in the proxy's cache, a new one's is not.
// Debian's OpenSSL 3.0 has no hybrid group.
func BenchmarkHandshake(b *testing.B) {
	s := newStage(b, "app")
	sides := []side{s.start(b, "proxy", nil), s.start(b, "floor", nil)}
	others := startPeers(b, s.job)
	all := slices.Concat(sides, others.secure, others.noTickets)
	for _, tt := range []struct {
		name   string
		peers  string
		config *tls.Config
		sides  []side
		most   map[string]float64
	}{
		{"X25519/new", "handshake, new peer, X25519", s.fresh(tls.X25519), all, map[string]float64{"floor": 1.10, "nginx": 0.5}},
		{"X25519/returning", "handshake, returning peer, X25519", s.returning(tls.X25519), all, map[string]float64{"floor": 1, "nginx": 0.5}},
		{"X25519MLKEM768/new", "handshake, new peer, hybrid", s.fresh(tls.X25519MLKEM768), sides, nil},
		{"X25519MLKEM768/returning", "handshake, returning peer, hybrid", s.returning(tls.X25519MLKEM768), sides, nil},
	} {
		b.Run(tt.name, func(b *testing.B) {
			for _, side := range tt.sides {
				handshakes(b, side, tt.config, roundTime/4)
			}
			before := s.agent.records.Load()
			compare(b, tt.peers, "µs of CPU", tt.most, tt.sides, func(side side) float64 {
				cost, _ := handshakes(b, side, tt.config, roundTime)
				return cost
			})
			if s.agent.records.Load() == before {
				b.Error("no records were taken")
			}
		})
	}
}

// BenchmarkCores is handshakes a second, with the client on the same cores.
func BenchmarkCores(b *testing.B) {
	s := newStage(b, "app")
	config := s.returning(tls.X25519)
	for _, cores := range []int{1, 2} {
		b.Run(fmt.Sprint(cores), func(b *testing.B) {
			on := func(j *job) { j.Cores = cores }
			what := fmt.Sprintf("handshakes on %d of the cores, client on all", cores)
			compare(b, what, "per second", nil, []side{s.start(b, "proxy", on), s.start(b, "floor", on)}, func(side side) float64 {
				_, rate := handshakes(b, side, config, roundTime)
				return rate
			})
		})
	}
}

// BenchmarkPolicies is what the number of policies costs the proxy: in a
// handshake whose verdict is the last one's, and until a change is in force,
// seen by a connection that it ends. The baseline is one policy.
func BenchmarkPolicies(b *testing.B) {
	var stages []*stage
	var sides []side
	counts := []int{10_000, 100, 1}
	for _, n := range counts {
		s := newStage(b, "app")
		s.agent.publish(policies(n, "web"))
		p := s.start(b, "proxy", nil)
		p.name = fmt.Sprint(n)
		stages, sides = append(stages, s), append(sides, p)
	}
	b.Run("handshake", func(b *testing.B) {
		for b.Loop() {
			var turns []func() float64
			for i, s := range stages {
				turns = append(turns, func() float64 {
					cost, _ := handshakes(b, sides[i], s.returning(tls.X25519), roundTime)
					return cost
				})
			}
			tellCounts(b, "handshake", "µs of CPU", counts, measure.Interleave(measure.Rounds, turns...))
		}
	})
	b.Run("change", func(b *testing.B) {
		for b.Loop() {
			var cpu [3][]float64
			var turns []func() float64
			for i, s := range stages {
				turns = append(turns, func() float64 {
					took, used := s.change(b, sides[i], counts[i])
					cpu[i] = append(cpu[i], used)
					return took
				})
			}
			tellCounts(b, "policy sent until in force", "ms", counts, measure.Interleave(measure.Rounds, turns...))
			tellCounts(b, "taking a snapshot", "ms of CPU", counts, []float64{measure.Median(cpu[0]), measure.Median(cpu[1]), measure.Median(cpu[2])})
		}
	})
}

// tellCounts tells the figures of many policies beside the one of the last.
func tellCounts(b *testing.B, what, unit string, counts []int, figures []float64) {
	last := len(counts) - 1
	for i, n := range counts[:last] {
		measure.Figure{What: fmt.Sprintf("%s, %d policies", what, n), Unit: unit, Ours: figures[i], Beside: "1 policy:", Baseline: figures[last]}.Tell(b)
	}
}

// change takes the client's permission away, and returns the milliseconds
// until its connection is closed and those of CPU that this cost. Then it
// gives it back.
func (s *stage) change(b *testing.B, p side, n int) (took, used float64) {
	b.Helper()
	config := s.returning(tls.X25519)
	var conn net.Conn
	await(b, "the client is allowed", func() bool {
		c, err := tls.Dial("tcp", p.address, config)
		if err != nil {
			return false
		}
		conn = c
		return ping(c) == nil
	})
	defer conn.Close()
	denying, allowing := policies(n, "nobody"), policies(n, "web")
	before, began := p.cpu(b), time.Now()
	s.agent.publish(denying)
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		b.Fatal("the connection lives on")
	}
	took = float64(time.Since(began).Microseconds()) / 1e3
	used = float64((p.cpu(b) - before).Microseconds()) / 1e3
	s.agent.publish(allowing)
	return took, used
}

// handshakes returns the CPU of each in µs, and how many there were a second.
func handshakes(b *testing.B, s side, config *tls.Config, d time.Duration) (cost, rate float64) {
	b.Helper()
	before, began := s.cpu(b), time.Now()
	var n atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for time.Since(began) < d {
				conn, err := tls.Dial("tcp", s.address, config)
				if err != nil {
					b.Errorf("%s: %v", s.name, err)
					return
				}
				if err := ping(conn); err != nil {
					b.Errorf("%s: %v", s.name, err)
				}
				conn.Close()
				n.Add(1)
			}
		})
	}
	wg.Wait()
	done := float64(max(1, n.Load()))
	return float64(s.cpu(b)-before) / 1e3 / done, done / time.Since(began).Seconds()
}

func ping(c net.Conn) error {
	var b [1]byte
	if _, err := c.Write(b[:]); err != nil {
		return err
	}
	_, err := io.ReadFull(c, b[:])
	return err
}
