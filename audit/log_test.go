// This file holds what the tests share, and the tests of recording,
// reading and reopening.

package audit

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDirEnv); dir != "" {
		crashChild(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

const testOrigin = "example.org/authority/one"

var testTime = time.Date(2026, 5, 4, 3, 2, 1, 500, time.UTC)

// memoryDir is a directory in memory where there is one: most tests are not
// about the disk, and syncs to a busy one take seconds.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "audit-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func testKey(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed([]byte(strings.Repeat(string(rune('A'+seed)), ed25519.SeedSize)))
}

func testConfig(dir string) Config {
	return Config{Dir: dir, Origin: testOrigin, Key: testKey(0), Reserve: -1, Logger: slog.New(slog.DiscardHandler)}
}

func testEvent(i int) Event {
	return Event{Time: testTime, Kind: KindIssuance, Verdict: VerdictDone, Serial: fmt.Sprintf("%032x", i), SPIFFEID: "spiffe://example.org/ns/shop/sa/web"}
}

func mustOpen(t testing.TB, cfg Config) *Log {
	t.Helper()
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func mustRecord(t testing.TB, l *Log, e Event) Receipt {
	t.Helper()
	r, err := l.Record(context.Background(), e)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// fill records n events in units of up to 100.
func fill(t testing.TB, l *Log, n int) {
	t.Helper()
	for i := 0; i < n; {
		var unit []Event
		for ; i < n && len(unit) < 100; i++ {
			unit = append(unit, testEvent(i))
		}
		if _, err := l.RecordAll(context.Background(), unit); err != nil {
			t.Fatal(err)
		}
	}
}

func checkpointNow(t testing.TB, l *Log) {
	t.Helper()
	if err := l.CheckpointNow(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func mustVerify(t testing.TB, l *Log, opts VerifyOptions) Report {
	t.Helper()
	r, err := Verify(l.cfg.Dir, l.VerifierKey(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func lastSegment(t testing.TB, dir string) string {
	t.Helper()
	firsts, err := listSegments(dir)
	if err != nil || len(firsts) == 0 {
		t.Fatalf("segments: %v, %v", firsts, err)
	}
	return segmentPath(dir, firsts[len(firsts)-1])
}

func editFile(t testing.TB, path string, edit func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, edit(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestRecordedEventsReadBackInOrder(t *testing.T) {
	cfg := testConfig(memoryDir(t))
	cfg.SegmentBytes = 64 << 10
	l := mustOpen(t, cfg)
	const n = 3000
	fill(t, l, n)
	for _, from := range []int64{0, 1, 511, 512, 513, 2999, 3000} {
		want := from
		for e, err := range l.Entries(from) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Index != want || e.Serial != fmt.Sprintf("%032x", want) || !e.Time.Equal(testTime) {
				t.Fatalf("from %d: entry %d is %+v", from, want, e)
			}
			want++
		}
		if want != n {
			t.Fatalf("from %d: ended at %d", from, want)
		}
	}
	if s := l.Stats(); s.Entries != n || s.First != 0 || s.Bytes < n*100 {
		t.Fatalf("stats %+v", s)
	}
	count := 0
	for _, err := range EntriesIn(cfg.Dir, 2500) {
		if err != nil {
			t.Fatal(err)
		}
		count++
	}
	if count != 500 {
		t.Fatalf("the directory gave %d entries", count)
	}
}

func TestConcurrentRecordsGetDistinctIndexes(t *testing.T) {
	l := mustOpen(t, testConfig(memoryDir(t)))
	const writers, each = 32, 40
	var mu sync.Mutex
	seen := map[int64]string{}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				e := testEvent(w*each + i)
				r, err := l.Record(context.Background(), e)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if _, twice := seen[r.Index]; twice {
					t.Errorf("index %d given twice", r.Index)
				}
				seen[r.Index] = e.Serial
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for e, err := range l.Entries(0) {
		if err != nil || seen[e.Index] != e.Serial {
			t.Fatalf("entry %d: %v, serial %s, receipt was for %s", e.Index, err, e.Serial, seen[e.Index])
		}
	}
	if l.Size() != writers*each {
		t.Fatalf("size %d", l.Size())
	}
}

func TestInvalidEventIsNotStored(t *testing.T) {
	l := mustOpen(t, testConfig(memoryDir(t)))
	for name, e := range map[string]Event{
		"kind":      {Time: testTime, Kind: "party"},
		"no kind":   {Time: testTime},
		"time":      {Kind: KindIssuance},
		"reason":    {Time: testTime, Kind: KindConnection, Reason: "because"},
		"no reason": {Time: testTime, Kind: KindConnection},
		"verdict":   {Time: testTime, Kind: KindIssuance, Verdict: "maybe"},
		"mode":      {Time: testTime, Kind: KindConnection, Reason: ReasonAllowed, Mode: "lax"},
		"transport": {Time: testTime, Kind: KindConnection, Reason: ReasonAllowed, Transport: "pigeon"},
		"direction": {Time: testTime, Kind: KindConnection, Reason: ReasonAllowed, Direction: "up"},
		"role":      {Time: testTime, Kind: KindIssuance, Role: "king"},
		"size":      {Time: testTime, Kind: KindIssuance, Detail: strings.Repeat("x", MaxEventBytes)},
	} {
		if _, err := l.RecordAll(context.Background(), []Event{testEvent(0), e}); err == nil {
			t.Errorf("%s: recorded", name)
		}
	}
	if l.Size() != 0 {
		t.Fatalf("%d entries were stored", l.Size())
	}
}

func TestClosedLogRecordsNothing(t *testing.T) {
	l := mustOpen(t, testConfig(memoryDir(t)))
	mustRecord(t, l, testEvent(0))
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Record(context.Background(), testEvent(1)); !errors.Is(err, ErrClosed) {
		t.Fatalf("record after close: %v", err)
	}
	if err := l.Wait(context.Background(), 1); !errors.Is(err, ErrClosed) {
		t.Fatalf("wait after close: %v", err)
	}
}

func TestWaitReturnsWithTheEntry(t *testing.T) {
	l := mustOpen(t, testConfig(memoryDir(t)))
	done := make(chan error, 1)
	go func() { done <- l.Wait(t.Context(), 0) }()
	mustRecord(t, l, testEvent(0))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Wait(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Fatalf("wait: %v", err)
	}
}

// slowFile holds every sync until it is let go.
type slowFile struct {
	segmentFile
	begun chan struct{}
	let   chan struct{}
}

func (f slowFile) Datasync() error {
	f.begun <- struct{}{}
	<-f.let
	return f.segmentFile.Datasync()
}

func TestWaitingRecordIsWithdrawnWithItsContext(t *testing.T) {
	cfg := testConfig(memoryDir(t))
	begun, let := make(chan struct{}), make(chan struct{})
	mustOpen(t, cfg).Close()
	l := mustOpen(t, cfg)
	mustRecord(t, l, testEvent(0))
	l.writer.f = slowFile{l.writer.f, begun, let}
	leader := make(chan error, 1)
	go func() { _, err := l.Record(context.Background(), testEvent(1)); leader <- err }()
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	follower := make(chan error, 1)
	go func() { _, err := l.Record(ctx, testEvent(2)); follower <- err }()
	for queued := 0; queued == 0; {
		l.mu.Lock()
		queued = len(l.queue)
		l.mu.Unlock()
	}
	cancel()
	if err := <-follower; !errors.Is(err, context.Canceled) {
		t.Fatalf("follower: %v", err)
	}
	let <- struct{}{}
	if err := <-leader; err != nil {
		t.Fatal(err)
	}
	if l.Size() != 2 {
		t.Fatalf("size %d: the withdrawn event was stored", l.Size())
	}
}

func TestExportFiltersAndWritesOneObjectALine(t *testing.T) {
	l := mustOpen(t, testConfig(memoryDir(t)))
	fill(t, l, 4)
	mustRecord(t, l, Event{Time: testTime.Add(time.Hour), Kind: KindBackup, Detail: "a\nb <c>"})
	var out strings.Builder
	n, err := ExportJSONL(&out, l.Entries(0), Filter{Since: testTime.Add(time.Minute), Kinds: []Kind{KindBackup, KindLoss}})
	want := `{"index":4,"time":"2026-05-04T04:02:01.0000005Z","kind":"backup","detail":"a\nb \u003cc\u003e"}` + "\n"
	if err != nil || n != 1 || out.String() != want {
		t.Fatalf("%d, %v, %q", n, err, out.String())
	}
	if n, err := ExportJSONL(io.Discard, l.Entries(0), Filter{}); n != 5 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	for i, f := range []Filter{{Until: testTime}, {Verdicts: []Verdict{VerdictDenied}}, {SPIFFEID: "spiffe://example.org/x"}} {
		if n, _ := ExportJSONL(io.Discard, l.Entries(0), f); n != 0 {
			t.Errorf("filter %d let %d through", i, n)
		}
	}
}
