// This file holds the rollover of the root as the server runs it: the state
// machine's events in, its actions done, each step durable and recorded before
// anything follows from it.

package server

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/ca/keys"
	"github.com/aval-id/aval/ca/store"
	"github.com/aval-id/aval/rotation"
)

// DefaultSettle is how long clients that acknowledge nothing are given before
// the old root is removed.
const DefaultSettle = 30 * time.Second

// maxSettle bounds what an operator may ask for.
const maxSettle = 30 * 24 * time.Hour

// rollover runs the root's rollover. The record that is in force is read
// without a lock; one step is taken at a time.
type rollover struct {
	server *Server
	began  time.Time // of the process, with its monotonic reading
	wake   chan struct{}
	stale  atomic.Bool                    // the store's record was recorded late
	record atomic.Pointer[rolloverRecord] // durable and recorded
	shown  atomic.Pointer[rolloverRecord] // the last one that the server's certificates follow

	mu       sync.Mutex // one step at a time, however long a key takes; guards what follows
	modified uint64     // the record's revision in the store
	cleaned  uint64     // sequence of the record whose remains were destroyed
	attempts int
	warned   int // tenths of the root's overdue time that were complained of

	watching sync.Mutex
	changed  chan struct{} // guarded by watching: closed at the next change
	fault    string        // guarded by watching: why the last try failed

	looking sync.Mutex
	lacking map[string]time.Time // guarded by looking: since when each node lacks
}

func newRollover(s *Server) *rollover {
	return &rollover{server: s, began: time.Now(), wake: make(chan struct{}, 1), lacking: map[string]time.Time{}}
}

// current returns the record in force, its zero value where there never was a
// rollover.
func (v *rollover) current() rolloverRecord {
	if r := v.record.Load(); r != nil {
		return *r
	}
	return rolloverRecord{}
}

// inForce returns the record that the server's certificates follow.
func (v *rollover) inForce() rolloverRecord {
	if r := v.shown.Load(); r != nil {
		return *r
	}
	return rolloverRecord{}
}

// known reports whether there ever was a rollover.
func (r rolloverRecord) known() bool { return r.Sequence > 0 }

// load takes the store's record.
func (v *rollover) load() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.reload()
}

// reload takes the store's record; the caller holds mu.
func (v *rollover) reload() error {
	v.stale.Store(false)
	e, ok, err := v.server.store.Get(rolloverKey)
	if err != nil {
		return fmt.Errorf("record of the rollover: %w", err)
	}
	if !ok {
		v.record.Store(nil)
		v.modified = 0
		return nil
	}
	r, err := parseRolloverRecord(e.Value)
	if err != nil {
		return err
	}
	v.modified = e.Modified
	v.record.Store(&r)
	return nil
}

// recordedLate is told by the documents' outbox that a step waited there.
func (v *rollover) recordedLate() {
	v.stale.Store(true)
	v.poke()
}

// poke has the gate looked at. It never blocks.
func (v *rollover) poke() {
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// news returns a channel that is closed at the next change.
func (v *rollover) news() <-chan struct{} {
	v.watching.Lock()
	defer v.watching.Unlock()
	if v.changed == nil {
		v.changed = make(chan struct{})
	}
	return v.changed
}

// tell tells watchers that something changed, and why the last try failed.
func (v *rollover) tell(fault string) {
	v.watching.Lock()
	v.fault = fault
	v.watching.Unlock()
	v.stir()
}

// stir has watchers look again.
func (v *rollover) stir() {
	v.watching.Lock()
	defer v.watching.Unlock()
	if v.changed != nil {
		close(v.changed)
		v.changed = nil
	}
}

func (v *rollover) lastFault() string {
	v.watching.Lock()
	defer v.watching.Unlock()
	return v.fault
}

// clock is the time by which silent nodes are let go: the wall clock, or what
// has run since the process began where the wall clock jumped ahead of it.
func (v *rollover) clock(now time.Time) time.Time {
	if ran := v.began.Round(0).Add(time.Since(v.began)); ran.Before(now) {
		return ran
	}
	return now.Round(0)
}

// Renew looks at the gate and takes what steps it lets pass. It is called by
// the renewal loop, at each acknowledgement and at each deadline.
func (v *rollover) Renew(ctx context.Context, _ time.Time) time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	next, err := v.proceed(ctx)
	if err == nil {
		v.attempts = 0
		v.tell("")
		return next
	}
	if ctx.Err() != nil {
		return time.Time{}
	}
	wait := rotation.Backoff(v.attempts, 200*time.Millisecond, time.Minute)
	v.attempts++
	v.tell(err.Error())
	v.server.log.Error("rollover of the root", "phase", v.current().State.Phase.String(), "error", err, "retry_in", wait)
	return time.Now().Add(wait)
}

// proceed takes steps until the gate holds one, and returns when to look
// again. The caller holds mu.
func (v *rollover) proceed(ctx context.Context) (time.Time, error) {
	if v.stale.Load() {
		if err := v.reload(); err != nil {
			return time.Time{}, err
		}
	}
	for {
		r := v.current()
		if r.known() {
			if err := v.server.follow(ctx, time.Now()); err != nil {
				return time.Time{}, err
			}
		}
		if r.State.Phase.Rests() {
			if err := v.clean(ctx, r); err != nil {
				return time.Time{}, err
			}
			next, err := v.automatic(ctx, time.Now())
			if err != nil || !next.IsZero() {
				return next, err
			}
			continue
		}
		if r.State.Phase == rotation.Prepared {
			if err := v.make(ctx, r); err != nil {
				return time.Time{}, err
			}
			continue
		}
		st := v.standing(v.current(), time.Now())
		if err := v.step(ctx, rotation.Event{Occurrence: rotation.Look, Clean: st.clean()}, st, "", "the gate held", nil); err != nil {
			return time.Time{}, err
		}
		if v.current().Sequence == r.Sequence {
			return sooner(v.current().State.Wake(), st.until), nil
		}
	}
}

// sooner returns the earlier of two times, of which zero is none.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// step takes one event through the machine. Where that moves it, the next
// record is stored with its audit event, recorded, and only then in force;
// what the machine asks for is done by proceed, again after a crash. The caller
// holds mu.
func (v *rollover) step(ctx context.Context, e rotation.Event, st standing, actor, why string, change func(*rolloverRecord)) error {
	now := time.Now()
	r := v.current()
	next, actions, err := r.State.Next(e, now)
	if err != nil {
		return err
	}
	if next.Phase == r.State.Phase && next.Emergency == r.State.Emergency && change == nil && e.Occurrence == rotation.Look {
		r.State = next
		v.record.Store(&r)
		if v.inForce().Sequence == r.Sequence {
			v.shown.Store(&r)
		}
		return nil
	}
	record := r.after(next, stepTaken{Phase: next.Phase, At: now.UTC(), Acked: st.acked, Live: st.live,
		Forced: e.Occurrence == rotation.Force, Actor: actor})
	if change != nil {
		change(&record)
	}
	detail := fmt.Sprintf("rollover %s of the root: %s → %s, %d of %d nodes; %s", record.ID, r.State.Phase, next.Phase, st.acked, st.live, why)
	if err := v.commit(ctx, now, record, actor, detail); err != nil {
		return err
	}
	v.forgetLacking()
	v.server.log.Info("rollover of the root", "id", record.ID, "from", r.State.Phase.String(), "to", next.Phase.String(),
		"acked", st.acked, "live", st.live, "forced", e.Occurrence == rotation.Force, "actions", fmt.Sprint(actions))
	v.tell("")
	return nil
}

// commit stores a record with its event, records it, and puts it in force.
// The caller holds mu.
func (v *rollover) commit(ctx context.Context, now time.Time, record rolloverRecord, actor, detail string) error {
	raw, err := record.text()
	if err != nil {
		return err
	}
	event, err := record.event(now, actor, detail)
	if err != nil {
		return err
	}
	d := v.server.documents
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.settle(ctx); err != nil {
		return unsettled(err)
	}
	if v.stale.Load() {
		if err := v.reload(); err != nil {
			return err
		}
		return status.Error(codes.Aborted, "an earlier step of the rollover was recorded only now: look at the status and try again")
	}
	position, err := d.write(ctx, now, written{
		conditions: []store.Condition{{Key: rolloverKey, Modified: v.modified}},
		ops:        []store.Op{store.Put(rolloverKey, raw)}, events: []audit.Event{event},
	})
	if err != nil {
		return fmt.Errorf("rollover of the root: %w", err)
	}
	v.modified = position.Revision
	v.record.Store(&record)
	return nil
}

// make makes the new root's key and its two certificates, and goes on to the
// next phase. The key is durable before a certificate names it; after a crash
// the same key serves.
func (v *rollover) make(ctx context.Context, r rolloverRecord) (err error) {
	s := v.server
	now := time.Now()
	key, _, err := keys.OpenOrCreate(ctx, r.New.Key, s.cfg.RootKeyType)
	if err != nil {
		return fmt.Errorf("new root: %w", err)
	}
	defer func() { err = errors.Join(err, key.Close()) }()
	old, oldKey, err := s.openRoot(ctx, s.trust.Load(), now)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, oldKey.Close()) }()
	draft, err := ca.DraftRoot(s.cfg.TrustDomain, key, now, s.cfg.RootTTL)
	if err != nil {
		return fmt.Errorf("new root: %w", err)
	}
	cert, err := s.issuer.ReleaseRoot(ctx, draft)
	if err != nil {
		return fmt.Errorf("new root: %w", err)
	}
	if draft, err = old.DraftCross(now, cert); err != nil {
		return fmt.Errorf("new root: %w", err)
	}
	crosses, err := s.issuer.Release(ctx, old, []*ca.Draft{draft})
	if err != nil {
		return fmt.Errorf("new root: %w", err)
	}
	return v.step(ctx, rotation.Event{Occurrence: rotation.Made}, v.standing(r, now), "", "key and certificates are made", func(r *rolloverRecord) {
		r.New.DER, r.Cross = cert.Raw, crosses[0].Leaf.Raw
	})
}

// clean destroys what a rollover that ended leaves behind: the key of the
// root that counts no more.
func (v *rollover) clean(ctx context.Context, r rolloverRecord) error {
	if !r.known() || v.cleaned == r.Sequence {
		return nil
	}
	dead := r.Old
	if r.State.Phase == rotation.Aborted {
		dead = r.New
	}
	if dead.Key != "" && dead.Key != r.issuing().Key {
		gone, err := keys.Destroy(dead.Key, filepath.Join(v.server.cfg.DataDir, keysDir))
		if err != nil {
			return err
		}
		v.server.log.Info("key of a root that counts no more", "key", keys.Name(dead.Key), "destroyed", gone)
	}
	v.cleaned = r.Sequence
	return nil
}
