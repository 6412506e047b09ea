// This file holds the benchmarks of bytes: in bulk, and a few at a time.

package bench

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aval-id/aval/cmd/measure"
)

// chunk is what clients and the application move at once.
const chunk = 256 << 10

// dialled opens a connection to a side.
type dialled func(side) (net.Conn, error)

func (s *stage) secure() dialled {
	config := s.returning(tls.X25519)
	return func(to side) (net.Conn, error) { return tls.Dial("tcp", to.address, config) }
}

func plain(to side) (net.Conn, error) { return net.Dial("tcp", to.address) }

var directions = []struct {
	name string
	ask  byte
}{{"up", askSink}, {"down", askSource}}

// BenchmarkBulk is CPU of the serving process for each GB over four
// connections of mutual TLS, with the client sending and with the application
// sending.
func BenchmarkBulk(b *testing.B) {
	s := newStage(b, "app")
	sides := []side{s.start(b, "proxy", nil), s.start(b, "floor", nil)}
	secure := startPeers(b, s.job).secure
	for _, d := range directions {
		b.Run(d.name, func(b *testing.B) {
			compare(b, "a GB "+d.name+", mutual TLS", "s of CPU", map[string]float64{"floor": 1.05}, append(sides[:2:2], secure...),
				func(side side) float64 { return bulk(b, side, s.secure(), d.ask) })
		})
	}
}

// BenchmarkPlaintext is the same where policies let plaintext in. The floor
// is io.Copy, which splices from the first byte, and HAProxy may splice too.
func BenchmarkPlaintext(b *testing.B) {
	s := newStage(b, "app")
	s.agent.publish(nil)
	sides := []side{s.start(b, "proxy", nil), s.start(b, "plain floor", nil)}
	open := startPeers(b, s.job).plain
	for _, d := range directions {
		b.Run(d.name, func(b *testing.B) {
			compare(b, "a GB "+d.name+", plaintext", "s of CPU", map[string]float64{"nginx": 0.3}, append(sides[:2:2], open...),
				func(side side) float64 { return bulk(b, side, plain, d.ask) })
		})
	}
}

func bulk(b *testing.B, s side, dial dialled, ask byte) float64 {
	b.Helper()
	var conns []net.Conn
	for range 4 {
		conn, err := dial(s)
		if err != nil {
			b.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(roundTime))
		if _, err := conn.Write([]byte{ask}); err != nil {
			b.Fatal(err)
		}
		conns = append(conns, conn)
	}
	before := s.cpu(b)
	var total atomic.Int64
	var wg sync.WaitGroup
	for _, conn := range conns {
		wg.Go(func() {
			defer conn.Close()
			move := conn.Read
			if ask == askSink {
				move = conn.Write
			}
			buffer := make([]byte, chunk)
			for {
				n, err := move(buffer)
				total.Add(int64(n))
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return (s.cpu(b) - before).Seconds() / (float64(total.Load()) / 1e9)
}

// BenchmarkPing is 64 bytes there and back: CPU of the serving process on
// sixteen connections, and the time that one hop adds to a single connection
// to the application, which is what is left of the median after that of a
// connection without a hop.
func BenchmarkPing(b *testing.B) {
	s := newStage(b, "app")
	sides := []side{s.start(b, "proxy", nil), s.start(b, "floor", nil)}
	secure := startPeers(b, s.job).secure
	sides = append(sides, secure...)
	b.Run("cpu", func(b *testing.B) {
		compare(b, "64 bytes there and back, 16 connections", "µs of CPU", nil, sides, func(side side) float64 {
			before := side.cpu(b)
			trips := pings(b, side, s.secure(), 16)
			return float64(side.cpu(b)-before) / 1e3 / float64(max(1, len(trips)))
		})
	})
	b.Run("latency", func(b *testing.B) {
		for b.Loop() {
			turns := []func() float64{func() float64 {
				return measure.Median(pings(b, side{name: "application", address: s.job.App}, plain, 1))
			}}
			for _, side := range sides {
				turns = append(turns, func() float64 { return measure.Median(pings(b, side, s.secure(), 1)) })
			}
			medians := measure.Interleave(measure.Rounds, turns...)
			direct, hops := medians[0], medians[1:]
			for i := range hops {
				hops[i] -= direct
			}
			tell(b, "p50 that one hop adds to 64 bytes", "µs", nil, sides, hops)
		}
	})
}

// pings returns the µs of each trip in a round.
func pings(b *testing.B, s side, dial dialled, connections int) []float64 {
	b.Helper()
	var conns []net.Conn
	for range connections {
		conn, err := dial(s)
		if err != nil {
			b.Fatal(err)
		}
		conns = append(conns, conn)
	}
	trips := make([][]float64, connections)
	end := time.Now().Add(roundTime)
	var wg sync.WaitGroup
	for i, conn := range conns {
		wg.Go(func() {
			defer conn.Close()
			var buf [64]byte
			for began := time.Now(); began.Before(end); began = time.Now() {
				if _, err := conn.Write(buf[:]); err != nil {
					b.Errorf("%s: %v", s.name, err)
					return
				}
				if _, err := io.ReadFull(conn, buf[:]); err != nil {
					b.Errorf("%s: %v", s.name, err)
					return
				}
				trips[i] = append(trips[i], float64(time.Since(began).Nanoseconds())/1e3)
			}
		})
	}
	wg.Wait()
	var all []float64
	for _, t := range trips {
		all = append(all, t...)
	}
	return all
}
