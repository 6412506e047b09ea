// This file holds reading: entries by index, from an open log and from a
// directory.

package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
)

// ErrDropped is wrapped by the error of a read below the oldest entry that
// the quota left.
var ErrDropped = errors.New("the entries were dropped")

// Read calls fn with each entry from index from up to what is durable at
// the time of the call, in order, and ends early with fn's error. Where the
// quota has dropped entry from, Read begins with the oldest that is kept.
func (l *Log) Read(from int64, fn func(Entry) error) error {
	s := l.Stats()
	err := l.scan(max(from, s.First), s.Entries, func(index int64, f frame) error {
		e, err := decodeEntry(index, f.payload)
		if err != nil {
			return err
		}
		return fn(e)
	})
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	return nil
}

// Entries is Read as an iterator. An error ends it.
func (l *Log) Entries(from int64) iter.Seq2[Entry, error] {
	return entries(func(fn func(Entry) error) error { return l.Read(from, fn) })
}

// scan calls fn with each frame in [from, to), which must be durable.
func (l *Log) scan(from, to int64, fn func(index int64, f frame) error) error {
	for from < to {
		at, ok := l.seek(from)
		if !ok {
			return fmt.Errorf("entry %d: %w", from, ErrDropped)
		}
		next, err := scanSegment(l.cfg.Dir, at, from, to, fn)
		if err != nil {
			return err
		}
		if next == from {
			return fmt.Errorf("entry %d is missing in its segment", from)
		}
		from = next
	}
	return nil
}

// seek returns the nearest known position at or before an entry.
func (l *Log) seek(index int64) (position, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := len(l.segments) - 1; i >= 0; i-- {
		seg := &l.segments[i]
		if seg.first > index {
			continue
		}
		at := position{segment: seg.first, offset: segmentHead, index: seg.first}
		n, found := slices.BinarySearchFunc(seg.marks, index, func(m position, index int64) int {
			return int(min(max(m.index-index, -1), 1))
		})
		if found {
			n++
		}
		if n > 0 {
			at = seg.marks[n-1]
		}
		return at, true
	}
	return position{}, false
}

// scanSegment is scan inside one segment, from a position at or before
// entry from. It returns the entry to go on with.
func scanSegment(dir string, at position, from, to int64, fn func(index int64, f frame) error) (next int64, err error) {
	r, err := openAt(dir, at)
	if errors.Is(err, fs.ErrNotExist) {
		return from, fmt.Errorf("entry %d: %w", from, ErrDropped)
	}
	if err != nil {
		return from, err
	}
	defer r.close()
	for r.at.index < to {
		index := r.at.index
		f, err := r.skim()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return max(from, index), fmt.Errorf("entry %d: %w", index, err)
		}
		if index < from {
			continue
		}
		if err := fn(index, f); err != nil {
			return index, err
		}
	}
	return max(from, r.at.index), nil
}

// ReadDir reads a log that is not open here: a copy, or one that another
// process writes. It proves nothing, see Verify. It calls fn with each
// whole entry from index from on, or from the oldest that is kept.
func ReadDir(dir string, from int64, fn func(Entry) error) error {
	if err := readDir(dir, from, fn); err != nil {
		return fmt.Errorf("read log %s: %w", dir, err)
	}
	return nil
}

// readDir does the work of ReadDir.
func readDir(dir string, from int64, fn func(Entry) error) error {
	firsts, err := listSegments(dir)
	if err != nil {
		return err
	}
	if len(firsts) == 0 {
		_, err := os.Stat(filepath.Join(dir, checkpointFile))
		return err // where it is missing, this is no log at all
	}
	begin := firsts[0]
	for _, first := range firsts {
		if first <= from {
			begin = first
		}
	}
	w, err := walkFrom(dir, begin)
	if err != nil {
		return fmt.Errorf("entry %d: %w", begin, err)
	}
	defer w.close()
	for {
		index := w.index()
		f, _, err := w.next()
		if errors.Is(err, io.EOF) || errors.Is(err, errShort) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("entry %d: %w", index, err)
		}
		if index < from {
			continue
		}
		e, err := decodeEntry(index, f.payload)
		if err != nil {
			return err
		}
		if err := fn(e); err != nil {
			return err
		}
	}
}

// EntriesIn is ReadDir as an iterator. An error ends it.
func EntriesIn(dir string, from int64) iter.Seq2[Entry, error] {
	return entries(func(fn func(Entry) error) error { return ReadDir(dir, from, fn) })
}

// errStop ends a read whose consumer has enough.
var errStop = errors.New("stop")

// entries turns a read with a callback into an iterator.
func entries(read func(fn func(Entry) error) error) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		err := read(func(e Entry) error {
			if !yield(e, nil) {
				return errStop
			}
			return nil
		})
		if err != nil && !errors.Is(err, errStop) {
			yield(Entry{}, err)
		}
	}
}

// decodeEntry parses an entry's payload.
func decodeEntry(index int64, payload []byte) (Entry, error) {
	e := Entry{Index: index}
	if err := json.Unmarshal(payload, &e.Event); err != nil {
		return Entry{}, fmt.Errorf("entry %d: %w", index, err)
	}
	return e, nil
}
