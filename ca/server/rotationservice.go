// This file holds the operators' API of rotations.

package server

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/rotation"
)

// Targets of a rotation.
const (
	targetRoot         = "root"
	targetIntermediate = "intermediate"
	targetLeaves       = "leaves"
)

// Rotate takes an operator's word to a rotation.
func (s adminService) Rotate(ctx context.Context, req *wire.RotateRequest) (*wire.RotationState, error) {
	actor := s.actor(ctx)
	var err error
	switch req.GetTarget() {
	case targetRoot:
		err = s.rotateRoot(ctx, actor, req)
	case targetIntermediate, targetLeaves:
		if req.GetVerb() != "start" {
			return nil, status.Errorf(codes.InvalidArgument, "%s of %s: only start is known; leaves are issued anew at once and there is no step to take back",
				clip(req.GetVerb(), 40), req.GetTarget())
		}
		err = s.startReissue(ctx, actor, req)
	default:
		err = status.Errorf(codes.InvalidArgument, "target %q: there are root, intermediate and leaves", clip(req.GetTarget(), 40))
	}
	if err != nil {
		return nil, err
	}
	return s.rotationState(req.GetTarget(), req.GetName())
}

func (s *Server) rotateRoot(ctx context.Context, actor string, req *wire.RotateRequest) error {
	o := started{settle: time.Duration(req.GetSettle()) * time.Millisecond, manual: req.GetManual(), key: req.GetKey(), reason: clip(req.GetReason(), 512)}
	switch {
	case req.GetSettle() == 0:
		o.settle = DefaultSettle
	case req.GetSettle() < 0:
		o.settle = 0
	case req.GetSettle() > maxSettle.Milliseconds():
		return status.Errorf(codes.InvalidArgument, "settle time: more than %s", maxSettle)
	}
	var err error
	switch req.GetVerb() {
	case "start":
		err = s.rollover.start(ctx, actor, o, false)
	case "taint":
		if at := s.rollover.taintable(); req.GetConfirm() != "" && req.GetConfirm() != at {
			return status.Errorf(codes.FailedPrecondition, "taint: the root to be tainted is %s by now, not %s as it was shown; look at the status again", at, clip(req.GetConfirm(), 80))
		}
		err = s.rollover.start(ctx, actor, o, true)
	case "abort":
		err = s.rollover.ask(ctx, actor, rotation.Abort, "", o.reason)
	case "advance":
		err = s.rollover.ask(ctx, actor, rotation.Advance, "", o.reason)
	case "force":
		err = s.rollover.ask(ctx, actor, rotation.Force, req.GetConfirm(), o.reason)
	default:
		return status.Errorf(codes.InvalidArgument, "verb %q: there are start, abort, advance, force and taint", clip(req.GetVerb(), 40))
	}
	s.rollover.poke()
	return err
}

// taintable returns the hash of the root that taint is about: the one that
// issues, or the old one of a rollover under way.
func (v *rollover) taintable() string {
	if r := v.current(); r.known() && !r.State.Phase.Rests() {
		return r.Old.hash()
	}
	return keptRoot{DER: v.server.trust.Load().rootCert.Raw}.hash()
}

// RotationStatus sends the state of a rotation, and again at each change
// where it is watched.
func (s adminService) RotationStatus(req *wire.RotationStatusRequest, stream wire.Admin_RotationStatusServer) error {
	target := req.GetTarget()
	if target == "" {
		target = targetRoot
	}
	for {
		news := s.rollover.news()
		st, err := s.rotationState(target, req.GetName())
		if err != nil {
			return err
		}
		if err := stream.Send(st); err != nil || !req.GetWatch() {
			return err
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-news:
		}
	}
}

func (s *Server) rotationState(target, name string) (*wire.RotationState, error) {
	switch target {
	case targetRoot:
		return s.rollover.state(time.Now()), nil
	case targetIntermediate, targetLeaves:
		return s.reissueState(target, name, time.Now())
	}
	return nil, status.Errorf(codes.InvalidArgument, "target %q: there are root, intermediate and leaves", clip(target, 40))
}

// state prints the rollover at a moment.
func (v *rollover) state(now time.Time) *wire.RotationState {
	r := v.inForce()
	st := v.standing(r, now)
	out := &wire.RotationState{
		Target: targetRoot, Id: r.ID, Phase: r.State.Phase.String(), Emergency: r.State.Emergency, Manual: r.State.Manual,
		Settle: r.State.Settle.Milliseconds(), StartedBy: r.Actor, Reason: r.Reason, OldHash: r.Old.hash(), NewHash: r.New.hash(),
		Acked: uint32(st.acked), Live: uint32(st.live), Clock: now.UnixMilli(), Fault: v.lastFault(),
	}
	if !r.known() {
		out.NewHash, out.OldHash = "", keptRoot{DER: v.server.trust.Load().rootCert.Raw}.hash()
		return out
	}
	out.Since = r.State.Since.UnixMilli()
	if !st.highWater.IsZero() {
		out.HighWater = st.highWater.UnixMilli()
	}
	for _, s := range r.Steps {
		out.Steps = append(out.Steps, &wire.RotationStep{Phase: s.Phase.String(), At: s.At.UnixMilli(),
			Acked: uint32(s.Acked), Live: uint32(s.Live), Forced: s.Forced, Actor: s.Actor})
	}
	for _, h := range st.holders[:min(len(st.holders), maxShown)] {
		out.Holders = append(out.Holders, holderState(h))
	}
	out.Breaks = st.breaks(v.server.svidsOf)
	v.addNext(out, r, st, now)
	return out
}

// maxHolderProxies bounds the proxies that one holder names.
const maxHolderProxies = 32

func holderState(h holder) *wire.RotationHolder {
	out := &wire.RotationHolder{Node: h.node.Name, Connected: h.presence.connected, Since: h.since.UnixMilli(),
		Lacks: h.lacks, Proxies: h.presence.held.lagging[:min(len(h.presence.held.lagging), maxHolderProxies)]}
	if !h.presence.lastSeen.IsZero() {
		out.LastContact = h.presence.lastSeen.UnixMilli()
	}
	if !h.until.IsZero() {
		out.Until = h.until.UnixMilli()
	}
	return out
}

// addNext says what comes next, what it waits for, and the earliest safe time
// of it.
func (v *rollover) addNext(out *wire.RotationState, r rolloverRecord, st standing, now time.Time) {
	held := fmt.Sprintf("%d of %d nodes hold both roots", st.acked, st.live)
	switch r.State.Phase {
	case rotation.Prepared:
		out.Next, out.Gate = "published: both roots go into the bundles", "the new root's key and certificates are being made"
		return
	case rotation.Published:
		out.Next = "active: the new root issues, and every leaf is issued anew"
	case rotation.Active:
		out.Next = "retiring: nobody live serves a leaf of the old root"
		held = fmt.Sprintf("%d of %d nodes serve none of its leaves", st.acked, st.live)
	case rotation.Retiring:
		out.Next = "removed: the old root leaves the bundles"
		held = fmt.Sprintf("%d of %d nodes serve none of its leaves", st.acked, st.live)
	default:
		return
	}
	out.Gate = held
	if !st.clean() {
		// Silent nodes are let go when what they hold has ended; connected
		// ones, nobody knows.
		var last time.Time
		for _, h := range st.holders {
			if h.presence.connected {
				return
			}
			if h.until.After(last) {
				last = h.until
			}
		}
		out.Earliest = last.UnixMilli()
		return
	}
	out.Earliest = now.UnixMilli()
	if wake := r.State.Wake(); wake.After(now) {
		out.Gate += fmt.Sprintf("; clients that acknowledge nothing settle for %s more", wake.Sub(now).Round(time.Second))
		out.Earliest = wake.UnixMilli()
	}
	if r.State.Manual {
		out.Gate += "; the step waits for aval rotation advance root"
	}
}
