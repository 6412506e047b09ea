// This file holds the reading of segments: their names, one reader over one
// segment, and a walk over all of them.

package audit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

const ledgerDir = "ledger"

// segmentPath is where the segment that begins with entry first lies.
func segmentPath(dir string, first int64) string {
	return filepath.Join(dir, ledgerDir, fmt.Sprintf("%020d.log", first))
}

// listSegments returns the first indexes of the segments in dir, in order.
func listSegments(dir string) ([]int64, error) {
	names, err := os.ReadDir(filepath.Join(dir, ledgerDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var firsts []int64
	for _, n := range names {
		digits, ok := strings.CutSuffix(n.Name(), ".log")
		if !ok || len(digits) != 20 {
			continue
		}
		first, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || first < 0 {
			continue
		}
		firsts = append(firsts, first)
	}
	slices.Sort(firsts)
	return firsts, nil
}

var (
	// errChain says that a whole frame does not follow from the one before.
	errChain = errors.New("the entry does not follow from the one before it")
	// errHead says that a segment's header is damaged or is not this one's.
	errHead = errors.New("the segment's header is damaged")
)

// position is a place between two entries.
type position struct {
	segment int64     // first index of the segment
	offset  int64     // of the next frame in it
	index   int64     // of the next entry
	chain   chainHash // before the next entry
}

// reader reads the frames of one segment in order. It is not safe for
// concurrent use.
type reader struct {
	f     *os.File
	begin position // before the segment's first entry; zero after openAt
	at    position
	buf   []byte
	from  int64 // offset in the file of buf[0]
}

// openSegment opens a segment at its first entry.
func openSegment(dir string, first int64) (*reader, error) {
	f, err := os.Open(segmentPath(dir, first))
	if err != nil {
		return nil, err
	}
	head := make([]byte, segmentHead)
	n, err := f.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		f.Close()
		return nil, err
	}
	named, chain, err := parseSegmentHead(head[:n])
	if err == nil && named != first {
		err = fmt.Errorf("it is the header of entry %d", named)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: %w", errHead, err)
	}
	begin := position{first, segmentHead, first, chain}
	return &reader{f: f, begin: begin, at: begin, from: segmentHead}, nil
}

// openAt opens a segment at a position that an earlier reader reached.
func openAt(dir string, at position) (*reader, error) {
	f, err := os.Open(segmentPath(dir, at.segment))
	if err != nil {
		return nil, err
	}
	return &reader{f: f, from: at.offset, at: at}, nil
}

func (r *reader) close() { r.f.Close() }

// next returns the next frame and its leaf hash, valid until the next call.
// It is io.EOF at a clean end, errShort inside a frame; errFrame, errSum
// and errChain tell damage. After an error the position stands before the
// frame concerned, and what the file holds meanwhile is read anew.
func (r *reader) next() (frame, tlog.Hash, error) {
	f, err := r.frame()
	if err != nil {
		r.buf, r.from = r.buf[:0], r.at.offset
		return frame{}, tlog.Hash{}, err
	}
	leaf := tlog.RecordHash(f.payload)
	if f.group > r.at.index || r.at.chain.next(leaf) != f.chain {
		r.buf, r.from = r.buf[:0], r.at.offset
		return frame{}, tlog.Hash{}, errChain
	}
	r.pass(f)
	return f, leaf, nil
}

// skim is next without the proof that the entry follows from the one
// before.
func (r *reader) skim() (frame, error) {
	f, err := r.frame()
	if err != nil {
		r.buf, r.from = r.buf[:0], r.at.offset
		return frame{}, err
	}
	r.pass(f)
	return f, nil
}

// pass moves the position behind f.
func (r *reader) pass(f frame) {
	r.at.chain = f.chain
	r.at.offset += f.size()
	r.at.index++
}

// frame parses the frame at the position, reading as much as it needs.
func (r *reader) frame() (frame, error) {
	for {
		rest := r.buf[r.at.offset-r.from:]
		f, err := parseFrame(rest)
		if !errors.Is(err, errShort) {
			return f, err
		}
		const chunk = 64 << 10
		have := copy(r.buf[:cap(r.buf)], rest)
		r.buf = slices.Grow(r.buf[:have], chunk)
		r.from = r.at.offset
		n, err := r.f.ReadAt(r.buf[have:have+chunk], r.from+int64(have))
		r.buf = r.buf[:have+n]
		switch {
		case n > 0:
		case err == io.EOF && have == 0:
			return frame{}, io.EOF
		case err == io.EOF:
			return frame{}, errShort
		default:
			return frame{}, err
		}
	}
}

// walker reads the entries of a whole ledger in order, from segment to
// segment, while another process may append to it.
type walker struct {
	dir string
	r   *reader
}

// walkFrom returns a walker before the first entry of a segment.
func walkFrom(dir string, segment int64) (*walker, error) {
	r, err := openSegment(dir, segment)
	if err != nil {
		return nil, err
	}
	return &walker{dir: dir, r: r}, nil
}

func (w *walker) close() { w.r.close() }

// index is that of the entry that next will return.
func (w *walker) index() int64 { return w.r.at.index }

// next is reader.next across segments: io.EOF and errShort mean that there
// is no later segment. errHead wraps a damaged header of the segment that
// begins with the entry expected.
func (w *walker) next() (frame, tlog.Hash, error) {
	for {
		f, leaf, err := w.r.next()
		if !errors.Is(err, io.EOF) && !errors.Is(err, errShort) {
			return f, leaf, err
		}
		if moved, stepErr := w.step(); stepErr != nil {
			return frame{}, tlog.Hash{}, stepErr
		} else if !moved {
			return frame{}, tlog.Hash{}, err
		}
	}
}

// step opens the segment that begins where this one ends, if there is one.
// Where only later ones exist and this one has not grown, entries are
// missing between: errChain.
func (w *walker) step() (moved bool, err error) {
	firsts, err := listSegments(w.dir)
	if err != nil {
		return false, err
	}
	if len(firsts) == 0 || firsts[len(firsts)-1] <= w.r.at.segment {
		return false, nil
	}
	// A later segment exists, so this one is complete: what it held when
	// its end was met may have been too little.
	if _, _, err := w.peek(); !errors.Is(err, io.EOF) {
		if errors.Is(err, errShort) {
			return false, errSum
		}
		return err == nil, err
	}
	if !slices.Contains(firsts, w.r.at.index) {
		return false, errChain
	}
	r, err := openSegment(w.dir, w.r.at.index)
	if err != nil {
		return false, err
	}
	if r.at.chain != w.r.at.chain {
		r.close()
		return false, errHead
	}
	w.r.close()
	w.r = r
	return true, nil
}

// peek looks at the next frame and stays before it.
func (w *walker) peek() (frame, tlog.Hash, error) {
	before := w.r.at
	f, leaf, err := w.r.next()
	if err == nil {
		w.r.at = before
		w.r.buf, w.r.from = w.r.buf[:0], before.offset
	}
	return f, leaf, err
}
