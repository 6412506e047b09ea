// This file holds what goes up a session: batches of requests and batches of
// connection records.

package upstream

import (
	"context"
	"fmt"
	"time"

	"github.com/aval-id/aval/agent/keyring"
	"github.com/aval-id/aval/identity/wire"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// issue sends one batch and waits for its results.
func (s *session) issue(ctx context.Context, batch []keyring.Request) ([]keyring.Result, error) {
	number, answer := s.expect()
	defer s.forget(number)
	msg := &wire.IssueBatch{Batch: number}
	for i, r := range batch {
		msg.Requests = append(msg.Requests, &wire.IssueRequest{
			Request: uint64(i), Registration: r.Registration, SpiffeId: r.ID.String(), Csr: r.CSR,
		})
	}
	if err := s.put(ctx, &wire.NodeFrame{Frame: &wire.NodeFrame_Issue{Issue: msg}}); err != nil {
		return nil, err
	}
	select {
	case results := <-answer:
		return toResults(results, len(batch))
	case <-s.done:
		return nil, fmt.Errorf("the stream ended before the answer: %w", keyring.ErrAway)
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the server's answer: %w", ctx.Err())
	}
}

// toResults puts the answers in the order of the requests. Every request must
// have exactly one.
func toResults(answer *wire.IssueResults, n int) ([]keyring.Result, error) {
	out := make([]keyring.Result, n)
	seen := make([]bool, n)
	for _, r := range answer.GetResults() {
		i := r.GetRequest()
		if i >= uint64(n) || seen[i] {
			return nil, fmt.Errorf("server answered request %d of %d, or twice", i, n)
		}
		seen[i] = true
		if r.GetError() != "" || r.GetCode() != 0 || len(r.GetChain()) == 0 {
			code := codes.Code(r.GetCode())
			if code == codes.OK {
				code = codes.Internal
			}
			out[i] = keyring.Result{
				Err:        status.Error(code, r.GetError()),
				RetryAfter: time.Duration(r.GetRetryAfter()) * time.Millisecond,
			}
			continue
		}
		out[i] = keyring.Result{Chain: r.GetChain()}
	}
	for i, ok := range seen {
		if !ok {
			return nil, fmt.Errorf("server left request %d of %d without an answer", i, n)
		}
	}
	return out, nil
}

// expect opens a place for the answer to a new batch.
func (s *session) expect() (uint64, <-chan *wire.IssueResults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	answer := make(chan *wire.IssueResults, 1)
	s.waiting[s.next] = answer
	return s.next, answer
}

func (s *session) forget(number uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiting, number)
	if len(s.waiting) == 0 && s.quiet != nil {
		close(s.quiet)
		s.quiet = nil
	}
}

// results hands an answer to whoever waits for it, if anyone still does.
func (s *session) results(r *wire.IssueResults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if answer, ok := s.waiting[r.GetBatch()]; ok {
		select {
		case answer <- r:
		default: // a second answer to one batch
		}
	}
}

// drained is closed once no batch waits for its answer.
func (s *session) drained() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	quiet := make(chan struct{})
	if len(s.waiting) == 0 {
		close(quiet)
	} else {
		s.quiet = quiet
	}
	return quiet
}

// ship sends connection records, one batch at a time, and forgets a batch
// once the server has it durably.
func (s *session) ship(ctx context.Context) error {
	spool := s.client.cfg.Spool
	for sequence := uint64(1); ; sequence++ {
		batch, err := spool.Next(ctx)
		if err != nil {
			return err
		}
		frame := &wire.NodeFrame{Frame: &wire.NodeFrame_Records{Records: &wire.RecordBatch{
			Sequence: sequence, Events: batch.Events, Lost: batch.Lost,
		}}}
		if err := s.put(ctx, frame); err != nil {
			return err
		}
		for acked := uint64(0); acked < sequence; {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case acked = <-s.acks:
			}
		}
		spool.Done(batch)
	}
}
