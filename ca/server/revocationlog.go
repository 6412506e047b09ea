// This file holds how the revocations of a restored store are brought up to
// the log, which a restore does not touch.

package server

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca/store"
)

// loggedRevocations are the revocations as the log tells them.
type loggedRevocations struct {
	now     time.Time
	byKey   map[string]revocation // what ended is over
	serials map[string][]string   // live ones, by the ID of their node
}

// add takes the next event of the log.
func (l *loggedRevocations) add(e audit.Event) {
	if e.Kind == audit.KindIssuance && e.Role == audit.RoleWorkload && l.now.Before(e.NotAfter) {
		l.serials[e.Node] = append(l.serials[e.Node], e.Serial)
		return
	}
	name, ok := strings.CutPrefix(e.Document, "Revocation ")
	if e.Kind != audit.KindRevocation || !ok {
		return
	}
	kind, target, _ := strings.Cut(name, "/")
	r := revocation{Kind: kind, Target: target, At: e.Time, Ends: e.NotAfter, Actor: e.Actor, Reason: e.Detail}
	switch e.Reason {
	case actionRevoked:
		switch kind {
		case revokedSerial:
			r.Serials = []string{target}
		case revokedNode:
			r.Serials = l.serials[e.Node]
		}
	case actionLifted:
		r = l.byKey[r.key()]
		r.Lifted, r.Ends = e.Time, e.NotAfter
	case actionEnded:
		r.over = true
	}
	if r.Kind != "" {
		l.byKey[r.key()] = r
	}
}

// reconcileRevocations puts what the log knows and the store lacks into it:
// a backup from before a revocation must not undo it, nor one from before a
// lift revoke anew.
func (s *Server) reconcileRevocations(ctx context.Context, now time.Time) error {
	l := loggedRevocations{now: now, byKey: map[string]revocation{}, serials: map[string][]string{}}
	err := s.authorityLog.Read(s.authorityLog.Stats().First, func(e audit.Entry) error {
		l.add(e.Event)
		return nil
	})
	if err != nil {
		return err
	}
	var ops []store.Op
	for key, r := range l.byKey {
		if r.over || r.ended(now) {
			ops = append(ops, store.Delete(key))
			continue
		}
		raw, err := json.Marshal(r)
		if err != nil {
			return err
		}
		ops = append(ops, store.Put(key, raw))
	}
	if len(ops) == 0 {
		return nil
	}
	if _, err := s.store.Txn(ctx, nil, ops); err != nil {
		return err
	}
	return s.documents.load(ctx)
}
