// This file holds the tests of the record queue.

package proxy

import (
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/wire"
)

func testReporter(limit int) *reporter {
	return newReporter(limit, DefaultRecordsEvery, nil, newMetrics(&Proxy{}))
}

func TestRecordsAreDroppedOldestFirstAndCounted(t *testing.T) {
	r := testReporter(100)
	now := time.Now()
	for i := range 250 {
		r.add(&audit.Event{Time: now, Kind: audit.KindConnection, Verdict: audit.VerdictAllowed, Generation: uint64(i)}, netip.Addr{})
	}
	events, lost := r.batch(now, true)
	if len(events) != 100 || lost != 150 || events[0].Generation != 150 || events[99].Generation != 249 {
		t.Fatalf("%d records from %d on, %d lost", len(events), events[0].Generation, lost)
	}
	// A batch that nobody took comes back in front, and no record twice.
	r.add(&audit.Event{Time: now, Verdict: audit.VerdictAllowed, Generation: 250}, netip.Addr{})
	r.putBack(events, lost)
	events, lost = r.batch(now, true)
	if len(events) != 100 || lost != 151 || events[0].Generation != 151 || events[99].Generation != 250 {
		t.Errorf("%d records from %d to %d, %d lost", len(events), events[0].Generation, events[len(events)-1].Generation, lost)
	}
}

// taker acknowledges every batch and remembers how large they were.
type taker struct {
	grpc.BidiStreamingClient[wire.RecordBatch, wire.RecordsAck]
	bytes   []int
	records int
	last    uint64
}

func (s *taker) Send(b *wire.RecordBatch) error {
	s.bytes, s.records, s.last = append(s.bytes, proto.Size(b)), s.records+len(b.GetEvents()), b.GetSequence()
	return nil
}

func (s *taker) Recv() (*wire.RecordsAck, error) { return &wire.RecordsAck{Sequence: s.last}, nil }

func TestLargeRecordsTravelInBatchesThatTheAgentTakes(t *testing.T) {
	r := testReporter(10_000)
	names := make([]string, maxConsulted)
	for i := range names {
		names[i] = strings.Repeat("n", 60)
	}
	for i := range 1000 {
		r.add(&audit.Event{Time: time.Now(), Kind: audit.KindConnection, Verdict: audit.VerdictAllowed, Policies: names,
			Generation: uint64(i)}, netip.Addr{})
	}
	var s taker
	for seq := uint64(1); r.pending(); seq++ {
		if n, err := r.exchange(&s, seq, true); n == 0 || err != nil {
			t.Fatal(n, err)
		}
	}
	for _, n := range s.bytes {
		if n > 2*batchBytes {
			t.Errorf("a batch of %d bytes", n)
		}
	}
	if s.records != 1000 || r.lost != 0 {
		t.Errorf("%d records, %d lost", s.records, r.lost)
	}
}

func TestAlikeRefusalsAreCountedInOneRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := testReporter(10_000)
		refuse := func(source string, n int) {
			for range n {
				r.add(&audit.Event{Time: time.Now(), Kind: audit.KindConnection, Verdict: audit.VerdictDenied,
					Reason: audit.ReasonUnknownAuthority, Source: source + ":999"}, netip.MustParseAddr(source))
			}
		}
		refuse("192.0.2.1", 500)
		refuse("192.0.2.2", 3)
		events, _ := r.batch(time.Now(), false)
		if len(events) != refusalsPerSecond+3 {
			t.Errorf("%d records in the running second", len(events))
		}
		time.Sleep(time.Second)
		events, lost := r.batch(time.Now(), false)
		if len(events) != 1 || lost != 0 {
			t.Fatalf("%d records after it, %d lost", len(events), lost)
		}
		if e := events[0]; e.Count != 500-refusalsPerSecond || e.Source != "192.0.2.1" || e.FirstTime.IsZero() {
			t.Errorf("record: %+v", e)
		}
		if r.pending() {
			t.Error("something is still pending")
		}
	})
}

func TestManySourcesDoNotGrowTheTally(t *testing.T) {
	r := testReporter(1_000_000)
	now := time.Now()
	const sources = 20_000
	for i := range sources {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		r.add(&audit.Event{Time: now, Verdict: audit.VerdictDenied, Reason: audit.ReasonLimit, Source: a.String()}, a)
	}
	if n := len(r.tallies); n > tallyKeys+len(audit.Reasons()) {
		t.Errorf("%d tallies", n)
	}
	total := uint64(0)
	for {
		events, _ := r.batch(now, true)
		if len(events) == 0 {
			break
		}
		for _, e := range events {
			total += max(1, e.Count)
		}
	}
	if total != sources {
		t.Errorf("%d of %d refusals are in records", total, sources)
	}
}

func TestSlowAgentHoldsUpNoConnection(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	s.agent.change(func() { s.agent.mute = true })
	p, in := s.inbound(t, echo(t), func(c *Config) { c.Limits.MaxRecords = 10 })
	for range 100 {
		if _, err := callTo(in, nil); err != nil {
			t.Fatal(err)
		}
	}
	s.agent.change(func() { s.agent.mute = false })
	s.agent.stop()
	s.agent.start()
	eventually(t, "what was kept and what was lost add up", func() bool {
		s.agent.mu.Lock()
		defer s.agent.mu.Unlock()
		return int(s.agent.lost)+len(s.agent.events) >= 100
	})
	eventually(t, "all finish", func() bool { return p.Status().Open == 0 })
}
