// This file holds the outbox: events that are stored with their change and
// wait for the log, and what brings the two together again after a crash.

package server

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/ca/store"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/rotation"
)

// outgoing is an event as the outbox holds it. Its revision is the one at
// which the outbox's entry was made.
type outgoing struct {
	Event audit.Event `json:"event"`
}

func outboxKey(now time.Time, n int) string {
	var salt [8]byte
	rand.Read(salt[:])
	return fmt.Sprintf("%s%016x-%x-%06d", prefixOutbox, now.UnixNano(), salt, n)
}

// load settles what a crash left and puts the stored documents in force.
func (d *documents) load(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting = true
	return d.settle(ctx)
}

// settle records what waits in the outbox and puts the store's documents in
// force. The caller holds mu.
func (d *documents) settle(ctx context.Context) error {
	if !d.waiting {
		return nil
	}
	entries, _, err := d.store.Scan(prefixOutbox, 0)
	if err != nil {
		return err
	}
	if err := d.recordWaiting(ctx, entries); err != nil {
		return err
	}
	next, err := d.read()
	if err != nil {
		return err
	}
	d.now.Store(next)
	d.changed()
	if len(entries) > 0 {
		d.settled()
	}
	if err := d.clear(ctx, entries); err != nil {
		return err
	}
	d.waiting = false
	return nil
}

// recordWaiting records the outbox's events that the log does not hold yet.
func (d *documents) recordWaiting(ctx context.Context, entries []store.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	type mark struct {
		epoch, revision uint64
		document        string
	}
	missing := map[mark]audit.Event{}
	var order []mark
	first := time.Time{}
	epoch := d.store.Position().Epoch
	for _, e := range entries {
		var out outgoing
		if err := json.Unmarshal(e.Value, &out); err != nil {
			return fmt.Errorf("outbox entry %s: %w", e.Key, err)
		}
		ev := out.Event
		ev.Epoch, ev.Revision = epoch, e.Modified
		m := mark{ev.Epoch, ev.Revision, ev.Document}
		if first.IsZero() || ev.Time.Before(first) {
			first = ev.Time
		}
		missing[m] = ev
		order = append(order, m)
	}
	err := d.recorded(first, func(ev audit.Event) bool {
		delete(missing, mark{ev.Epoch, ev.Revision, ev.Document})
		return len(missing) > 0
	})
	if err != nil {
		return err
	}
	var events []audit.Event
	for _, m := range order {
		if ev, ok := missing[m]; ok {
			events = append(events, ev)
		}
	}
	if len(events) == 0 {
		return nil
	}
	_, err = d.recorder.RecordAll(ctx, events)
	return err
}

// read makes a snapshot of what the store holds.
func (d *documents) read() (*snapshot, error) {
	epoch := d.store.Position().Epoch
	entries, revision, err := d.store.Scan(prefixDocument, 0)
	if err != nil {
		return nil, err
	}
	next := newSnapshot(store.Position{Epoch: epoch, Revision: revision})
	for _, e := range entries {
		doc, err := document.FromJSON(e.Value)
		if err != nil {
			return nil, fmt.Errorf("stored document %s: %w", e.Key, err)
		}
		h, err := d.parseStored(doc, e.Value)
		if err != nil {
			return nil, fmt.Errorf("stored document %s: %w", e.Key, err)
		}
		h.revision = e.Modified
		next.docs[h.key] = h
		if h.key.Kind != document.Registration {
			if next.policies[h.key.Namespace] == nil {
				next.policies[h.key.Namespace] = map[document.Key]bool{}
			}
			next.policies[h.key.Namespace][h.key] = true
		}
	}
	revoked, err := d.readRevocations()
	if err != nil {
		return nil, err
	}
	return next.revoking(revoked), nil
}

// parseStored parses a document that was accepted once. Lifetimes outside of
// bounds that became narrower since are left to each issuance, and sources of
// keys that are no longer listed to each fetch.
func (d *documents) parseStored(doc document.Document, raw []byte) (*held, error) {
	p := d.parser
	p.workload = ca.Profile{Min: 0, Max: 1<<63 - 1}
	p.admits = nil
	h, _, err := p.parse(doc)
	if err != nil {
		return nil, err
	}
	h.json = raw
	return h, nil
}

func (d *documents) clear(ctx context.Context, entries []store.Entry) error {
	ops := make([]store.Op, 0, len(entries))
	for _, e := range entries {
		ops = append(ops, store.Delete(e.Key))
	}
	if len(ops) == 0 {
		return nil
	}
	_, err := d.store.Txn(ctx, nil, ops)
	return err
}

// run records what had to wait, each time a change could not be recorded,
// until ctx ends.
func (d *documents) run(ctx context.Context) error {
	for attempt := 0; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.retry:
		}
		timer := time.NewTimer(rotation.Backoff(attempt, 200*time.Millisecond, time.Minute))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		d.mu.Lock()
		err := d.settle(ctx)
		d.mu.Unlock()
		if err != nil {
			d.log.Error("recording of a stored change", "error", err)
			attempt++
			d.again()
			continue
		}
		attempt = 0
	}
}

func (d *documents) again() {
	select {
	case d.retry <- struct{}{}:
	default:
	}
}
