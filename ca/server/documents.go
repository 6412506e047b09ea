// This file holds the documents: how a change is checked, stored, recorded
// and put in force, in this order.

package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/ca/store"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/policy"
)

// Prefixes of the store's keys.
const (
	prefixDocument = "doc/"
	prefixOutbox   = "outbox/"
	prefixNode     = "node/"
	prefixToken    = "token/"
	prefixRevoked  = "revoked/"
)

// Bounds on what operators may declare.
const (
	maxDocumentsPerApply = 5000
	maxDocuments         = 200000
)

// documents are the documents of the trust domain. A change is written to the
// store together with its event (the outbox); the event is made durable in
// the log; only then does the change count. An event that the log did not
// take waits in the outbox, and no later change passes it.
type documents struct {
	store    store.Store
	recorder ca.Recorder
	recorded func(from time.Time, fn func(audit.Event) bool) error // reads the authority log
	parser   parser
	log      *slog.Logger
	changed  func() // wakes the sessions; never blocks
	settled  func() // tells that stored changes were recorded late; never blocks

	now   atomic.Pointer[snapshot]
	retry chan struct{} // tells run that the outbox is not empty

	mu      sync.Mutex // one change at a time
	waiting bool       // guarded by mu: the outbox may hold events
}

// planned is one document's change before it is stored.
type planned struct {
	edit
	before   *held
	action   string
	warnings []string
}

// The actions of a change.
const (
	actionCreated    = "created"
	actionConfigured = "configured"
	actionUnchanged  = "unchanged"
	actionDeleted    = "deleted"
)

func storeKey(k document.Key) string { return prefixDocument + k.Kind + "/" + k.Path() }

// commit stores the planned changes with their events, records, and puts them
// in force. The caller holds mu and has settled.
func (d *documents) commit(ctx context.Context, now time.Time, actor string, plan []planned) (store.Position, error) {
	var w written
	for _, p := range plan {
		if p.action == actionUnchanged {
			continue
		}
		if p.held == nil {
			w.ops = append(w.ops, store.Delete(storeKey(p.key)))
		} else {
			w.ops = append(w.ops, store.Put(storeKey(p.key), p.held.json))
		}
		w.events = append(w.events, p.event(now, actor))
		w.edits = append(w.edits, p.edit)
	}
	if len(w.edits) == 0 {
		return d.now.Load().position, nil
	}
	return d.write(ctx, now, w)
}

// written is a change of the store with what is recorded of it.
type written struct {
	conditions []store.Condition
	ops        []store.Op
	events     []audit.Event // at most one for each document
	edits      []edit        // of documents
	revoked    []revocation  // that come, or change, or end
}

// write stores a change with its events, records these, and puts it in force.
// The caller holds mu and has settled.
func (d *documents) write(ctx context.Context, now time.Time, w written) (store.Position, error) {
	var outbox []store.Entry
	for n, ev := range w.events {
		raw, err := json.Marshal(outgoing{ev})
		if err != nil {
			return store.Position{}, fmt.Errorf("event of the kind %s: %w", ev.Kind, err)
		}
		out := store.Entry{Key: outboxKey(now, n), Value: raw}
		outbox = append(outbox, out)
		w.ops = append(w.ops, store.Put(out.Key, raw))
	}
	position, err := d.store.Txn(ctx, w.conditions, w.ops)
	if err != nil {
		return store.Position{}, err
	}
	for i := range w.events {
		w.events[i].Epoch, w.events[i].Revision = position.Epoch, position.Revision
	}
	// The change is stored: whether its asker still waits matters no more.
	ctx = context.WithoutCancel(ctx)
	if _, err := d.recorder.RecordAll(ctx, w.events); err != nil {
		d.waiting = true
		d.again()
		return store.Position{}, &ca.Refusal{Cause: ca.CauseUnavailable, Reason: ca.ReasonNotRecorded,
			Err: fmt.Errorf("stored at %s and not in force until the log takes its record: %w", position, err)}
	}
	d.now.Store(d.now.Load().with(position, w.edits).revoking(w.revoked))
	d.changed()
	if err := d.clear(ctx, outbox); err != nil {
		d.log.Warn("clearing of the outbox", "error", err)
		d.waiting = true
		d.again()
	}
	return position, nil
}

func (p planned) event(now time.Time, actor string) audit.Event {
	ev := audit.Event{Time: now, Kind: audit.KindDocumentApplied, Verdict: audit.VerdictDone,
		Actor: actor, Document: p.key.String(), Detail: p.action}
	if p.held == nil {
		ev.Kind = audit.KindDocumentDeleted
		return ev
	}
	sum := sha256.Sum256(p.held.json)
	ev.DocumentSHA256 = hex.EncodeToString(sum[:])
	if !p.held.registration.IsZero() {
		ev.SPIFFEID = p.held.registration.ID.String()
	}
	return ev
}

// apply checks documents and, unless dry, puts them in force: all or none.
func (d *documents) apply(ctx context.Context, now time.Time, actor string, raw [][]byte, dry bool) ([]planned, store.Position, error) {
	if len(raw) > maxDocumentsPerApply {
		return nil, store.Position{}, status.Errorf(codes.InvalidArgument, "%d documents at once, more than %d", len(raw), maxDocumentsPerApply)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.settle(ctx); err != nil {
		return nil, store.Position{}, unsettled(err)
	}
	plan, err := d.plan(now, raw)
	if err != nil {
		return nil, store.Position{}, err
	}
	if dry {
		return plan, d.now.Load().position, nil
	}
	position, err := d.commit(ctx, now, actor, plan)
	return plan, position, err
}

func unsettled(err error) error {
	return &ca.Refusal{Cause: ca.CauseUnavailable, Reason: ca.ReasonNotRecorded,
		Err: fmt.Errorf("an earlier change waits for its record: %w", err)}
}

// plan parses every document and says what would change.
func (d *documents) plan(now time.Time, raw [][]byte) ([]planned, error) {
	current := d.now.Load()
	var faults []error
	plan := make([]planned, 0, len(raw))
	seen := map[document.Key]bool{}
	created := 0
	for _, text := range raw {
		doc, err := document.FromJSON(text)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		key := doc.Key()
		if seen[key] {
			faults = append(faults, doc.Errorf("metadata.name", key.String(), "", "the document is given twice"))
			continue
		}
		seen[key] = true
		p, err := d.planOne(now, doc, current.docs[key])
		if err != nil {
			faults = append(faults, err)
			continue
		}
		if p.action == actionCreated {
			created++
		}
		plan = append(plan, p)
	}
	if len(faults) > 0 {
		return nil, status.Error(codes.InvalidArgument, errors.Join(faults...).Error())
	}
	if n := len(current.docs) + created; n > maxDocuments {
		return nil, status.Errorf(codes.ResourceExhausted, "%d documents, more than %d", n, maxDocuments)
	}
	addConflicts(plan, current, d.parser.settings)
	return plan, nil
}

func (d *documents) planOne(now time.Time, doc document.Document, before *held) (planned, error) {
	stamp := now.UTC().Truncate(time.Second)
	if before != nil {
		stamp = before.doc.Metadata().CreationTimestamp
	}
	doc = doc.WithCreationTimestamp(stamp)
	h, warnings, err := d.parser.parse(doc)
	if err != nil {
		return planned{}, fmt.Errorf("%s: %w", doc.Key(), err)
	}
	p := planned{edit: edit{h.key, h}, before: before, action: actionCreated}
	switch {
	case before != nil && string(before.json) == string(h.json):
		p.action, p.edit.held = actionUnchanged, before
	case before != nil:
		p.action = actionConfigured
	}
	for _, w := range warnings {
		p.warnings = append(p.warnings, w.String())
	}
	return p, nil
}

// addConflicts warns where a PeerAuthentication would be ignored.
func addConflicts(plan []planned, current *snapshot, settings policy.Settings) {
	touched := map[document.Key]int{}
	docs := map[document.Key]document.Document{}
	for n, p := range plan {
		if p.key.Kind == document.PeerAuthentication {
			touched[p.key] = n
			docs[p.key] = p.held.doc
		}
	}
	if len(touched) == 0 {
		return
	}
	for k, h := range current.docs {
		if _, ok := docs[k]; !ok && k.Kind == document.PeerAuthentication {
			docs[k] = h.doc
		}
	}
	for loser, winner := range conflicts(docs, settings) {
		if n, ok := touched[loser]; ok {
			plan[n].warnings = append(plan[n].warnings, fmt.Sprintf("%s is ignored: %s covers the same and is older", loser, winner))
		}
	}
}

func conflicts(docs map[document.Key]document.Document, settings policy.Settings) map[document.Key]document.Key {
	var all []policy.PeerAuthentication
	for _, d := range docs {
		if pa, _, err := policy.ParsePeerAuthentication(d, settings); err == nil {
			all = append(all, pa)
		}
	}
	return policy.Conflicts(all)
}

// remove deletes documents, all or none; each must be there.
func (d *documents) remove(ctx context.Context, now time.Time, actor string, keys []document.Key, dry bool) ([]planned, store.Position, error) {
	if len(keys) > maxDocumentsPerApply {
		return nil, store.Position{}, status.Errorf(codes.InvalidArgument, "%d documents at once, more than %d", len(keys), maxDocumentsPerApply)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.settle(ctx); err != nil {
		return nil, store.Position{}, unsettled(err)
	}
	current := d.now.Load()
	seen := map[document.Key]bool{}
	var plan []planned
	for _, k := range keys {
		before, ok := current.docs[k]
		if !ok {
			return nil, store.Position{}, status.Errorf(codes.NotFound, "%s is not there", k)
		}
		if !seen[k] {
			seen[k] = true
			plan = append(plan, planned{edit: edit{key: k}, before: before, action: actionDeleted})
		}
	}
	if dry {
		return plan, current.position, nil
	}
	position, err := d.commit(ctx, now, actor, plan)
	return plan, position, err
}
