// This file holds the writer: it turns records into frames of the active
// segment and makes them durable.

package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/mod/sumdb/tlog"
)

// record is one encoded event on its way into the ledger.
type record struct {
	payload []byte
	leaf    tlog.Hash
	left    uint32 // records after this one in the same RecordAll
}

// segmentFile is what the writer needs of a file. WriteAt may store a part
// before it fails; Datasync makes all that was written durable, and after
// its error nothing is known of what is.
type segmentFile interface {
	WriteAt(p []byte, off int64) (int, error)
	Truncate(size int64) error
	Datasync() error
	Close() error
}

// diskFile is a segmentFile on disk.
type diskFile struct{ *os.File }

// Datasync implements segmentFile by fdatasync(2).
func (f diskFile) Datasync() error {
	return retryInterrupted(func() error { return syscall.Fdatasync(int(f.Fd())) })
}

// openDiskFile opens a segment for writing and creates it if asked.
func openDiskFile(path string, create bool) (segmentFile, error) {
	flags := os.O_RDWR
	if create {
		flags |= os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	return diskFile{f}, nil
}

// errBroken marks an error after which the file's state is not known: no
// further write is allowed until the log is opened again.
var errBroken = errors.New("the log must be opened again")

// writer appends to the active segment. It has one user at a time.
type writer struct {
	dir      string
	openFile func(path string, create bool) (segmentFile, error)
	limit    int64       // bytes after which a new segment begins
	f        segmentFile // nil until the first segment exists
	at       position    // behind the last durable frame
	buf      []byte
}

// commit writes the records as one group and returns once they are durable.
// begun says that the group opened a new segment. After an error that does
// not wrap errBroken, the ledger is as before and commit may be called again.
func (w *writer) commit(records []record) (begun bool, err error) {
	if w.f == nil || w.at.offset >= w.limit {
		if err := w.begin(); err != nil {
			return false, err
		}
		begun = true
	}
	chain := w.at.chain
	w.buf = w.buf[:0]
	for i := range records {
		r := &records[i]
		chain = chain.next(r.leaf)
		w.buf = appendFrame(w.buf, w.at.index, r.left, chain, r.payload)
	}
	if _, err := w.f.WriteAt(w.buf, w.at.offset); err != nil {
		return begun, w.undo(err)
	}
	if err := w.f.Datasync(); err != nil {
		return begun, fmt.Errorf("sync the ledger: %w: %w", err, errBroken)
	}
	w.at.chain = chain
	w.at.offset += int64(len(w.buf))
	w.at.index += int64(len(records))
	const keep = 4 << 20
	if cap(w.buf) > keep {
		w.buf = nil
	}
	return begun, nil
}

// undo cuts off what a refused write may have left.
func (w *writer) undo(cause error) error {
	if err := w.f.Truncate(w.at.offset); err != nil {
		return fmt.Errorf("write to the ledger: %w; cut it back: %w: %w", cause, err, errBroken)
	}
	return fmt.Errorf("write to the ledger: %w", cause)
}

// begin makes the next segment durable and active. It has its name only
// once its header is whole.
func (w *writer) begin() error {
	path := segmentPath(w.dir, w.at.index)
	f, err := w.openFile(path+".new", true)
	if err != nil {
		return fmt.Errorf("begin a segment: %w", err)
	}
	_, err = f.WriteAt(appendSegmentHead(nil, w.at.index, w.at.chain), 0)
	if err == nil {
		err = f.Datasync()
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		f.Close()
		return errors.Join(fmt.Errorf("begin a segment: %w", err), os.Remove(path+".new"))
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		f.Close()
		return fmt.Errorf("begin a segment: %w: %w", err, errBroken)
	}
	if w.f != nil {
		w.f.Close()
	}
	w.f = f
	w.at.segment, w.at.offset = w.at.index, segmentHead
	return nil
}

// close closes the active segment.
func (w *writer) close() error {
	if w.f == nil {
		return nil
	}
	return w.f.Close()
}
