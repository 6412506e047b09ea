// This file holds journal, the files behind a spool: segments, each of one
// reporter, which are removed whole. A segment's first line names its
// reporter; each further line is a number and a record.

package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// segmentBytes is the size at which a new segment is begun.
const segmentBytes = 1 << 20

const (
	suffix = ".records"
	header = "of " // begins the line that names the reporter
)

// journal appends records to segments named by their first record, whose
// number no other segment has. Writes go to the kernel and are not synced:
// they survive the end of the process, not that of the machine. No file is
// held open, so that reporters cost no descriptors.
type journal struct{ dir string }

// segment is what one file held when it was read.
type segment struct {
	segment  uint64 // its first number
	reporter string
	records  []record
}

// openJournal reads the records that are left, oldest segment first. A torn
// last line is dropped. Nothing is appended to an old segment.
func openJournal(dir string) (*journal, []segment, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		return nil, nil, err
	}
	slices.Sort(names)
	var left []segment
	last := make(map[string]uint64) // by reporter, the number after the last
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, nil, err
		}
		s := parseSegment(text)
		if len(s.records) == 0 || s.records[0].number < last[s.reporter] {
			if err := os.Remove(name); err != nil {
				return nil, nil, err
			}
			continue
		}
		if s.segment, err = strconv.ParseUint(strings.TrimSuffix(filepath.Base(name), suffix), 10, 64); err != nil {
			return nil, nil, fmt.Errorf("%s: name is no record number", name)
		}
		last[s.reporter] = s.records[len(s.records)-1].number + 1
		left = append(left, s)
	}
	return &journal{dir: dir}, left, nil
}

// parseSegment reads the name of the reporter, which old files lack, and then
// lines of a number, a space and a record, up to the first that is torn or
// out of order.
func parseSegment(text []byte) segment {
	var s segment
	if bytes.HasPrefix(text, []byte(header)) {
		line, rest, whole := bytes.Cut(text, []byte{'\n'})
		name, err := url.PathUnescape(string(line[len(header):]))
		if !whole || err != nil {
			return segment{}
		}
		s.reporter, text = name, rest
	}
	for {
		line, rest, whole := bytes.Cut(text, []byte{'\n'})
		if !whole {
			return s
		}
		number, event, ok := bytes.Cut(line, []byte{' '})
		if !ok {
			return s
		}
		n, err := strconv.ParseUint(string(number), 10, 64)
		if err != nil || len(s.records) > 0 && n <= s.records[len(s.records)-1].number {
			return s
		}
		s.records = append(s.records, record{number: n, event: bytes.Clone(event)})
		text = rest
	}
}

// append writes a share's new records with one call to the kernel.
func (j *journal) append(sh *share, records []record) error {
	if len(records) == 0 {
		return nil
	}
	var text []byte
	flags := os.O_WRONLY | os.O_APPEND
	if sh.size >= segmentBytes {
		flags |= os.O_CREATE | os.O_TRUNC
		text = append(text, header+url.PathEscape(sh.reporter)+"\n"...)
		sh.segments, sh.size = append(sh.segments, records[0].number), 0
	}
	for _, r := range records {
		text = strconv.AppendUint(text, r.number, 10)
		text = append(text, ' ')
		text = append(text, r.event...)
		text = append(text, '\n')
	}
	f, err := os.OpenFile(j.name(sh.segments[len(sh.segments)-1]), flags, 0o600)
	if err != nil {
		sh.size = segmentBytes
		return err
	}
	n, err := f.Write(text)
	sh.size += int64(n)
	if err = errors.Join(err, f.Close()); err != nil {
		// A torn line would hide what follows it: go on in a new segment.
		sh.size = segmentBytes
	}
	return err
}

// trim removes the segments of a share whose records are all below oldest.
// With empty nothing is left at all.
func (j *journal) trim(sh *share, oldest uint64, empty bool) error {
	for len(sh.segments) > 1 && sh.segments[1] <= oldest || empty && len(sh.segments) == 1 {
		if err := os.Remove(j.name(sh.segments[0])); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if sh.segments = sh.segments[1:]; len(sh.segments) == 0 {
			sh.size = segmentBytes
		}
	}
	return nil
}

func (j *journal) name(first uint64) string {
	return filepath.Join(j.dir, fmt.Sprintf("%020d%s", first, suffix))
}
