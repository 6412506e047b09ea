// This file holds the store's history: scans of the past, watches, and
// compaction.

package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/aval-id/aval/ca/store"
)

// watchBatch bounds the revisions that one read transaction of a watch covers.
const watchBatch = 1024

// record is one change with what was there before it.
type record struct {
	revision uint64
	key      string
	deleted  bool
	value    []byte
	before   []byte // the entry's raw form, nil where there was none
}

// historyKey orders changes by revision, then by place in the transaction.
func historyKey(revision uint64, n int) []byte {
	return binary.BigEndian.AppendUint32(number(revision), uint32(n))
}

// encodeHistory writes: flags, key length, key, value length, value, before.
func encodeHistory(op store.Op, before []byte) []byte {
	var flags byte
	if op.Delete {
		flags |= 1
	}
	if before != nil {
		flags |= 2
	}
	out := []byte{flags}
	out = binary.AppendUvarint(out, uint64(len(op.Key)))
	out = append(out, op.Key...)
	out = binary.AppendUvarint(out, uint64(len(op.Value)))
	out = append(out, op.Value...)
	return append(out, before...)
}

var errHistory = errors.New("history is damaged")

// decodeHistory reads what encodeHistory wrote. It copies what it takes.
func decodeHistory(k, raw []byte) (record, error) {
	if len(k) != 12 || len(raw) < 1 {
		return record{}, errHistory
	}
	r := record{revision: toNumber(k[:8]), deleted: raw[0]&1 != 0}
	key, rest, ok := field(raw[1:])
	if !ok {
		return record{}, errHistory
	}
	value, rest, ok := field(rest)
	if !ok {
		return record{}, errHistory
	}
	r.key, r.value = string(key), bytes.Clone(value)
	if raw[0]&2 != 0 {
		r.before = append([]byte{}, rest...)
	}
	return r, nil
}

func field(b []byte) (value, rest []byte, ok bool) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)-size) {
		return nil, nil, false
	}
	return b[size : size+int(n)], b[size+int(n):], true
}

// Scan returns the entries under prefix as they were at a revision.
func (s *Store) Scan(prefix string, revision uint64) (out []store.Entry, at uint64, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		at = toNumber(tx.Bucket(bucketMeta).Get(keyRevision))
		if revision > at {
			return fmt.Errorf("%d is above %d: %w", revision, at, store.ErrFuture)
		}
		found := map[string]store.Entry{}
		c := tx.Bucket(bucketEntries).Cursor()
		for k, v := c.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, v = c.Next() {
			found[string(k)] = decodeEntry(string(k), v)
		}
		if revision != 0 && revision < at {
			if err := undo(tx, prefix, revision, found); err != nil {
				return err
			}
			at = revision
		}
		out = make([]store.Entry, 0, len(found))
		for _, e := range found {
			out = append(out, e)
		}
		return nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("store: scan %s: %w", prefix, err)
	}
	slices.SortFunc(out, func(a, b store.Entry) int { return strings.Compare(a.Key, b.Key) })
	return out, at, nil
}

// undo takes the changes after a revision back, newest first.
func undo(tx *bbolt.Tx, prefix string, revision uint64, found map[string]store.Entry) error {
	if floor := toNumber(tx.Bucket(bucketMeta).Get(keyFloor)); revision < floor {
		return fmt.Errorf("%d is below %d: %w", revision, floor, store.ErrCompacted)
	}
	c := tx.Bucket(bucketHistory).Cursor()
	for k, v := c.Last(); k != nil && toNumber(k[:8]) > revision; k, v = c.Prev() {
		r, err := decodeHistory(k, v)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(r.key, prefix) {
			continue
		}
		if r.before == nil {
			delete(found, r.key)
		} else {
			found[r.key] = decodeEntry(r.key, r.before)
		}
	}
	return nil
}

// Watch follows the keys under prefix from after a revision.
func (s *Store) Watch(ctx context.Context, prefix string, from uint64, fn func(store.Batch) error) error {
	for first := true; ; first = false {
		s.mu.Lock()
		moved, now := s.moved, s.position.Revision
		s.mu.Unlock()
		// Later on from may be ahead: a commit is readable a moment before it
		// is announced.
		if first && from > now {
			return fmt.Errorf("store: watch from %d: %w", from, store.ErrFuture)
		}
		if from < now || first {
			batch, err := s.changes(prefix, from)
			if err != nil {
				return fmt.Errorf("store: watch from %d: %w", from, err)
			}
			if err := fn(batch); err != nil {
				return err
			}
			from = batch.Through
			if from < now {
				continue
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.done:
			return fmt.Errorf("store: watch: %w", errClosed)
		case <-moved:
		}
	}
}

var errClosed = errors.New("store is closed")

// changes reads the next whole transactions after a revision.
func (s *Store) changes(prefix string, from uint64) (b store.Batch, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		if floor := toNumber(meta.Get(keyFloor)); from < floor {
			return fmt.Errorf("history begins at %d: %w", floor, store.ErrCompacted)
		}
		b.Through = toNumber(meta.Get(keyRevision))
		limit := from + watchBatch
		if b.Through > limit {
			b.Through = limit
		}
		created := map[string]uint64{}
		c := tx.Bucket(bucketHistory).Cursor()
		for k, v := c.Seek(historyKey(from+1, 0)); k != nil && toNumber(k[:8]) <= b.Through; k, v = c.Next() {
			r, err := decodeHistory(k, v)
			if err != nil {
				return err
			}
			if strings.HasPrefix(r.key, prefix) {
				b.Changes = append(b.Changes, r.change(created))
			}
		}
		return nil
	})
	return b, err
}

// change gives a record the form that watchers see.
func (r record) change(created map[string]uint64) store.Change {
	c := store.Change{Deleted: r.deleted, Entry: store.Entry{Key: r.key, Modified: r.revision, Created: r.revision}}
	if r.before != nil {
		c.Created = decodeEntry(r.key, r.before).Created
	}
	if !r.deleted {
		c.Value = r.value
		if c.Value == nil {
			c.Value = []byte{}
		}
	}
	return c
}

// Compact forgets history up to and including a revision.
func (s *Store) Compact(ctx context.Context, revision uint64) error {
	err := s.db.Update(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		if now := toNumber(meta.Get(keyRevision)); revision > now {
			return fmt.Errorf("%d is above %d: %w", revision, now, store.ErrFuture)
		}
		if revision <= toNumber(meta.Get(keyFloor)) {
			return nil
		}
		c := tx.Bucket(bucketHistory).Cursor()
		for k, _ := c.First(); k != nil && toNumber(k[:8]) <= revision; k, _ = c.First() {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := c.Delete(); err != nil {
				return err
			}
		}
		return meta.Put(keyFloor, number(revision))
	})
	if err != nil {
		return fmt.Errorf("store: compact: %w", err)
	}
	return nil
}
