// This file holds journal, the files behind a spool: segments of lines, each
// a number and a record, which are removed whole.

package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// segmentBytes is the size at which a new segment is begun.
const segmentBytes = 1 << 20

const suffix = ".records"

// journal appends records to segments named by their first record. Writes go
// to the kernel and are not synced: they survive the end of the process, not
// that of the machine.
type journal struct {
	dir      string
	file     *os.File // the newest segment, nil before the first record
	size     int64
	segments []uint64 // first numbers, oldest first
}

// openJournal reads the records that are left. A torn last line is dropped.
// Nothing is appended to an old segment.
func openJournal(dir string) (*journal, []record, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		return nil, nil, err
	}
	slices.Sort(names)
	j := &journal{dir: dir}
	var left []record
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, nil, err
		}
		records := parseSegment(text)
		if len(records) == 0 || len(left) > 0 && records[0].number <= left[len(left)-1].number {
			if err := os.Remove(name); err != nil {
				return nil, nil, err
			}
			continue
		}
		first, err := strconv.ParseUint(strings.TrimSuffix(filepath.Base(name), suffix), 10, 64)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: name is no record number", name)
		}
		j.segments = append(j.segments, first)
		left = append(left, records...)
	}
	return j, left, nil
}

// parseSegment reads lines of a number, a space and a record, up to the first
// that is torn or out of order.
func parseSegment(text []byte) []record {
	var out []record
	for {
		line, rest, whole := bytes.Cut(text, []byte{'\n'})
		if !whole {
			return out
		}
		number, event, ok := bytes.Cut(line, []byte{' '})
		if !ok {
			return out
		}
		n, err := strconv.ParseUint(string(number), 10, 64)
		if err != nil || len(out) > 0 && n <= out[len(out)-1].number {
			return out
		}
		out = append(out, record{number: n, event: bytes.Clone(event)})
		text = rest
	}
}

// append writes records with one call to the kernel.
func (j *journal) append(records []record) error {
	if len(records) == 0 {
		return nil
	}
	if j.file == nil || j.size >= segmentBytes {
		if err := j.begin(records[0].number); err != nil {
			return err
		}
	}
	var text []byte
	for _, r := range records {
		text = strconv.AppendUint(text, r.number, 10)
		text = append(text, ' ')
		text = append(text, r.event...)
		text = append(text, '\n')
	}
	n, err := j.file.Write(text)
	j.size += int64(n)
	if err != nil {
		// A torn line would hide what follows it: go on in a new segment.
		return errors.Join(err, j.close())
	}
	return nil
}

func (j *journal) begin(first uint64) error {
	if err := j.close(); err != nil {
		return err
	}
	f, err := os.OpenFile(j.name(first), os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	j.file, j.size = f, 0
	j.segments = append(j.segments, first)
	return nil
}

// trim removes the segments whose records are all below oldest. With empty
// nothing is left at all: the newest segment is emptied too.
func (j *journal) trim(oldest uint64, empty bool) error {
	for len(j.segments) > 1 && j.segments[1] <= oldest || empty && len(j.segments) == 1 && j.file == nil {
		if err := os.Remove(j.name(j.segments[0])); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		j.segments = j.segments[1:]
	}
	if empty && j.file != nil && j.size > 0 {
		if err := j.file.Truncate(0); err != nil {
			return err
		}
		j.size = 0
	}
	return nil
}

func (j *journal) name(first uint64) string {
	return filepath.Join(j.dir, fmt.Sprintf("%020d%s", first, suffix))
}

func (j *journal) close() error {
	if j.file == nil {
		return nil
	}
	err := j.file.Close()
	j.file = nil
	return err
}
