// This file holds rollovers that begin by themselves, at two thirds of a
// root's life, and what is said loudly where that is missed.

package server

import (
	"context"
	"time"

	"github.com/aval-id/aval/rotation"
)

// automaticActor is who starts a rollover that nobody asked for.
const automaticActor = "server"

// automatic starts a rollover where the root is due for one, inside the
// maintenance window, and returns when to look again. Past nine tenths of the
// root's life no window holds it back. The caller holds mu.
func (v *rollover) automatic(ctx context.Context, now time.Time) (time.Time, error) {
	s := v.server
	root := certificate{roleRoot, s.trust.Load().rootCert}
	due := rotation.DueAt(root.issued(), root.cert.NotAfter, 2, 3)
	if now.Before(due) {
		return due, nil
	}
	missed, next := overdue(due, root.cert.NotAfter, now)
	opens := s.cfg.MaintenanceWindow.Next(now)
	if !now.Before(rotation.DueAt(root.issued(), root.cert.NotAfter, 9, 10)) {
		opens = now
	}
	if s.cfg.ManualRootRotation || opens.After(now) {
		if missed > v.warned {
			v.warned = missed
			s.log.Error("the root is due for a rollover: aval rotation start root", "not_after", root.cert.NotAfter,
				"tenths_missed", missed, "window_opens", opens, "manual", s.cfg.ManualRootRotation)
		}
		if s.cfg.ManualRootRotation {
			return next, nil
		}
		return sooner(opens, next), nil
	}
	o := started{settle: DefaultSettle, reason: "two thirds of the root's life have passed"}
	return time.Time{}, v.startHeld(ctx, automaticActor, o, false)
}

// overdue says how many tenths of the time between due and the end have been
// missed, and when the next one will be.
func overdue(due, end, now time.Time) (missed int, next time.Time) {
	tenth := end.Sub(due) / 10
	if tenth <= 0 || now.Before(due) {
		return 0, time.Time{}
	}
	missed = 1 + int(min(now.Sub(due)/tenth, 9))
	return missed, due.Add(tenth * time.Duration(missed))
}

// overdueFraction returns how much of the time between an authority's due
// time and its end has passed: 0 where it is not due, 1 at the end.
func (s *Server) overdueFraction(role string, now time.Time) float64 {
	for _, c := range s.certificates() {
		if c.role != role {
			continue
		}
		due := rotation.DueAt(c.issued(), c.cert.NotAfter, 2, 3)
		if role == roleIntermediate {
			// Half its life, and the tenth by which that is spread.
			due = rotation.DueAt(c.issued(), c.cert.NotAfter, 6, 10)
		}
		left := c.cert.NotAfter.Sub(due)
		if now.Before(due) || left <= 0 {
			return 0
		}
		return min(1, float64(now.Sub(due))/float64(left))
	}
	return 0
}

// nodesNow returns how many nodes are live, and how many of them do not hold
// the rollover's next step back.
func (v *rollover) nodesNow(now time.Time) (live, acked int) {
	if v.server.trust.Load() == nil {
		return 0, 0
	}
	st := v.standing(v.inForce(), now)
	return st.live, st.acked
}
