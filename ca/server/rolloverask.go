// This file holds what operators ask of the root's rollover: its start, and
// each step out of turn.

package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/ca/keys"
	"github.com/aval-id/aval/rotation"
)

// started is what an operator asks a rollover to be.
type started struct {
	settle time.Duration
	manual bool
	key    string // KMS URI of the new key; "" means beside the old one
	reason string
}

// start begins a rollover, in an emergency where taint is set. One that is
// under way is the answer to a second.
func (v *rollover) start(ctx context.Context, actor string, o started, taint bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.startHeld(ctx, actor, o, taint); err != nil {
		return err
	}
	v.followed(ctx)
	return nil
}

// startHeld is start for who holds mu.
func (v *rollover) startHeld(ctx context.Context, actor string, o started, taint bool) error {
	r := v.current()
	if !r.State.Phase.Rests() {
		if taint {
			return v.step(ctx, rotation.Event{Occurrence: rotation.Taint}, v.standing(v.current(), time.Now()), actor, "the old root is tainted: "+o.reason, func(*rolloverRecord) {})
		}
		return status.Errorf(codes.FailedPrecondition, "a rollover of the root is under way already: %s, in the phase %s, started %s by %s; see aval rotation status",
			r.ID, r.State.Phase, firstStep(r).UTC().Format(time.RFC3339), r.Actor)
	}
	var id [4]byte
	rand.Read(id[:])
	next, err := v.begin(ctx, o, hex.EncodeToString(id[:]))
	if err != nil {
		return err
	}
	next.Actor, next.Reason = actor, o.reason
	occurrence := rotation.Start
	if taint {
		occurrence = rotation.Taint
	}
	return v.step(ctx, rotation.Event{Occurrence: occurrence}, v.standing(v.current(), time.Now()), actor, "started: "+o.reason, func(r *rolloverRecord) {
		state, steps := r.State, r.Steps[max(0, len(r.Steps)-1):]
		state.Settle, state.Manual = o.settle, o.manual && !taint
		sequence := r.Sequence
		*r = next
		r.State, r.Steps, r.Sequence = state, steps, sequence
	})
}

func firstStep(r rolloverRecord) time.Time {
	if len(r.Steps) > 0 {
		return r.Steps[0].At
	}
	return r.State.Since
}

// begin checks what a rollover starts from.
func (v *rollover) begin(ctx context.Context, o started, id string) (rolloverRecord, error) {
	t := v.server.trust.Load()
	if t.rootKey == "" {
		return rolloverRecord{}, status.Errorf(codes.FailedPrecondition,
			"the root's key is with %s: a rollover needs a root whose key this server opens by a URI", v.server.upstreamName())
	}
	if err := ca.CheckCrossRoom(t.rootCert); err != nil {
		return rolloverRecord{}, status.Error(codes.FailedPrecondition, err.Error())
	}
	next := rolloverRecord{ID: id, Old: keptRoot{DER: t.rootCert.Raw, Key: t.rootKey}, New: keptRoot{Key: o.key}}
	if o.key == "" {
		var err error
		if next.New.Key, err = keys.Beside(t.rootKey, "root-"+id); err != nil {
			return next, status.Errorf(codes.InvalidArgument, "key of the new root: %v", err)
		}
	} else if o.key == t.rootKey {
		return next, status.Error(codes.InvalidArgument, "key of the new root: it is the old root's; a rollover needs another key")
	}
	for _, k := range []keptRoot{next.Old, next.New} {
		if err := keys.Check(k.Key); err != nil {
			return next, status.Errorf(codes.InvalidArgument, "rollover of the root: %v", err)
		}
	}
	key, err := keys.Open(ctx, next.New.Key)
	if err == nil {
		err = key.Close()
	}
	if err != nil && !errors.Is(err, keys.ErrNotFound) {
		return next, status.Errorf(codes.InvalidArgument, "key of the new root: %v", err)
	}
	return next, nil
}

// ask takes an operator's event through the machine.
func (v *rollover) ask(ctx context.Context, actor string, o rotation.Occurrence, confirm, reason string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	r := v.current()
	st := v.standing(v.current(), time.Now())
	if o == rotation.Force && confirm != "" && confirm != r.ID+"/"+r.State.Phase.String() {
		return status.Errorf(codes.FailedPrecondition, "force: the rollover is %s in the phase %s by now, not %s as it was shown; look at the status again",
			r.ID, r.State.Phase, clip(confirm, 40))
	}
	why := string(o)
	if reason != "" {
		why += ": " + clip(reason, 512)
	}
	if o == rotation.Force {
		why += "; " + st.radius(v.server.svidsOf)
	}
	var change func(*rolloverRecord)
	if o == rotation.Abort {
		// The key's place stays in the record until the key is destroyed.
		change = func(r *rolloverRecord) { r.New.DER, r.Cross = nil, nil }
	}
	err := v.step(ctx, rotation.Event{Occurrence: o, Clean: st.clean()}, st, actor, why, change)
	if illegal, ok := errors.AsType[*rotation.Illegal](err); ok {
		text := illegal.Error()
		if len(st.holders) > 0 && (o == rotation.Advance) {
			text += ": " + strings.Join(st.names(8), ", ")
		}
		return status.Error(codes.FailedPrecondition, text)
	}
	if err != nil {
		return err
	}
	v.followed(ctx)
	return nil
}

// followed puts in force what an operator's step decided, so that the answer
// is true; where that fails the loop tries again.
func (v *rollover) followed(ctx context.Context) {
	if err := v.server.follow(context.WithoutCancel(ctx), time.Now()); err != nil {
		v.tell(err.Error())
	}
	v.poke()
}
