// This file holds recording: the group commit that makes events durable.
//
// There is no goroutine for it. Of the callers of Record, one leads: it
// takes every waiting request, writes them as one group, syncs once, wakes
// their callers, and hands the lead to the first who came meanwhile.

package audit

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// request is what one caller wants recorded together.
type request struct {
	records []record
	bytes   []byte // each payload with RFC 6962's leaf prefix before it
	admin   bool   // every event is administrative

	stage stage     // guarded by Log.mu
	wake  chan bool // true: lead; false: done
	first int64     // index of the first record, once it is durable
	err   error
}

// stage is how far a request has come.
type stage int

const (
	stageQueued  stage = iota // may still be withdrawn
	stageLeading              // its caller was told to lead
	stageTaken                // is being written
)

// Record makes an event durable and returns its place. After an error that
// wraps ErrDiskFull, or of Event.Validate, the event is not stored; after
// another error it may or may not be, and the caller must not act on it.
// An error that comes of a refused sync stays until the log is opened again.
// The receipt is not signed yet, see Sign.
func (l *Log) Record(ctx context.Context, e Event) (Receipt, error) {
	one := [1]Event{e}
	r, err := l.record(ctx, one[:])
	if err != nil {
		return Receipt{}, fmt.Errorf("record %s: %w", e.Kind, err)
	}
	receipt := Receipt{Log: l.signer.Name(), Index: r.first, EntryHash: r.records[0].leaf}
	l.ready.Put(r)
	return receipt, nil
}

// RecordAll is Record for several events, which get consecutive indexes. All
// of them are stored or none, also where the process dies meanwhile.
func (l *Log) RecordAll(ctx context.Context, events []Event) ([]Receipt, error) {
	if len(events) == 0 {
		return nil, nil
	}
	r, err := l.record(ctx, events)
	if err != nil {
		return nil, fmt.Errorf("record %d events: %w", len(events), err)
	}
	receipts := make([]Receipt, len(events))
	for i := range receipts {
		receipts[i] = Receipt{Log: l.signer.Name(), Index: r.first + int64(i), EntryHash: r.records[i].leaf}
	}
	l.ready.Put(r)
	return receipts, nil
}

// record encodes, submits, and leads where it is asked to. On success the
// request is the caller's, to read and to put back.
func (l *Log) record(ctx context.Context, events []Event) (*request, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	r, _ := l.ready.Get().(*request)
	if r == nil {
		r = &request{wake: make(chan bool, 1)}
	}
	if err := r.encode(events); err != nil {
		return nil, err
	}
	lead, err := l.enqueue(r)
	if err != nil {
		return nil, err
	}
	if !lead {
		if lead, err = l.await(ctx, r); err != nil {
			return nil, err
		}
	}
	if lead {
		l.lead(r)
	}
	return r, r.err
}

// encode fills the request with the events' payloads and leaf hashes.
func (r *request) encode(events []Event) error {
	if len(events) > math.MaxUint32 {
		return errors.New("too many events at once")
	}
	*r = request{records: r.records[:0], bytes: r.bytes[:0], wake: r.wake, admin: true}
	ends := make([]int, 0, 8)
	for i := range events {
		e := &events[i]
		if err := e.Validate(); err != nil {
			return err
		}
		r.admin = r.admin && e.Kind.administrative()
		start := len(r.bytes)
		r.bytes = appendEvent(append(r.bytes, 0), e)
		if n := len(r.bytes) - start - 1; n > MaxEventBytes {
			return fmt.Errorf("event: %d bytes of JSON, of %d allowed", n, MaxEventBytes)
		}
		ends = append(ends, len(r.bytes))
	}
	start := 0
	for i, end := range ends { // only now, as bytes may have moved
		leaf := r.bytes[start:end]
		r.records = append(r.records, record{
			payload: leaf[1:],
			leaf:    tlog.Hash(sha256.Sum256(leaf)),
			left:    uint32(len(events) - 1 - i),
		})
		start = end
	}
	return nil
}

// enqueue puts the request in line and reports whether its caller leads.
func (l *Log) enqueue(r *request) (lead bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		return false, l.failed
	}
	l.queue = append(l.queue, r)
	lead = !l.writing
	l.writing = true
	return lead, nil
}

// await waits until the request is done or its caller shall lead. Where the
// context ends first, a request that nobody has taken is withdrawn.
func (l *Log) await(ctx context.Context, r *request) (lead bool, err error) {
	select {
	case lead = <-r.wake:
		return lead, nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	at := r.stage
	if at == stageQueued {
		l.queue = slices.DeleteFunc(l.queue, func(q *request) bool { return q == r })
	}
	l.mu.Unlock()
	switch at {
	case stageLeading:
		return <-r.wake, nil // the lead can't be refused: others wait behind it
	case stageQueued:
		return false, fmt.Errorf("withdrawn: %w", context.Cause(ctx))
	default:
		return false, fmt.Errorf("given up while it was being written: %w", context.Cause(ctx))
	}
}

// lead writes what waits, own among it, and passes the lead on.
func (l *Log) lead(own *request) {
	runtime.Gosched() // those just woken join this group rather than wait for the next
	l.mu.Lock()
	batch := l.queue
	l.queue, l.spare = l.spare[:0], nil
	for _, r := range batch {
		r.stage = stageTaken
	}
	refuse := l.failed
	if errors.Is(refuse, ErrClosed) && !errors.Is(refuse, errBroken) {
		refuse = nil // what was accepted before Close is still written
	}
	l.mu.Unlock()

	if refuse != nil {
		for _, r := range batch {
			r.err = refuse
		}
	} else {
		l.write(batch)
	}

	l.mu.Lock()
	var next *request
	if len(l.queue) > 0 {
		next = l.queue[0]
		next.stage = stageLeading
	} else {
		l.writing = false
		if l.idle != nil {
			close(l.idle)
		}
	}
	l.mu.Unlock()
	if next != nil {
		next.wake <- true
	}
	for i, r := range batch {
		batch[i] = nil
		if r != own {
			r.wake <- false
		}
	}
	l.mu.Lock()
	l.spare = batch[:0]
	l.mu.Unlock()
}

// write commits a batch, or as much of it as a full disk allows, and sets
// each request's outcome.
func (l *Log) write(batch []*request) {
	l.mu.Lock()
	full := l.full
	l.mu.Unlock()
	if !full || l.refill() {
		err := l.commit(batch)
		if err == nil || !noSpace(err) || errors.Is(err, errBroken) {
			return
		}
		l.setFull(true, err)
	}
	var admin []*request
	for _, r := range batch {
		if r.admin {
			admin = append(admin, r)
			continue
		}
		l.mu.Lock()
		l.refused += uint64(len(r.records))
		l.mu.Unlock()
		r.err = ErrDiskFull
	}
	for len(admin) > 0 {
		err := l.commit(admin)
		if err == nil || !noSpace(err) || errors.Is(err, errBroken) {
			return
		}
		if !l.giveUpReserve() {
			for _, r := range admin {
				r.err = fmt.Errorf("%w, and its reserve is spent: %w", ErrDiskFull, err)
			}
			return
		}
	}
}

// commit writes requests as one group and publishes it, or sets the error
// on each of them and returns it.
func (l *Log) commit(batch []*request) error {
	var records []record
	if len(batch) == 1 {
		records = batch[0].records
	} else {
		n := 0
		for _, r := range batch {
			n += len(r.records)
		}
		records = make([]record, 0, n)
		for _, r := range batch {
			records = append(records, r.records...)
		}
	}
	begun, err := l.writer.commit(records)
	l.mu.Lock()
	defer l.mu.Unlock()
	if begun {
		l.segments = append(l.segments, segment{first: l.writer.at.segment})
	}
	if n := len(l.segments); n > 0 {
		l.segments[n-1].bytes = l.writer.at.offset
	}
	if err != nil {
		if errors.Is(err, errBroken) && l.failed == nil {
			l.failed = err
			l.wakeWaiters()
		}
		for _, r := range batch {
			r.err = err
		}
		return err
	}
	first := l.durable
	for _, r := range batch {
		r.first, r.err = first, nil
		first += int64(len(r.records))
	}
	l.publish(records)
	return nil
}

// maxPending bounds the leaf hashes kept for the next checkpoint; what goes
// beyond is read back from the ledger.
const maxPending = 1 << 17

// publish makes committed records visible. The caller holds mu.
func (l *Log) publish(records []record) {
	for i := range records {
		if len(l.pending) >= maxPending || l.treeEnd+int64(len(l.pending)) != l.durable+int64(i) {
			break
		}
		l.pending = append(l.pending, records[i].leaf)
	}
	l.durable += int64(len(records))
	l.mark(l.writer.at)
	l.wakeWaiters()
}

// setFull notes that the disk is full or no longer is, and says so once.
func (l *Log) setFull(full bool, cause error) {
	l.mu.Lock()
	changed := l.full != full
	l.full = full
	l.mu.Unlock()
	switch {
	case changed && full:
		l.cfg.Logger.Error("audit log's disk is full", "dir", l.cfg.Dir, "error", cause)
	case changed:
		l.cfg.Logger.Info("audit log's disk has space again", "dir", l.cfg.Dir)
	}
}

// refill tries to end the full state: the disk counts as full until the
// whole reserve is held again, as ordinary events would else eat what was
// given up for administration.
func (l *Log) refill() bool {
	l.reserveMu.Lock()
	err := l.reserve.fill()
	have := l.reserve.have
	l.reserveMu.Unlock()
	l.mu.Lock()
	l.reserved = have
	l.mu.Unlock()
	if err != nil {
		return false
	}
	l.setFull(false, nil)
	return true
}

// giveUpReserve frees a step of the reserve and reports whether there was
// one.
func (l *Log) giveUpReserve() bool {
	l.reserveMu.Lock()
	ok := l.reserve.release()
	have := l.reserve.have
	l.reserveMu.Unlock()
	l.mu.Lock()
	l.reserved = have
	l.mu.Unlock()
	if ok {
		l.cfg.Logger.Warn("audit log gave up a part of its reserve", "dir", l.cfg.Dir, "bytes_left", have)
	}
	return ok
}

// now is the time of events that the log itself records.
func now() time.Time { return time.Now().UTC() }
