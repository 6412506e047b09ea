// Package spool keeps connection records between the proxies that made them
// and the server's log: bounded, with a fair share for each reporter, drops
// counted by reporter, and on disk, so that the end of the agent's process
// loses nothing that it acknowledged.
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
	// maxLosses is how many reporters' losses travel with a batch at most.
	maxLosses = 64
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
	// Loss words that n records of a reporter were dropped, as a record. Zero
	// tells of losses by their sum alone.
	Loss func(reporter string, n uint64) []byte
}

// Batch is what is sent together.
type Batch struct {
	Events [][]byte // losses, worded by Config.Loss, come last
	Lost   uint64   // records that were dropped before these, and are in no event

	after  uint64            // number after the last
	losses map[string]uint64 // by reporter, that the batch tells of
}

// Spool is a bounded queue of records. It is safe for concurrent use by many
// writers and one sender.
type Spool struct {
	bound  int64
	logger *slog.Logger
	word   func(string, uint64) []byte
	filled chan struct{}

	mu      sync.Mutex // guards what follows
	shares  map[string]*share
	waiting int
	next    uint64 // number of the next record
	bytes   int64
	dropped uint64   // since the start
	journal *journal // nil for memory alone
	failing bool     // the journal's last write failed
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
	s := &Spool{bound: cfg.Bytes, logger: cfg.Logger, word: cfg.Loss, filled: make(chan struct{}, 1), shares: make(map[string]*share)}
	if cfg.Dir == "" {
		return s, nil
	}
	j, left, err := openJournal(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	s.journal = j
	for _, l := range left {
		sh := s.share(l.reporter)
		sh.segments = append(sh.segments, l.segment)
		for _, r := range l.records {
			s.push(sh, r)
		}
	}
	for _, sh := range s.shares {
		s.trim(sh)
	}
	return s, nil
}

// Add takes records of a reporter, and a count of those that it lost itself.
// When it returns they survive the end of this process, unless the bound or
// the disk drops them, which is counted.
func (s *Spool) Add(reporter string, events [][]byte, lost uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.share(reporter)
	sh.lost += lost
	added := make([]record, 0, len(events))
	for _, e := range events {
		added = append(added, record{number: s.next, event: e})
		s.push(sh, added[len(added)-1])
	}
	if s.journal != nil {
		s.write(sh, added)
		s.trim(sh)
	}
	s.forget(sh)
	s.poke()
}

// write puts records on disk, and says it once where that begins or ceases to
// fail. It is guarded by s.mu.
func (s *Spool) write(sh *share, added []record) {
	err := s.journal.append(sh, added)
	switch {
	case err != nil && !s.failing:
		s.logger.Warn("connection records are in memory alone", "error", err)
	case err == nil && s.failing:
		s.logger.Info("connection records are on disk again")
	}
	s.failing = err != nil
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
	for reporter, sh := range s.shares {
		for len(sh.records) > 0 && sh.records[0].number < b.after {
			s.shift(sh)
		}
		sh.lost -= min(sh.lost, b.losses[reporter])
		s.trim(sh)
		s.forget(sh)
	}
	if s.holds() {
		s.poke()
	}
}

// Stats returns how many records wait and how many were dropped since the
// start.
func (s *Spool) Stats() (waiting int, dropped uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting, s.dropped
}

// take gathers the oldest records of all reporters, and what was lost.
func (s *Spool) take() (Batch, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := Batch{losses: make(map[string]uint64)}
	size := 0
	for r := range s.oldest() {
		if len(b.Events) == MaxBatch || len(b.Events) > 0 && size+len(r.event) > maxBatchBytes {
			break
		}
		size += len(r.event)
		b.Events = append(b.Events, r.event)
		b.after = r.number + 1
	}
	for reporter, sh := range s.shares {
		if sh.lost == 0 || len(b.losses) == maxLosses {
			continue
		}
		b.losses[reporter] = sh.lost
		if s.word == nil {
			b.Lost += sh.lost
		} else {
			b.Events = append(b.Events, s.word(reporter, sh.lost))
		}
	}
	return b, len(b.Events) > 0 || b.Lost > 0
}

func (s *Spool) empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.holds()
}

func (s *Spool) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting >= MaxBatch
}

func (s *Spool) poke() {
	select {
	case s.filled <- struct{}{}:
	default:
	}
}
