// This file holds the measurement of a search.

package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/cmd/measure"
)

// BenchmarkSearch is the time to find one certificate by its serial, beside
// that of reading the whole log for it.
func BenchmarkSearch(b *testing.B) {
	l := open(b)
	const entries, unit = 200_000, 1000
	issued := time.Now()
	for at := 0; at < entries; at += unit {
		events := make([]audit.Event, unit)
		for i := range events {
			events[i] = audit.Event{
				Time: issued.Add(time.Duration(at+i) * 10 * time.Millisecond), Kind: audit.KindIssuance, Verdict: audit.VerdictAllowed,
				SPIFFEID: fmt.Sprintf("spiffe://example.org/ns/shop/sa/w%d", i), Serial: fmt.Sprintf("%032x", at+i),
				Node: fmt.Sprintf("spiffe://example.org/aval/node/n%d", i%100), Registration: "shop/web", Role: audit.RoleWorkload,
			}
		}
		if _, err := l.RecordAll(context.Background(), events); err != nil {
			b.Fatal(err)
		}
	}
	wanted := audit.Filter{Serial: fmt.Sprintf("%032x", entries/2)}
	waitForSummaries(b)
	for b.Loop() {
		took := measure.Interleave(3,
			func() float64 {
				return find(b, func() (int, error) { return count(audit.SearchDir(logDir(b), wanted), audit.Filter{}) })
			},
			func() float64 {
				return find(b, func() (int, error) { return count(audit.EntriesIn(logDir(b), 0), wanted) })
			})
		measure.Figure{What: fmt.Sprintf("one certificate found among %d entries", entries), Unit: "ms",
			Ours: took[0], Beside: "reading all", Baseline: took[1], Most: 0.5}.Tell(b)
	}
}

// count counts the entries that pass a filter.
func count(all func(func(audit.Entry, error) bool), f audit.Filter) (n int, err error) {
	for e, err := range all {
		if err != nil {
			return n, err
		}
		if f.Match(e.Event) {
			n++
		}
	}
	return n, nil
}

// find measures one search, which must find one entry.
func find(b *testing.B, search func() (int, error)) float64 {
	began := time.Now()
	if n, err := search(); err != nil || n != 1 {
		b.Fatal(n, err)
	}
	return float64(time.Since(began).Microseconds()) / 1e3
}

// waitForSummaries waits until each segment but the last has its summary.
func waitForSummaries(b *testing.B) {
	deadline := time.Now().Add(time.Minute)
	for {
		ledger := filepath.Join(logDir(b), "ledger")
		segments, _ := filepath.Glob(filepath.Join(ledger, "*.log"))
		summaries, _ := filepath.Glob(filepath.Join(ledger, "*.sum"))
		if len(segments) > 2 && len(summaries) >= len(segments)-1 {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("%d summaries of %d segments", len(summaries), len(segments))
		}
		<-time.After(20 * time.Millisecond)
	}
}
