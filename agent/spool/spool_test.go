// This file holds the tests of the spool.

package spool

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openSpool(t *testing.T, cfg Config) *Spool {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func events(from, to int) [][]byte {
	var out [][]byte
	for i := from; i < to; i++ {
		out = append(out, fmt.Appendf(nil, `{"n":%d}`, i))
	}
	return out
}

func next(t *testing.T, s *Spool) Batch {
	t.Helper()
	b, err := s.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTheSameBatchComesUntilItIsDone(t *testing.T) {
	s := openSpool(t, Config{})
	s.Add("r", events(0, 3), 2)
	first, again := next(t, s), next(t, s)
	if len(first.Events) != 3 || first.Lost != 2 || len(again.Events) != 3 || again.Lost != 2 {
		t.Fatal(first, again)
	}
	s.Add("r", events(3, 5), 1)
	s.Done(first)
	rest := next(t, s)
	if len(rest.Events) != 2 || rest.Lost != 1 || string(rest.Events[0]) != `{"n":3}` {
		t.Fatal(rest)
	}
	s.Done(rest)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if b, err := s.Next(ctx); err == nil {
		t.Fatal(b)
	}
}

func TestBatchesAreBounded(t *testing.T) {
	s := openSpool(t, Config{})
	s.Add("r", events(0, 2*MaxBatch+1), 0)
	for _, want := range []int{MaxBatch, MaxBatch, 1} {
		b := next(t, s)
		if len(b.Events) != want {
			t.Fatalf("%d records, not %d", len(b.Events), want)
		}
		s.Done(b)
	}
	big := []byte(strings.Repeat("x", maxBatchBytes))
	s.Add("r", [][]byte{big, big}, 0)
	if b := next(t, s); len(b.Events) != 1 {
		t.Fatal(len(b.Events))
	}
}

func TestBeyondItsBoundTheOldestGoAndAreCounted(t *testing.T) {
	for _, dir := range []string{"", t.TempDir()} {
		s := openSpool(t, Config{Dir: dir, Bytes: 100 * (overhead + 7)})
		s.Add("r", events(0, 10), 0)
		s.Add("r", events(10, 110), 0)
		b := next(t, s)
		if waiting, dropped := s.Stats(); waiting > 100 || dropped == 0 || b.Lost != dropped || waiting+int(dropped) != 110 {
			t.Fatalf("%d waiting, %d dropped, %d lost", waiting, dropped, b.Lost)
		}
		if last := b.Events[len(b.Events)-1]; string(last) != `{"n":109}` {
			t.Fatalf("last is %s", last)
		}
	}
}

// loss words a loss as the tests read it.
func loss(reporter string, n uint64) []byte { return fmt.Appendf(nil, "%s lost %d", reporter, n) }

func TestAReporterThatFloodsPushesOutItsOwnRecordsAlone(t *testing.T) {
	for _, dir := range []string{"", t.TempDir()} {
		cfg := Config{Dir: dir, Bytes: 300 * (overhead + 7), Loss: loss}
		s := openSpool(t, cfg)
		s.Add("a", events(10, 60), 0)
		s.Add("b", events(10, 90), 1)
		for range 20 {
			s.Add("flood", events(10, 90), 0)
		}
		if dir != "" {
			s = openSpool(t, cfg) // whose records they are survives the process
			s.Add("flood", events(10, 90), 0)
		}
		b := next(t, s)
		n := strings.Count(fmt.Sprintf("%s", b.Events), `{"n":`)
		if waiting, dropped := s.Stats(); n != waiting || waiting < 250 || waiting > 300 || dropped == 0 {
			t.Fatalf("%d of %d waiting, %d dropped", n, waiting, dropped)
		}
		// The oldest come first, and the two had less than their shares.
		for i, e := range b.Events[:130] {
			want := 10 + i
			if i >= 50 {
				want -= 50
			}
			if string(e) != fmt.Sprintf(`{"n":%d}`, want) {
				t.Fatalf("record %d is %s", i, e)
			}
		}
		_, dropped := s.Stats()
		told := map[string]bool{}
		for _, e := range b.Events[n:] {
			told[string(e)] = true
		}
		if !told[fmt.Sprintf("flood lost %d", dropped)] || told["a lost 1"] || b.Lost != 0 || dir == "" && !told["b lost 1"] {
			t.Fatalf("%d dropped, told %v", dropped, told)
		}
		s.Done(b)
		if b, ok := s.take(); ok {
			t.Fatalf("left: %s", b.Events)
		}
		if len(s.shares) != 0 {
			t.Fatal("shares of nobody are kept")
		}
	}
}

func TestTheDiskHoldsNoMoreThanTheBoundAndASegmentForEachReporter(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, Config{Dir: dir, Bytes: 4 * segmentBytes})
	text := []byte(strings.Repeat("x", segmentBytes/8))
	for range 200 {
		s.Add("slow", [][]byte{[]byte("{}")}, 0) // keeps a record beside each of the flood's
		s.Add("flood", [][]byte{text}, 0)
	}
	var size int64
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		fi, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		size += fi.Size()
	}
	if size > 6*segmentBytes {
		t.Fatalf("%d bytes in %d files", size, len(names))
	}
}

func TestRecordsOfAnEarlierFormatAreRead(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "00000000000000000007.records"), []byte("7 {\"n\":7}\n9 {\"n\":9}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := openSpool(t, Config{Dir: dir})
	s.Add("r", events(10, 11), 0)
	if b := next(t, s); fmt.Sprintf("%s", b.Events) != `[{"n":7} {"n":9} {"n":10}]` {
		t.Fatalf("%s", b.Events)
	}
}

func TestARecordWaitsForCompanyButNotLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openSpool(t, Config{})
		began := time.Now()
		go func() {
			s.Add("r", events(0, 1), 0)
			time.Sleep(linger / 2)
			s.Add("r", events(1, 2), 0)
		}()
		b := next(t, s)
		if took := time.Since(began); len(b.Events) != 2 || took > linger {
			t.Fatalf("%d records after %v", len(b.Events), took)
		}
	})
}

func TestRecordsSurviveTheProcessAndDoneOnesDoNot(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, Config{Dir: dir})
	s.Add("r", events(0, 5), 0)
	// The process was killed.
	s = openSpool(t, Config{Dir: dir})
	s.Add("r", events(5, 8), 0)
	b := next(t, s)
	if len(b.Events) != 8 || string(b.Events[0]) != `{"n":0}` {
		t.Fatal(len(b.Events))
	}
	s.Done(b)
	s.Add("r", events(8, 9), 0)
	s = openSpool(t, Config{Dir: dir})
	if b := next(t, s); len(b.Events) != 1 || string(b.Events[0]) != `{"n":8}` {
		t.Fatalf("%d records, first %s", len(b.Events), b.Events[0])
	}
}

func TestDoneSegmentsLeaveTheDisk(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, Config{Dir: dir})
	text := []byte(strings.Repeat("x", segmentBytes/4))
	for range 5 {
		for range 5 {
			s.Add("r", [][]byte{text}, 0)
		}
		for n, _ := s.Stats(); n > 0; n, _ = s.Stats() {
			s.Done(next(t, s))
		}
	}
	var size int64
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		fi, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		size += fi.Size()
	}
	if size > 0 || len(names) > 1 {
		t.Fatalf("%d bytes in %v", size, names)
	}
}

func TestATornLineIsDropped(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, Config{Dir: dir})
	s.Add("r", events(0, 2), 0)
	names, _ := filepath.Glob(filepath.Join(dir, "*"))
	f, err := os.OpenFile(names[0], os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`2 {"n":`)
	f.Close()
	s = openSpool(t, Config{Dir: dir})
	s.Add("r", events(2, 3), 0)
	s = openSpool(t, Config{Dir: dir})
	if b := next(t, s); len(b.Events) != 3 || string(b.Events[2]) != `{"n":2}` {
		t.Fatalf("%q", b.Events)
	}
}

func FuzzSegment(f *testing.F) {
	f.Add([]byte("0 {}\n1 {}\n"))
	f.Add([]byte("5 {}\n4 {}\n"))
	f.Add([]byte("x\n"))
	f.Add([]byte("of spiffe:%2F%2Fexample.org%2Fweb\n0 {}\n"))
	f.Add([]byte("of %2\n0 {}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		last := int64(-1)
		for _, r := range parseSegment(text).records {
			if last >= 0 && int64(r.number) <= last && r.number < 1<<62 {
				t.Fatal("out of order")
			}
			last = int64(r.number)
		}
	})
}
