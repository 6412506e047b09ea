// This file holds the check of a file's length. bbolt maps the file and
// believes its first pages: in one that was cut short it would touch memory
// that is not there, and the process would die without a word.

package bolt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// The layout of the two meta pages, in the byte order of the machine.
const (
	pageHeader   = 16
	metaSize     = 64
	boltMagic    = 0xED0CDAED
	minPageSize  = 1 << 10
	maxPageSize  = 1 << 16
	checksumFrom = 56
)

// checkLength refuses a file that is shorter than its newest good meta page
// says. An empty file is a new store; what has no good meta page is left to
// bbolt to refuse.
func checkLength(path string, size int64) error {
	if size == 0 {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	needed, err := neededLength(f)
	if err != nil {
		return err
	}
	if size < needed {
		return fmt.Errorf("it was cut short: it has %d bytes and needs %d; restore a backup", size, needed)
	}
	return nil
}

// neededLength returns how long the newest good meta page says that the file
// is, or zero where there is none.
func neededLength(r io.ReaderAt) (int64, error) {
	var needed int64
	var newest uint64
	first := make([]byte, pageHeader+metaSize)
	if _, err := r.ReadAt(first, 0); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	sizes := []int64{int64(os.Getpagesize())}
	if m, ok := parseMeta(first[pageHeader:]); ok {
		needed, newest = m.length(), m.txid
		sizes[0] = int64(m.pageSize)
	}
	for _, at := range sizes {
		second := make([]byte, pageHeader+metaSize)
		if _, err := r.ReadAt(second, at); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if m, ok := parseMeta(second[pageHeader:]); ok && m.txid > newest {
			needed, newest = m.length(), m.txid
		}
	}
	return needed, nil
}

type meta struct {
	pageSize uint32
	pages    uint64 // the first page that was never used
	txid     uint64
}

func (m meta) length() int64 { return int64(m.pages) * int64(m.pageSize) }

// parseMeta reads a meta page's body and checks its checksum.
func parseMeta(b []byte) (meta, bool) {
	order := binary.NativeEndian
	if len(b) < metaSize || order.Uint32(b) != boltMagic {
		return meta{}, false
	}
	h := fnv.New64a()
	h.Write(b[:checksumFrom])
	m := meta{pageSize: order.Uint32(b[8:]), pages: order.Uint64(b[40:]), txid: order.Uint64(b[48:])}
	good := h.Sum64() == order.Uint64(b[checksumFrom:]) &&
		m.pageSize >= minPageSize && m.pageSize <= maxPageSize && m.pages < 1<<40
	return m, good
}
