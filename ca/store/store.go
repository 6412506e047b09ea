// Package store holds the words of an ordered key-value store with revisions:
// entries, positions, transactions, changes, and the small interfaces that
// its consumers ask for. Backends live below it; the suite that each of them
// passes is storetest.
//
// A store has an epoch, which differs between any two stores and grows when
// one is restored, and revisions, which grow by one with each transaction
// that changes something, in commit order. It stands on the second floor.
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// Limits of a key, a value and a transaction, in bytes and operations.
const (
	MaxKeyBytes   = 1024
	MaxValueBytes = 2 << 20
	MaxOps        = 20000
)

// Sentinels that callers branch on.
var (
	// ErrConflict: a condition of the transaction did not hold; nothing was
	// changed.
	ErrConflict = errors.New("a condition does not hold")
	// ErrCompacted: the revision asked for lies before the oldest kept one.
	ErrCompacted = errors.New("revision was compacted")
	// ErrFuture: the revision asked for does not exist yet.
	ErrFuture = errors.New("revision lies in the future")
	// ErrLocked: another process holds the store.
	ErrLocked = errors.New("another process holds the store")
)

// Position is a place in a store's history. Positions of one server are
// strictly increasing: by epoch, then by revision.
type Position struct{ Epoch, Revision uint64 }

// String prints EPOCH/REVISION.
func (p Position) String() string { return fmt.Sprintf("%d/%d", p.Epoch, p.Revision) }

// Entry is a key with its value and the revisions at which it was created and
// last changed. Created starts anew when a deleted key comes back.
type Entry struct {
	Key               string
	Value             []byte
	Created, Modified uint64
}

// Op changes one key: it sets Value, or deletes the key. Deleting a key that
// is not there changes nothing.
type Op struct {
	Key    string
	Value  []byte
	Delete bool
}

// Put sets a key.
func Put(key string, value []byte) Op { return Op{Key: key, Value: value} }

// Delete removes a key.
func Delete(key string) Op { return Op{Key: key, Delete: true} }

// Condition holds where the key's Modified revision is Modified; 0 means that
// the key is not there.
type Condition struct {
	Key      string
	Modified uint64
}

// Change is what a transaction did to one key. Entry.Value is nil and
// Entry.Modified the transaction's revision where it was deleted.
type Change struct {
	Entry
	Deleted bool
}

// Batch is the whole of what happened to the watched keys after the batch
// before it, up to and including the revision Through.
type Batch struct {
	Through uint64
	Changes []Change
}

// Reader reads.
type Reader interface {
	// Position returns the position of the last transaction.
	Position() Position
	// Get returns the entry of a key and whether it is there.
	Get(key string) (Entry, bool, error)
	// Scan returns the entries whose key starts with prefix, in order of
	// keys, as they were at a revision, and that revision; 0 means now. The
	// error wraps ErrCompacted or ErrFuture.
	Scan(prefix string, revision uint64) ([]Entry, uint64, error)
}

// Writer writes. Txn is durable when it returns without an error.
type Writer interface {
	// Txn applies the operations, all or none, if every condition holds, and
	// returns the position of the store after it. The error wraps ErrConflict
	// where a condition does not hold. Without an effect no revision is spent.
	Txn(ctx context.Context, conditions []Condition, ops []Op) (Position, error)
}

// Watcher follows history.
type Watcher interface {
	// Watch calls fn with batches of whole transactions in order, beginning
	// after the revision from, until ctx ends or fn fails, and returns that
	// error. A batch without changes says that nothing happened up to
	// Through. The error wraps ErrCompacted or ErrFuture where from is not to
	// be had.
	Watch(ctx context.Context, prefix string, from uint64, fn func(Batch) error) error
	// Compact forgets history up to and including a revision; the present
	// state stays.
	Compact(ctx context.Context, revision uint64) error
}

// Closer ends and saves a store.
type Closer interface {
	// Backup writes a consistent copy of the store with a checksum to w.
	Backup(ctx context.Context, w io.Writer) error
	// Close releases the store. Watches end.
	Close() error
}

// Store is a whole store, as its constructor returns it.
type Store interface {
	Reader
	Writer
	Watcher
	Closer
}

// CheckOps checks a transaction's shape: sizes, and no key twice.
func CheckOps(ops []Op) error {
	if len(ops) > MaxOps {
		return fmt.Errorf("transaction of %d operations, more than %d", len(ops), MaxOps)
	}
	seen := make(map[string]bool, len(ops))
	for _, op := range ops {
		switch {
		case op.Key == "" || len(op.Key) > MaxKeyBytes:
			return fmt.Errorf("key of %d bytes: 1 to %d are allowed", len(op.Key), MaxKeyBytes)
		case len(op.Value) > MaxValueBytes:
			return fmt.Errorf("value of %d bytes, more than %d", len(op.Value), MaxValueBytes)
		case seen[op.Key]:
			return fmt.Errorf("transaction names the key %q twice", op.Key)
		}
		seen[op.Key] = true
	}
	return nil
}
