// This file holds the demo's view of the server's two logs: a stream that is
// followed from the beginning, from which the steps take their facts.

package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/wire"
)

// recordLimit is how long a step waits for a record. Connections are on
// record within a second of what they tell.
const recordLimit = 5 * time.Second

// Names of the logs as the admin API gives them.
const (
	logAuthority   = "authority"
	logConnections = "connections"
)

// record is an entry and the log that holds it.
type record struct {
	log string
	audit.Entry
}

// records holds what the server's logs said since the demo began.
type records struct {
	follower sync.WaitGroup
	halt     context.CancelFunc

	mu    sync.Mutex
	all   []record
	err   error         // why the stream ended
	grown chan struct{} // closed, and replaced, whenever all or err changes
}

// follow opens the stream and reads it in a goroutine that stop ends.
func follow(ctx context.Context, admin wire.AdminClient) (*records, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := admin.Entries(ctx, &wire.EntriesRequest{Follow: true})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("follow the record: %w", err)
	}
	r := &records{halt: cancel, grown: make(chan struct{})}
	r.follower.Go(func() {
		for {
			answer, err := stream.Recv()
			var fresh []record
			if err == nil {
				fresh, err = decodeEntries(answer)
			}
			r.add(fresh, err)
			if err != nil {
				return
			}
		}
	})
	return r, nil
}

// decodeEntries parses what one message of the stream holds.
func decodeEntries(answer *wire.EntriesResponse) ([]record, error) {
	out := make([]record, 0, len(answer.GetEntries()))
	for _, data := range answer.GetEntries() {
		r := record{log: answer.GetLog()}
		if err := json.Unmarshal(data, &r.Entry); err != nil {
			return nil, fmt.Errorf("read an entry of log %s: %w", answer.GetLog(), err)
		}
		out = append(out, r)
	}
	return out, nil
}

func (r *records) add(fresh []record, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, fresh...)
	r.err = err
	close(r.grown)
	r.grown = make(chan struct{})
}

// stop ends the stream. It may be called on nil and more than once.
func (r *records) stop() {
	if r == nil {
		return
	}
	r.halt()
	r.follower.Wait()
}

// mark is the place before the next record.
func (r *records) mark() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.all)
}

// since gives the records from a mark that match.
func (r *records) since(from int, match func(record) bool) []record {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []record
	for _, one := range r.all[from:] {
		if match(one) {
			out = append(out, one)
		}
	}
	return out
}

// await gives the first record from a mark on that matches, and waits for it
// up to recordLimit.
func (r *records) await(ctx context.Context, from int, what string, match func(record) bool) (record, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, recordLimit, fmt.Errorf("there is none after %s", recordLimit))
	defer cancel()
	at, err := r.next(ctx, from, what, match)
	if err != nil {
		return record{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all[at], nil
}

// next gives the place of the first record from a mark on that matches, and
// waits for it until the context ends.
func (r *records) next(ctx context.Context, from int, what string, match func(record) bool) (int, error) {
	for {
		r.mu.Lock()
		seen, err, grown := r.all[from:], r.err, r.grown
		r.mu.Unlock()
		if at := slices.IndexFunc(seen, match); at >= 0 {
			return from + at, nil
		}
		from += len(seen)
		if err != nil {
			return 0, fmt.Errorf("wait for the record of %s: %w", what, err)
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for the record of %s: %w", what, context.Cause(ctx))
		}
	}
}

// issuanceTo matches the leaves issued to an ID.
func issuanceTo(ids ...string) func(record) bool {
	return func(r record) bool {
		if r.log != logAuthority || r.Kind != audit.KindIssuance {
			return false
		}
		return slices.Contains(ids, r.SPIFFEID)
	}
}

// inbound matches what a server's proxy recorded of connections of a verdict
// to a port.
func inbound(verdict audit.Verdict, port uint16) func(record) bool {
	return func(r record) bool {
		return r.log == logConnections && r.Kind == audit.KindConnection &&
			r.Direction == audit.DirectionInbound && r.Verdict == verdict && r.Port == port
	}
}
