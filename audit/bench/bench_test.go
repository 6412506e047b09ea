// Package bench measures the audit log against the disk it writes to.
//
// It owns numbers only. The baseline is one loop that appends a record of
// the same size to a file and calls fdatasync, in the same run on the same
// disk; rounds of the two alternate, and medians are reported.
package bench

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/cmd/measure"
)

const (
	// round is how long each side runs before the other has its turn.
	round  = 150 * time.Millisecond
	rounds = 9
)

var handshake = audit.Event{
	Kind: audit.KindConnection, Verdict: audit.VerdictAllowed, Reason: audit.ReasonAllowed,
	ClientID: "spiffe://example.org/ns/shop/sa/web", ServerID: "spiffe://example.org/ns/shop/sa/api",
	ClientSerial: "5f3c0a9be1d24c7f8a6b1e2d3c4f5a6b", ServerSerial: "0a1b2c3d4e5f60718293a4b5c6d7e8f9",
	Direction: audit.DirectionInbound, Transport: audit.TransportMTLS, TLSVersion: "1.3",
	Group: "X25519MLKEM768", Source: "10.0.0.7:51234", Destination: "127.0.0.1:8080", Port: 8080,
	Policy: "shop/web-to-api", Mode: "STRICT", ModeSource: "shop/default",
	Policies: []string{"shop/web-to-api", "shop/deny-all"}, Generation: 17, DurationMS: 12,
}

func BenchmarkRecord(b *testing.B) {
	for _, writers := range []int{1, 16, 128} {
		b.Run("writers="+strconv.Itoa(writers), func(b *testing.B) { record(b, writers) })
	}
}

func record(b *testing.B, writers int) {
	l := open(b)
	e := handshake
	e.Time = time.Now()
	size := len(audit.Entry{Event: e}.AppendJSON(nil)) + 50
	bare, err := os.Create(filepath.Join(b.TempDir(), "bare"))
	if err != nil {
		b.Fatal(err)
	}
	defer bare.Close()
	for b.Loop() {
		var cpu, floor []float64
		rates := measure.Interleave(rounds,
			func() float64 {
				before := measure.OwnCPU(b)
				n, took := recordLoop(b, l, e, writers)
				cpu = append(cpu, float64((measure.OwnCPU(b)-before).Microseconds())/n)
				return n / took.Seconds()
			},
			func() float64 {
				before := measure.OwnCPU(b)
				rate := appendLoop(b, bare, size)
				floor = append(floor, float64((measure.OwnCPU(b)-before).Microseconds())/(rate*round.Seconds()))
				return rate
			})
		what := fmt.Sprintf("durable events, %d writers", writers)
		measure.Figure{What: what, Unit: "per second", Ours: rates[0], Beside: "bare syncs", Baseline: rates[1]}.Tell(b)
		measure.Figure{What: what, Unit: "µs of CPU", Ours: measure.Median(cpu), Beside: "bare syncs", Baseline: measure.Median(floor)}.Tell(b)
	}
}

// appendLoop is the baseline: records a second.
func appendLoop(b *testing.B, f *os.File, size int) float64 {
	data := make([]byte, size)
	begin, n := time.Now(), 0
	for ; time.Since(begin) < round; n++ {
		if _, err := f.Write(data); err != nil {
			b.Fatal(err)
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
	}
	return float64(n) / time.Since(begin).Seconds()
}

// recordLoop records from so many goroutines for a round.
func recordLoop(b *testing.B, l *audit.Log, e audit.Event, writers int) (n float64, took time.Duration) {
	var total atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for range writers {
		wg.Go(func() {
			for time.Since(begin) < round {
				if _, err := l.Record(context.Background(), e); err != nil {
					b.Error(err)
					return
				}
				total.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(total.Load()), time.Since(begin)
}

// BenchmarkEncode is the CPU of one event's JSON.
func BenchmarkEncode(b *testing.B) {
	e := audit.Entry{Event: handshake}
	e.Time = time.Now()
	var buf []byte
	const many = 100_000
	for b.Loop() {
		before := measure.OwnCPU(b)
		for range many {
			buf = e.AppendJSON(buf[:0])
		}
		measure.Figure{What: "an event's JSON", Unit: "µs of CPU", Ours: float64((measure.OwnCPU(b) - before).Nanoseconds()) / 1e3 / many}.Tell(b)
	}
}

// BenchmarkVerify is the rate of a whole verification.
func BenchmarkVerify(b *testing.B) {
	l := open(b)
	e := handshake
	e.Time = time.Now()
	const entries = 100_000
	unit := slices.Repeat([]audit.Event{e}, 1000)
	for range entries / len(unit) {
		if _, err := l.RecordAll(context.Background(), unit); err != nil {
			b.Fatal(err)
		}
	}
	if err := l.CheckpointNow(context.Background()); err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	if err := os.CopyFS(dir, os.DirFS(logDir(b))); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		began := time.Now()
		if r, err := audit.Verify(dir, l.VerifierKey(), audit.VerifyOptions{}); err != nil || !r.Verified {
			b.Fatal(err, r)
		}
		measure.Figure{What: "entries verified", Unit: "per second", Ours: entries / time.Since(began).Seconds()}.Tell(b)
	}
}

var dirs sync.Map // of testing.TB to the log's directory

func logDir(b *testing.B) string {
	dir, ok := dirs.Load(b)
	if !ok {
		b.Fatal("no log is open")
	}
	return dir.(string)
}

// open opens a log with its checkpoint loop running, as a server has it.
func open(b *testing.B) *audit.Log {
	dir := b.TempDir()
	dirs.Store(b, dir)
	l, err := audit.Open(audit.Config{
		Dir: dir, Origin: "example.org/authority/bench",
		Key:    ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)),
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Run(ctx); err != nil {
			b.Error(err)
		}
	})
	b.Cleanup(func() {
		cancel()
		wg.Wait()
		l.Close()
	})
	return l
}
