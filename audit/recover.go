// This file holds recovery: how a log that was left at any instant is
// opened again.

package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// recover brings ledger, tree and checkpoint together: it loads the tree at
// the checkpoint from the tiles, reads the ledger from the segment that the
// checkpoint ends in, and cuts off a torn end.
func (l *Log) recover() error {
	firsts, err := listSegments(l.cfg.Dir)
	if err != nil {
		return err
	}
	h, err := readCheckpoint(l.cfg.Dir, l.signer.verifier)
	switch {
	case errors.Is(err, fs.ErrNotExist) && len(firsts) == 0:
		if err := l.found(); err != nil {
			return err
		}
		h = l.head.Load()
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("the ledger has entries and there is no checkpoint: restore the file checkpoint from a copy")
	case err != nil:
		return err
	}
	l.head.Store(h)
	if len(firsts) == 0 {
		if h.size != 0 {
			return fmt.Errorf("the checkpoint covers %d entries and there is no ledger", h.size)
		}
		return nil
	}
	from, err := l.loadTree(firsts, h)
	if err != nil {
		return err
	}
	l.treeEnd = l.tree.size
	if err := l.replay(firsts, from, h); err != nil {
		return err
	}
	l.writer.f, err = l.cfg.openFile(segmentPath(l.cfg.Dir, l.writer.at.segment), false)
	return err
}

// found writes what a log without entries consists of.
func (l *Log) found() error {
	if err := WriteFile(filepath.Join(l.cfg.Dir, "key.pub"), []byte(l.signer.text+"\n"), 0o600); err != nil {
		return err
	}
	h, err := l.sign(0, (&tree{}).root())
	if err != nil {
		return err
	}
	l.head.Store(h)
	return WriteFile(filepath.Join(l.cfg.Dir, checkpointFile), h.note, 0o600)
}

// loadTree sets the tree to the checkpoint's and returns the segment to
// read on from. Where the tiles don't give the checkpoint's root, the tree
// is computed from the ledger, and its tiles are written anew.
func (l *Log) loadTree(firsts []int64, h *head) (from int64, err error) {
	from = firsts[0]
	for _, first := range firsts {
		if first <= h.size {
			from = first
		}
	}
	if from > h.size {
		return 0, fmt.Errorf("entry %d is missing: the ledger begins with %d, the checkpoint covers %d", h.size, from, h.size)
	}
	t, bad, err := loadTree(l.cfg.Dir, h.size)
	if err == nil && t.root() == h.root {
		l.tree = *t
		return from, nil
	}
	if firsts[0] != 0 {
		return 0, fmt.Errorf("the tiles don't give the checkpoint's root (%s), and the ledger's beginning was dropped", bad)
	}
	l.cfg.Logger.Warn("audit tiles are damaged and are computed anew", "dir", l.cfg.Dir, "tile", bad)
	return 0, nil // the tree stays empty: replay fills it
}

// replay reads the segments from one on, adds the entries after the tree to
// it, and leaves the writer behind the last whole unit.
func (l *Log) replay(firsts []int64, from int64, h *head) error {
	for _, first := range firsts {
		bytes := int64(0)
		if fi, err := os.Stat(segmentPath(l.cfg.Dir, first)); err == nil {
			bytes = fi.Size()
		}
		l.segments = append(l.segments, segment{first: first, bytes: bytes})
	}
	w, err := walkFrom(l.cfg.Dir, from)
	if err != nil {
		return fmt.Errorf("entry %d: %w", from, err)
	}
	defer w.close()
	whole, cause, err := l.replayEntries(w, h)
	if err != nil {
		return err
	}
	if last := firsts[len(firsts)-1]; whole.segment != last {
		return fmt.Errorf("entry %d: %w", w.index(), errors.Join(cause, errChain))
	}
	if whole.index < h.size {
		return fmt.Errorf("entry %d is damaged or missing, and the checkpoint covers %d: %w", whole.index, h.size, cause)
	}
	l.writer.at, l.durable = whole, whole.index
	return l.cutTorn(whole, cause)
}

// replayEntries walks to the end. It returns the position behind the last
// whole unit and what stopped the walk.
func (l *Log) replayEntries(w *walker, h *head) (whole position, cause, err error) {
	whole = w.r.at
	var unit []tlog.Hash
	for {
		f, leaf, err := w.next()
		if whole.segment != w.r.at.segment {
			whole = w.r.begin
		}
		if err != nil {
			// An unfinished unit is dropped with the torn end.
			return whole, err, nil
		}
		if w.index() > l.tree.size {
			unit = append(unit, leaf)
		}
		if f.left > 0 {
			continue
		}
		whole = w.r.at
		l.mark(whole)
		for _, leaf := range unit {
			l.tree.append(leaf, l.keepTile)
			if l.tree.size == h.size && l.tree.root() != h.root {
				return whole, nil, fmt.Errorf("the ledger's first %d entries are not those that the checkpoint was signed over", h.size)
			}
		}
		unit = unit[:0]
		l.treeEnd = l.tree.size
	}
}

// cutTorn cuts the last segment at a position where a walk stopped, if what
// follows can only be a write that was never acknowledged.
func (l *Log) cutTorn(at position, cause error) error {
	path := segmentPath(l.cfg.Dir, at.segment)
	tail, err := readTail(path, at.offset)
	if err != nil || len(tail) == 0 {
		return err
	}
	if errors.Is(cause, errChain) || errors.Is(cause, errHead) {
		return fmt.Errorf("entry %d: %w", at.index, cause)
	}
	if later, ok := laterGroup(tail, at.index); ok {
		return fmt.Errorf("entry %d is damaged, and a group that begins with entry %d was written after it: %w", at.index, later, cause)
	}
	l.cfg.Logger.Warn("audit log ends in a write that was cut short", "dir", l.cfg.Dir, "index", at.index, "bytes", len(tail))
	f, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(at.offset); err != nil {
		return err
	}
	l.segments[len(l.segments)-1].bytes = at.offset
	return f.Sync()
}

// readTail reads a file from an offset on.
func readTail(path string, offset int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, err
	}
	return io.ReadAll(f)
}

// laterGroup looks for a sound frame of a group that begins after index. A
// group is written only once the one before it is durable, so that such a
// frame proves the bytes before it to be damaged, not torn. (Frames of the
// torn group itself may be whole: pages reach the disk in any order.)
func laterGroup(tail []byte, index int64) (group int64, ok bool) {
	for i := 0; i+frameHead <= len(tail); i++ {
		if binary.BigEndian.Uint32(tail[i:]) != frameMagic {
			continue
		}
		if f, err := parseFrame(tail[i:]); err == nil && f.group > index {
			return f.group, true
		}
	}
	return 0, false
}

// keepTile keeps a full tile until it is written.
func (l *Log) keepTile(t tlog.Tile, hashes []tlog.Hash) {
	l.unsaved = append(l.unsaved, tile{t, hashes})
}

// markEvery is how many entries lie between two marks of a segment.
const markEvery = 512

// mark remembers a position for readers, unless the last one is near. The
// caller holds mu, or has the log to itself.
func (l *Log) mark(at position) {
	for i := len(l.segments) - 1; i >= 0; i-- {
		seg := &l.segments[i]
		if seg.first != at.segment {
			continue
		}
		if n := len(seg.marks); n == 0 && at.index-seg.first >= markEvery || n > 0 && at.index-seg.marks[n-1].index >= markEvery {
			seg.marks = append(seg.marks, at)
		}
		return
	}
}

// readCheckpoint reads and verifies the checkpoint of a directory.
func readCheckpoint(dir string, v note.Verifier) (*head, error) {
	text, err := os.ReadFile(filepath.Join(dir, checkpointFile))
	if err != nil {
		return nil, err
	}
	h, err := parseCheckpoint(text, v)
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	return h, nil
}
