// This file holds the search: the entries that pass a filter, found without
// reading the segments that can't have them.

package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"time"
)

// SearchDir is ReadDir of the entries that pass the filter. Segments whose
// summaries say that they hold none are not read. It writes nothing: the
// directory may be a copy, or another user's.
func SearchDir(dir string, f Filter) iter.Seq2[Entry, error] {
	return entries(func(fn func(Entry) error) error {
		if err := searchDir(dir, f, fn); err != nil {
			return fmt.Errorf("search log %s: %w", dir, err)
		}
		return nil
	})
}

// searchDir does the work of SearchDir.
func searchDir(dir string, f Filter, fn func(Entry) error) error {
	firsts, err := listSegments(dir)
	if err != nil {
		return err
	}
	if len(firsts) == 0 {
		return readDir(dir, 0, fn) // which tells an empty log from none
	}
	matching := func(e Entry) error {
		if !f.Match(e.Event) {
			return nil
		}
		return fn(e)
	}
	for i, first := range firsts {
		if i+1 == len(firsts) {
			return readDir(dir, first, matching)
		}
		end := firsts[i+1]
		if !mayMatch(dir, first, end, f) {
			continue
		}
		at := position{segment: first, offset: segmentHead, index: first}
		next, err := scanSegment(dir, at, first, end, func(index int64, fr frame) error {
			if !mayPass(fr.payload, f) {
				return nil
			}
			e, err := decodeEntry(index, fr.payload)
			if err != nil {
				return err
			}
			return matching(e)
		})
		switch {
		case errors.Is(err, ErrDropped): // the quota dropped it under our feet
		case err != nil:
			return err
		case next != end:
			return fmt.Errorf("entry %d is missing in its segment", next)
		}
	}
	return nil
}

// summaries makes the summaries that are missing, of each segment once it has
// got its last entry, until the context ends or the log can't be written. One
// that can't be made is missing: a search then reads its segment.
func (l *Log) summaries(ctx context.Context) {
	for done := int64(-1); ; {
		l.mu.Lock()
		size := l.durable
		var firsts []int64
		for _, s := range l.segments {
			if s.first >= done {
				firsts = append(firsts, s.first)
			}
		}
		l.mu.Unlock()
		for i := range max(0, len(firsts)-1) {
			if ctx.Err() != nil {
				return
			}
			if err := l.summariseOnce(firsts[i], firsts[i+1]); err != nil && !errors.Is(err, ErrDropped) {
				l.cfg.Logger.Warn("audit log's segment has no summary; searches read it whole", "dir", l.cfg.Dir, "first", firsts[i], "error", err)
			}
			done = firsts[i+1]
		}
		if l.Wait(ctx, size) != nil {
			return
		}
		select { // segments end seldom, entries come all the time
		case <-ctx.Done():
		case <-time.After(l.cfg.CheckpointEvery):
		}
	}
}

// summariseOnce makes a segment's summary unless a sound one is there.
func (l *Log) summariseOnce(first, end int64) error {
	path := summaryPath(l.cfg.Dir, first)
	if text, err := os.ReadFile(path); err == nil && len(text) >= summaryBlock {
		h, err := parseSummaryHead(text[:summaryBlock])
		if err == nil && h.first == first && h.end == end && len(text) == summaryBlock*(1+int(h.blocks)) {
			return nil
		}
	}
	text, err := summarise(l.cfg.Dir, first, end)
	if err != nil {
		return err
	}
	if err := WriteFile(path, text, 0o600); err != nil {
		return err
	}
	if _, err := os.Stat(segmentPath(l.cfg.Dir, first)); errors.Is(err, fs.ErrNotExist) {
		return dropSummary(l.cfg.Dir, first) // the quota was faster
	}
	return nil
}

// dropSummary removes the summary of a segment that is dropped.
func dropSummary(dir string, first int64) error {
	if err := os.Remove(summaryPath(dir, first)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("drop a summary: %w", err)
	}
	return nil
}

// Search calls fn with each entry from index from on that passes the filter,
// up to what is durable at the time of the call, in order. It returns the
// index behind the last entry that was looked at, and ends early with fn's
// error or the context's cause.
func (l *Log) Search(ctx context.Context, from int64, f Filter, fn func(Entry) error) (next int64, err error) {
	l.mu.Lock()
	end := l.durable
	var bounds []int64 // where segments begin, and the end of the last
	for _, s := range l.segments {
		bounds = append(bounds, s.first)
	}
	bounds = append(bounds, end)
	l.mu.Unlock()
	next = max(from, bounds[0])
	for i := range len(bounds) - 1 {
		if bounds[i+1] <= next || i+2 < len(bounds) && !mayMatch(l.cfg.Dir, bounds[i], bounds[i+1], f) {
			next = max(next, bounds[i+1])
			continue
		}
		err := l.scan(next, bounds[i+1], func(index int64, fr frame) error {
			if mayPass(fr.payload, f) {
				e, err := decodeEntry(index, fr.payload)
				if err == nil && f.Match(e.Event) {
					err = fn(e)
				}
				if err != nil {
					return err
				}
			}
			next = index + 1
			return context.Cause(ctx)
		})
		if err != nil {
			return next, fmt.Errorf("search log: %w", err)
		}
	}
	return next, nil
}

// mayPass reports whether an entry may pass the filter, at a fraction of the
// cost of parsing it.
func mayPass(payload []byte, f Filter) bool {
	for _, value := range []string{f.SPIFFEID, f.Serial, f.Node} {
		found := value == ""
		if !found && keysOf(payload, func(v []byte) { found = found || string(v) == value }) != nil {
			return true
		}
		if !found {
			return false
		}
	}
	return true
}
