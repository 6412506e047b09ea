// Package bolt keeps a store in one bbolt file: the embedded backend for one
// server. The file is locked while it is open.
//
// It owns the file's layout, its history and its backups; what the entries
// mean is the server's. It stands on the second floor.
package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/aval-id/aval/ca/store"
)

// The buckets. An entry's value is its created and modified revisions, then
// the value. History keeps, for each change, what was there before.
var (
	bucketMeta    = []byte("meta")
	bucketEntries = []byte("entries")
	bucketHistory = []byte("history")

	keyEpoch    = []byte("epoch")
	keyRevision = []byte("revision")
	keyFloor    = []byte("floor")
)

// DefaultLockTimeout is how long Open waits for the file's lock.
const DefaultLockTimeout = 3 * time.Second

// Config is what a store is made of.
type Config struct {
	// Path is the file, made with mode 0600 where it is missing. Required.
	Path string
	// LockTimeout bounds the wait for another process that holds the file.
	// Zero means DefaultLockTimeout.
	LockTimeout time.Duration
	// Epoch is the epoch of a file that is made. Zero means the present time
	// in Unix milliseconds, which differs from any store before it.
	Epoch uint64
}

// Store is an open file. It is safe for concurrent use.
type Store struct {
	db *bbolt.DB

	mu       sync.Mutex
	position store.Position // guarded by mu: the last committed transaction
	moved    chan struct{}  // guarded by mu: closed when position moves
	closed   bool           // guarded by mu
	done     chan struct{}  // closed by Close
}

var _ store.Store = (*Store)(nil)

// Open opens or makes the file. The error wraps store.ErrLocked where another
// process holds it.
func Open(cfg Config) (*Store, error) {
	if cfg.Path == "" {
		return nil, errors.New("store: path is missing")
	}
	if cfg.LockTimeout == 0 {
		cfg.LockTimeout = DefaultLockTimeout
	}
	if cfg.Epoch == 0 {
		cfg.Epoch = uint64(time.Now().UnixMilli())
	}
	if err := checkFile(cfg.Path); err != nil {
		return nil, err
	}
	db, err := bbolt.Open(cfg.Path, 0o600, &bbolt.Options{Timeout: cfg.LockTimeout, FreelistType: bbolt.FreelistMapType})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("store %s: %w", cfg.Path, store.ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", cfg.Path, err)
	}
	s := &Store{db: db, moved: make(chan struct{}), done: make(chan struct{})}
	if err := s.load(cfg.Epoch); err != nil {
		db.Close()
		return nil, fmt.Errorf("store %s: %w", cfg.Path, err)
	}
	return s, syncDir(filepath.Dir(cfg.Path))
}

func checkFile(path string) error {
	fi, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if perm := fi.Mode().Perm(); perm&0o077 != 0 {
		return fmt.Errorf("store %s has mode %04o: others may use it; chmod 0600 it", path, perm)
	}
	if err := checkLength(path, fi.Size()); err != nil {
		return fmt.Errorf("store %s: %w", path, err)
	}
	return nil
}

// load reads the position, or makes the buckets of a new file.
func (s *Store) load(epoch uint64) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketEntries, bucketHistory} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bucketMeta)
		if meta.Get(keyEpoch) == nil {
			if err := meta.Put(keyEpoch, number(epoch)); err != nil {
				return err
			}
		}
		s.position = store.Position{Epoch: toNumber(meta.Get(keyEpoch)), Revision: toNumber(meta.Get(keyRevision))}
		return nil
	})
}

// Position returns the position of the last transaction.
func (s *Store) Position() store.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.position
}

// Get returns a key's entry.
func (s *Store) Get(key string) (e store.Entry, found bool, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		if raw := tx.Bucket(bucketEntries).Get([]byte(key)); raw != nil {
			e, found = decodeEntry(key, raw), true
		}
		return nil
	})
	if err != nil {
		return store.Entry{}, false, fmt.Errorf("store: get: %w", err)
	}
	return e, found, nil
}

// Txn applies the operations if the conditions hold.
func (s *Store) Txn(ctx context.Context, conditions []store.Condition, ops []store.Op) (store.Position, error) {
	if err := store.CheckOps(ops); err != nil {
		return store.Position{}, fmt.Errorf("store: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return store.Position{}, fmt.Errorf("store: %w", err)
	}
	var after store.Position
	err := s.db.Update(func(tx *bbolt.Tx) error {
		if err := holds(tx, conditions); err != nil {
			return err
		}
		meta := tx.Bucket(bucketMeta)
		after = store.Position{Epoch: toNumber(meta.Get(keyEpoch)), Revision: toNumber(meta.Get(keyRevision))}
		changed, err := apply(tx, after.Revision+1, ops)
		if err != nil || !changed {
			return err
		}
		after.Revision++
		return meta.Put(keyRevision, number(after.Revision))
	})
	if err != nil {
		return store.Position{}, fmt.Errorf("store: transaction: %w", err)
	}
	s.advance(after)
	return after, nil
}

func holds(tx *bbolt.Tx, conditions []store.Condition) error {
	entries := tx.Bucket(bucketEntries)
	for _, c := range conditions {
		var modified uint64
		if raw := entries.Get([]byte(c.Key)); raw != nil {
			modified = decodeEntry(c.Key, raw).Modified
		}
		if modified != c.Modified {
			return fmt.Errorf("%s is at revision %d, not %d: %w", c.Key, modified, c.Modified, store.ErrConflict)
		}
	}
	return nil
}

// apply carries out the operations at a revision, with their history.
func apply(tx *bbolt.Tx, revision uint64, ops []store.Op) (changed bool, err error) {
	entries, history := tx.Bucket(bucketEntries), tx.Bucket(bucketHistory)
	for n, op := range ops {
		key := []byte(op.Key)
		before := bytes.Clone(entries.Get(key))
		if op.Delete && before == nil {
			continue
		}
		if err := history.Put(historyKey(revision, n), encodeHistory(op, before)); err != nil {
			return false, err
		}
		changed = true
		if op.Delete {
			if err := entries.Delete(key); err != nil {
				return false, err
			}
			continue
		}
		created := revision
		if before != nil {
			created = decodeEntry(op.Key, before).Created
		}
		if err := entries.Put(key, encodeEntry(created, revision, op.Value)); err != nil {
			return false, err
		}
	}
	return changed, nil
}

// advance makes a committed position known. Commits are serialized by bbolt,
// their returns are not.
func (s *Store) advance(p store.Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.Revision > s.position.Revision {
		s.position = p
		close(s.moved)
		s.moved = make(chan struct{})
	}
}

// Close releases the file. Watches end.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.done)
	s.mu.Unlock()
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("store: close: %w", err)
	}
	return nil
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func toNumber(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

func encodeEntry(created, modified uint64, value []byte) []byte {
	out := make([]byte, 0, 16+len(value))
	out = binary.BigEndian.AppendUint64(out, created)
	out = binary.BigEndian.AppendUint64(out, modified)
	return append(out, value...)
}

// decodeEntry copies what it takes from raw, which belongs to a transaction.
func decodeEntry(key string, raw []byte) store.Entry {
	if len(raw) < 16 {
		return store.Entry{Key: key}
	}
	return store.Entry{
		Key:      key,
		Created:  binary.BigEndian.Uint64(raw),
		Modified: binary.BigEndian.Uint64(raw[8:]),
		Value:    append([]byte{}, raw[16:]...),
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}
