// This file holds the tests of segments' summaries and of the search.

package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"testing"
	"time"
)

// searchable is a closed log of several segments whose summaries are made:
// each hour of it has 40 certificates, of four nodes.
func searchable(t *testing.T) (dir string, firsts []int64) {
	t.Helper()
	cfg := testConfig(memoryDir(t))
	cfg.SegmentBytes = 8 << 10
	l := mustOpen(t, cfg)
	for i := range 400 {
		e := testEvent(i)
		e.Time = testTime.Add(time.Duration(i/40) * time.Hour)
		e.SPIFFEID = fmt.Sprintf("spiffe://example.org/w/%d", i/8)
		e.Node = fmt.Sprintf("spiffe://example.org/aval/node/n\"%d", i/100) // a quote is escaped in JSON
		mustRecord(t, l, e)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	firsts, err := listSegments(cfg.Dir)
	if err != nil || len(firsts) < 10 {
		t.Fatal(firsts, err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		if _, err := os.Stat(summaryPath(cfg.Dir, firsts[len(firsts)-2])); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no summary of the last whole segment")
		}
		<-time.After(5 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return cfg.Dir, firsts
}

func search(t *testing.T, dir string, f Filter) (found []int64) {
	t.Helper()
	for e, err := range SearchDir(dir, f) {
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, e.Index)
	}
	return found
}

var searches = []Filter{
	{},
	{Serial: testEvent(17).Serial},
	{Serial: testEvent(399).Serial},
	{Serial: "none"},
	{SPIFFEID: "spiffe://example.org/w/3"},
	{Node: `spiffe://example.org/aval/node/n"2`},
	{Node: `spiffe://example.org/aval/node/n"2`, SPIFFEID: "spiffe://example.org/w/3"},
	{Since: testTime.Add(3 * time.Hour), Until: testTime.Add(5 * time.Hour)},
	{Until: testTime},
	{Since: testTime.Add(100 * time.Hour)},
	{Kinds: []Kind{KindConnection}},
}

func TestSearchFindsWhatReadingWouldFind(t *testing.T) {
	dir, firsts := searchable(t)
	check := func(what string) {
		t.Helper()
		for i, f := range searches {
			var want []int64
			for e, err := range EntriesIn(dir, 0) {
				if err != nil {
					t.Fatal(err)
				}
				if f.Match(e.Event) {
					want = append(want, e.Index)
				}
			}
			if got := search(t, dir, f); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: search %d found %v, not %v", what, i, got, want)
			}
		}
	}
	check("with summaries")
	for i, first := range firsts[:len(firsts)-1] { // each kind of damage: a search then reads the segment
		text, err := os.ReadFile(summaryPath(dir, first))
		if err != nil {
			t.Fatal(err)
		}
		switch i % 4 {
		case 0:
			text = bytes.Repeat([]byte{0}, len(text))
		case 1:
			text = text[:summaryBlock]
		case 2:
			clear(text[summaryBlock : summaryBlock+32])
		case 3:
			if text, err = os.ReadFile(summaryPath(dir, firsts[0])); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(summaryPath(dir, first), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check("with damaged summaries")
	for _, first := range firsts {
		if err := dropSummary(dir, first); err != nil {
			t.Fatal(err)
		}
	}
	check("without summaries")
}

func TestSearchReadsOnlySegmentsThatMayMatch(t *testing.T) {
	dir, firsts := searchable(t)
	at := 0
	for firsts[at+1] <= 200 {
		at++
	}
	// No other whole segment can be read any more.
	for i, first := range firsts[:len(firsts)-1] {
		if i != at {
			if err := os.WriteFile(segmentPath(dir, first), []byte("gone"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := search(t, dir, Filter{Serial: testEvent(200).Serial}); len(got) != 1 || got[0] != 200 {
		t.Fatalf("found %v", got)
	}
}

func TestSummaryThatIsMissingIsMadeAtTheNextStart(t *testing.T) {
	dir, firsts := searchable(t)
	want, err := os.ReadFile(summaryPath(dir, firsts[3]))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(summaryPath(dir, firsts[3]), want[:10], 0o600); err != nil { // as a crash without WriteFile might leave it
		t.Fatal(err)
	}
	cfg := testConfig(dir)
	cfg.SegmentBytes = 8 << 10
	l := mustOpen(t, cfg)
	if err := l.summariseOnce(firsts[3], firsts[4]); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(summaryPath(dir, firsts[3])); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("it was not made anew: %v", err)
	}
}

func FuzzSummary(f *testing.F) {
	h := summaryHead{first: 3, end: 9, earliest: testTime, latest: testTime.Add(time.Hour), blocks: 2}
	f.Add(fillSummary(h, map[summaryKey]struct{}{sha256.Sum256([]byte("x")): {}}), []byte(`"a\"b"`))
	f.Add([]byte(summaryMagic), []byte(`"`))
	f.Fuzz(func(t *testing.T, b, payload []byte) {
		b = b[:min(len(b), summaryBlock)]
		if h, err := parseSummaryHead(b); err == nil && !bytes.Equal(h.bytes(), b) {
			t.Fatalf("%x was read from %x", h.bytes(), b)
		}
		if err := keysOf(payload, func([]byte) {}); err != nil {
			return
		}
	})
}

func TestSearchOfAnOpenLogEndsAtWhatIsDurable(t *testing.T) {
	dir, firsts := searchable(t)
	l := mustOpen(t, testConfig(dir))
	for i, f := range searches {
		for _, from := range []int64{0, firsts[2] + 1, 399, 400} {
			var want, got []int64
			for _, index := range search(t, dir, f) {
				if index >= from {
					want = append(want, index)
				}
			}
			next, err := l.Search(t.Context(), from, f, func(e Entry) error {
				got = append(got, e.Index)
				return nil
			})
			if err != nil || next != 400 || fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("search %d from %d found %v up to %d, not %v (%v)", i, from, got, next, want, err)
			}
		}
	}
}
