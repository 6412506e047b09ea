// This file holds Log: its configuration, its opening and closing, and what
// it says about itself.

package audit

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// Defaults of Config.
const (
	DefaultReserve         = 16 << 20
	DefaultSegmentBytes    = 16 << 20
	DefaultCheckpointEvery = time.Second
)

// ErrDiskFull is wrapped by the error of a Record that found no space. The
// event is not stored, and later ones are once there is space again.
var ErrDiskFull = errors.New("the disk of the log is full")

// ErrClosed is wrapped by the error of a Record after Close.
var ErrClosed = errors.New("the log is closed")

// Config says where a log lies and how it behaves.
type Config struct {
	// Dir is the log's own directory. It is made if it is missing.
	Dir string
	// Origin names the log in its checkpoints: a trust domain, a role and a
	// server, without spaces and plus signs, as in
	// "example.org/authority/one". It can't change later.
	Origin string
	// Key signs checkpoints and receipts, see LoadOrCreateKey.
	Key ed25519.PrivateKey
	// Reserve is the disk in bytes that is held for administrative events.
	// Zero means DefaultReserve, a negative number none.
	Reserve int64
	// Quota bounds the segments' bytes together. Run drops the oldest
	// segments over it and records how many entries went. Zero: no bound.
	Quota int64
	// SegmentBytes is the size after which a new segment begins. Zero means
	// DefaultSegmentBytes, or an eighth of the quota if that is less.
	SegmentBytes int64
	// CheckpointEvery is the longest that an entry waits for the checkpoint
	// that covers it while Run runs, at most one second. Zero means
	// DefaultCheckpointEvery.
	CheckpointEvery time.Duration
	// Logger hears of repairs and of a full disk. Nil means slog.Default.
	Logger *slog.Logger

	openFile func(path string, create bool) (segmentFile, error) // nil: the disk's; tests inject faults
}

// check fills in defaults and refuses what can't be.
func (c *Config) check() error {
	switch {
	case c.Dir == "":
		return errors.New("directory is missing")
	case c.Quota < 0:
		return fmt.Errorf("quota %d is negative", c.Quota)
	case c.SegmentBytes < 0:
		return fmt.Errorf("segment size %d is negative", c.SegmentBytes)
	case c.CheckpointEvery < 0 || c.CheckpointEvery > time.Second:
		return fmt.Errorf("checkpoint interval %v is not between 0 and 1s", c.CheckpointEvery)
	}
	if c.Reserve == 0 {
		c.Reserve = DefaultReserve
	}
	c.Reserve = max(c.Reserve, 0)
	if c.SegmentBytes == 0 {
		c.SegmentBytes = DefaultSegmentBytes
		if c.Quota > 0 {
			c.SegmentBytes = min(c.SegmentBytes, max(c.Quota/8, 4<<10))
		}
	}
	if c.CheckpointEvery == 0 {
		c.CheckpointEvery = DefaultCheckpointEvery
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.openFile == nil {
		c.openFile = openDiskFile
	}
	return nil
}

// Log is one append-only log, open for writing. Its methods may be called
// from several goroutines. One process has a log open at a time.
type Log struct {
	cfg    Config
	signer *signer
	lock   *os.File
	ready  sync.Pool // of *request

	head atomic.Pointer[head] // the newest checkpoint

	mu       sync.Mutex    // guards what follows, up to the blank line
	queue    []*request    // waiting for the next group
	spare    []*request    // the queue's other array
	writing  bool          // someone leads: a group is being written, or about to be
	idle     chan struct{} // closed when writing ends after Close; nil before
	failed   error         // wraps errBroken or ErrClosed: no more writes
	durable  int64         // entries that are durable
	segments []segment     // oldest first
	pending  []tlog.Hash   // leaf hashes after the tree, as far as they are kept
	treeEnd  int64         // index of pending[0]
	grown    chan struct{} // closed at the next commit; nil where nobody waits
	full     bool          // the disk was full when last tried
	reserved int64         // bytes held by the reserve
	refused  uint64        // events refused for a full disk

	writer  writer  // used by the leader only
	reserve reserve // guarded by reserveMu
	// reserveMu is held for a moment by the leader and by the checkpointer.
	reserveMu sync.Mutex

	treeMu sync.Mutex // guards tree and unsaved; held while a checkpoint is made
	tree   tree
	// unsaved are full tiles that are not on disk yet.
	unsaved []tile
	stale   []string // directories of partial tiles that have become full
}

// segment is one file of the ledger.
type segment struct {
	first int64
	bytes int64
	marks []position // every so many entries, where a reader may begin
}

// tile is a tile with its hashes.
type tile struct {
	tlog.Tile
	hashes []tlog.Hash
}

// head is a checkpoint with what it says.
type head struct {
	note []byte
	size int64
	root tlog.Hash
	made time.Time
}

// Open opens a log, or begins one. It takes the log's lock, cuts off what a
// crash left of a write that was never acknowledged, and refuses a log whose
// acknowledged entries are damaged or missing. It starts nothing.
func Open(cfg Config) (*Log, error) {
	l, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", cfg.Dir, err)
	}
	return l, nil
}

// open does the work of Open.
func open(cfg Config) (*Log, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	s, err := newSigner(cfg.Origin, cfg.Key)
	if err != nil {
		return nil, err
	}
	l := &Log{cfg: cfg, signer: s}
	for _, dir := range []string{cfg.Dir, filepath.Join(cfg.Dir, ledgerDir), filepath.Join(cfg.Dir, tileDir)} {
		if err := makeDir(dir); err != nil {
			return nil, err
		}
	}
	if l.lock, err = lockFile(filepath.Join(cfg.Dir, "lock")); err != nil {
		return nil, err
	}
	l.writer = writer{dir: cfg.Dir, openFile: cfg.openFile, limit: cfg.SegmentBytes}
	l.reserve = reserve{path: filepath.Join(cfg.Dir, "reserve"), want: cfg.Reserve}
	if err := l.recover(); err != nil {
		l.lock.Close()
		return nil, err
	}
	if err := l.takeReserve(); err != nil {
		l.writer.close()
		l.lock.Close()
		return nil, err
	}
	return l, nil
}

// lockFile takes the lock that keeps a second process out.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = retryInterrupted(func() error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) })
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = errors.New("another process has it open")
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// takeReserve fills the reserve at opening. A disk that is full already
// leaves the log open for administration only.
func (l *Log) takeReserve() error {
	if l.reserve.want == 0 {
		return l.reserve.remove()
	}
	err := l.reserve.fill()
	if noSpace(err) {
		l.cfg.Logger.Warn("audit log has no room for its reserve", "dir", l.cfg.Dir, "error", err)
		l.full, err = true, nil
	}
	l.reserved = l.reserve.have
	return err
}

// Close refuses further records, waits for those that are being written,
// and gives the log up. It makes no checkpoint: Run has made one when it
// returned, and the next Open goes on from the ledger.
func (l *Log) Close() error {
	l.mu.Lock()
	if errors.Is(l.failed, ErrClosed) {
		l.mu.Unlock()
		return nil
	}
	if l.failed == nil {
		l.failed = ErrClosed
	} else {
		l.failed = fmt.Errorf("%w after %w", ErrClosed, l.failed)
	}
	idle := make(chan struct{})
	l.idle = idle
	if !l.writing {
		close(idle)
	}
	l.wakeWaiters()
	l.mu.Unlock()
	<-idle

	l.treeMu.Lock() // a checkpoint in the making ends first
	defer l.treeMu.Unlock()
	err := l.writer.close()
	return errors.Join(err, l.lock.Close())
}

// Size is the number of entries that are durable, counting dropped ones:
// the index of the next.
func (l *Log) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.durable
}

// Origin is the log's name in its checkpoints and receipts.
func (l *Log) Origin() string { return l.signer.Name() }

// VerifierKey is the text of the key that checkpoints and receipts verify
// with, in the form of the signed-note format.
func (l *Log) VerifierKey() string { return l.signer.text }

// Checkpoint is the newest signed checkpoint. The caller must not change it.
func (l *Log) Checkpoint() []byte { return l.head.Load().note }

// Wait returns once Size is above size, or with the context's cause.
func (l *Log) Wait(ctx context.Context, size int64) error {
	for {
		l.mu.Lock()
		if l.durable > size {
			l.mu.Unlock()
			return nil
		}
		if l.failed != nil {
			defer l.mu.Unlock()
			return fmt.Errorf("wait for an entry: %w", l.failed)
		}
		if l.grown == nil {
			l.grown = make(chan struct{})
		}
		grown := l.grown
		l.mu.Unlock()
		select {
		case <-grown:
		case <-ctx.Done():
			return fmt.Errorf("wait for an entry: %w", context.Cause(ctx))
		}
	}
}

// wakeWaiters lets every Wait look again. The caller holds mu.
func (l *Log) wakeWaiters() {
	if l.grown != nil {
		close(l.grown)
		l.grown = nil
	}
}

// Stats is the state of a log for graphs.
type Stats struct {
	Entries        int64     // entries so far, counting dropped ones
	First          int64     // index of the oldest entry that is kept
	Bytes          int64     // of all segments
	CheckpointSize int64     // entries under the newest checkpoint
	CheckpointTime time.Time // when it was made; zero for one found at opening
	ReserveBytes   int64     // disk held in reserve
	Full           bool      // the disk was full when last tried
	Refused        uint64    // events refused for a full disk since opening
}

// Stats returns the log's state of this moment.
func (l *Log) Stats() Stats {
	h := l.head.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Stats{
		Entries: l.durable, First: l.durable, CheckpointSize: h.size, CheckpointTime: h.made,
		ReserveBytes: l.reserved, Full: l.full, Refused: l.refused,
	}
	for i, seg := range l.segments {
		if i == 0 {
			s.First = seg.first
		}
		s.Bytes += seg.bytes
	}
	return s
}
