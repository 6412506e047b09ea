// Package spool keeps connection records between the proxies that made them
// and the server's log: bounded, oldest dropped first and counted, and on
// disk, so that the end of the agent's process loses nothing that it
// acknowledged.
//
// It owns the order and the bounds. It leaves what a record says to its
// caller, and the sending to upstream. Records are delivered at least once: a
// server that made a batch durable and lost the stream before its
// acknowledgement gets the batch again. It stands on the second floor, inside
// the agent's room.
package spool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const (
	// MaxBatch is how many records travel together at most.
	MaxBatch = 1000
	// maxBatchBytes bounds a batch's records; one larger record still goes.
	maxBatchBytes = 1 << 20
	// linger is how long a record waits for company before it is sent.
	linger = 50 * time.Millisecond
	// overhead is what a record costs in memory besides its bytes.
	overhead = 64
)

// Config is what a Spool needs.
type Config struct {
	Dir    string       // mode 0700, made if absent; "" keeps records in memory alone
	Bytes  int64        // bound on what is kept; zero means 32 MiB
	Logger *slog.Logger // nil discards
}

// Batch is what is sent together.
type Batch struct {
	Events [][]byte
	Lost   uint64 // records that were dropped before these

	after uint64 // number after the last
}

// Spool is a bounded queue of records. It is safe for concurrent use by many
// writers and one sender.
type Spool struct {
	bound  int64
	logger *slog.Logger
	filled chan struct{}

	mu      sync.Mutex // guards what follows
	records []record   // oldest first
	next    uint64     // number of the next record
	bytes   int64
	lost    uint64 // dropped and not yet reported
	dropped uint64 // dropped since the start
	journal *journal
}

type record struct {
	number uint64
	event  []byte
}

// Open reads what an earlier process left in the directory.
func Open(cfg Config) (*Spool, error) {
	if cfg.Bytes == 0 {
		cfg.Bytes = 32 << 20
	}
	if cfg.Bytes < 0 {
		return nil, errors.New("spool: bound is negative")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Spool{bound: cfg.Bytes, logger: cfg.Logger, filled: make(chan struct{}, 1)}
	if cfg.Dir == "" {
		return s, nil
	}
	j, left, err := openJournal(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	s.journal = j
	for _, r := range left {
		s.push(r)
	}
	return s, nil
}

// Add takes records, and a count of records that the sender itself lost. When
// it returns they survive the end of this process, unless the bound or the
// disk drops them, which is counted.
func (s *Spool) Add(events [][]byte, lost uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost += lost
	added := make([]record, 0, len(events))
	for _, e := range events {
		r := record{number: s.next, event: e}
		added = append(added, r)
		s.push(r)
	}
	if s.journal != nil {
		if err := s.journal.append(added); err != nil {
			s.logger.Warn("connection records are in memory alone", "error", err)
		}
		s.trim()
	}
	s.poke()
}

// Next waits for records, or a loss to report, and returns the oldest. The
// same come again until Done.
func (s *Spool) Next(ctx context.Context) (Batch, error) {
	for {
		if s.empty() {
			select {
			case <-ctx.Done():
				return Batch{}, ctx.Err()
			case <-s.filled:
			}
			continue
		}
		if !s.full() {
			timer := time.NewTimer(linger)
			select {
			case <-ctx.Done():
				timer.Stop()
				return Batch{}, ctx.Err()
			case <-timer.C:
			}
		}
		if b, ok := s.take(); ok {
			return b, nil
		}
	}
}

// Done forgets a batch that the server has.
func (s *Spool) Done(b Batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.records) > 0 && s.records[0].number < b.after {
		s.shift()
	}
	s.lost -= min(s.lost, b.Lost)
	s.trim()
	if len(s.records) > 0 || s.lost > 0 {
		s.poke()
	}
}

// Stats returns how many records wait and how many were dropped since the
// start.
func (s *Spool) Stats() (waiting int, dropped uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.records), s.dropped
}

// Close lets go of the files.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.journal == nil {
		return nil
	}
	return s.journal.close()
}

func (s *Spool) take() (Batch, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := Batch{Lost: s.lost}
	size := 0
	for _, r := range s.records {
		if len(b.Events) == MaxBatch || len(b.Events) > 0 && size+len(r.event) > maxBatchBytes {
			break
		}
		size += len(r.event)
		b.Events = append(b.Events, r.event)
		b.after = r.number + 1
	}
	return b, len(b.Events) > 0 || b.Lost > 0
}

// push appends one record and drops the oldest beyond the bound, guarded by
// s.mu.
func (s *Spool) push(r record) {
	s.records = append(s.records, r)
	s.next = r.number + 1
	s.bytes += int64(len(r.event)) + overhead
	for s.bytes > s.bound && len(s.records) > 0 {
		s.shift()
		s.lost++
		s.dropped++
	}
}

// shift forgets the oldest record, guarded by s.mu.
func (s *Spool) shift() {
	s.bytes -= int64(len(s.records[0].event)) + overhead
	s.records[0] = record{}
	s.records = s.records[1:]
}

// trim removes journal files of which every record is gone, guarded by s.mu.
func (s *Spool) trim() {
	if s.journal == nil {
		return
	}
	oldest := s.next
	if len(s.records) > 0 {
		oldest = s.records[0].number
	}
	if err := s.journal.trim(oldest, len(s.records) == 0); err != nil {
		s.logger.Warn("old connection records were not removed", "error", err)
	}
}

func (s *Spool) empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.records) == 0 && s.lost == 0
}

func (s *Spool) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.records) >= MaxBatch
}

func (s *Spool) poke() {
	select {
	case s.filled <- struct{}{}:
	default:
	}
}
