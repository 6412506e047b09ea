// This file holds the acts of revoking: first issuance is held, then the
// denial is stored and recorded, and only then pushed.

package server

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca/store"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/wire"
)

// revoker makes revocations, lifts them, and ends those whose certificates
// have.
type revoker struct {
	server *Server
	wake   chan struct{}
}

// What became of a revocation, as the log says it.
const (
	actionRevoked = "revoked"
	actionLifted  = "lifted"
	actionEnded   = "ended"
)

// revoked is what a revocation concerns.
type revoked struct {
	revocation
	exposed []exposed
}

// revoke denies what r's kind and target name. A repeated revocation is
// brought up to now. While it is made nothing is issued, so that each
// certificate is either in the index by then or issued under it.
func (v *revoker) revoke(ctx context.Context, now time.Time, actor string, r revocation, dry bool) (revoked, error) {
	s := v.server
	d := s.documents
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.settle(ctx); err != nil {
		return revoked{}, unsettled(err)
	}
	s.issuing.Lock()
	defer s.issuing.Unlock()
	r.At, r.Actor = now, actor
	out, err := v.complete(r, now)
	if err != nil || dry {
		return out, err
	}
	if out.Kind == revokedNode && len(out.Serials) == 0 {
		return out, nil // there is nothing to deny
	}
	size := 0
	for key, held := range d.now.Load().revoked {
		if key != out.key() {
			size += held.size()
		}
	}
	if size += out.size(); size > maxDenied {
		return revoked{}, status.Errorf(codes.ResourceExhausted,
			"%d certificates would be revoked at once, more than %d: replace their issuer instead (aval rotation start intermediate)", size, maxDenied)
	}
	if err := v.put(ctx, now, actor, actionRevoked, out.revocation); err != nil {
		return revoked{}, err
	}
	if out.Kind == revokedIssuer {
		s.sessions.closeAll(&wire.Goodbye{Reason: "an issuer was revoked; the connection is verified anew"})
	}
	return out, nil
}

// complete checks a revocation and finds what it concerns.
func (v *revoker) complete(r revocation, now time.Time) (revoked, error) {
	s := v.server
	var pick func(node string, e liveSVID) bool
	switch r.Kind {
	case revokedSerial:
		r.Target = strings.ToLower(r.Target)
		pick = func(_ string, e liveSVID) bool { return e.serial == r.Target }
	case revokedNode:
		id, err := identity.NodeID(s.cfg.TrustDomain, r.Target)
		if _, known := s.nodes.get(r.Target); err != nil || !known {
			return revoked{}, status.Errorf(codes.NotFound, "node %s is not known", clip(r.Target, 80))
		}
		pick = func(node string, _ liveSVID) bool { return node == id.String() }
	case revokedID:
		id, err := v.workload(r.Target)
		if err != nil {
			return revoked{}, err
		}
		r.Target = id.String()
		pick = func(_ string, e liveSVID) bool { return e.id == r.Target }
	case revokedIssuer:
		end, err := v.issuerEnd(r.Target, now)
		if err != nil {
			return revoked{}, err
		}
		r.Ends = end
		pick = func(_ string, e liveSVID) bool { return e.issuer == r.Target }
	default:
		return revoked{}, status.Errorf(codes.InvalidArgument, "kind %q is none of serial, id, node, issuer", clip(r.Kind, 40))
	}
	out := revoked{revocation: r, exposed: s.live.pick(now, pick)}
	if r.Kind == revokedSerial && len(out.exposed) == 0 {
		return revoked{}, status.Errorf(codes.NotFound, "no live SVID of a workload has the serial %q: it has ended, or was never issued", clip(r.Target, 80))
	}
	if r.Kind == revokedSerial || r.Kind == revokedNode {
		for _, e := range out.exposed {
			out.Serials = append(out.Serials, e.serial)
			if e.notAfter.After(out.Ends) {
				out.Ends = e.notAfter
			}
		}
	}
	return out, nil
}

// workload returns the ID that a SPIFFE ID or a registration names.
func (v *revoker) workload(target string) (identity.ID, error) {
	if !strings.HasPrefix(target, "spiffe://") {
		ns, name, _ := strings.Cut(target, "/")
		h := v.server.documents.now.Load().docs[document.Key{Kind: document.Registration, Namespace: ns, Name: name}]
		if h == nil {
			return identity.ID{}, status.Errorf(codes.NotFound, "there is no registration %q", clip(target, 512))
		}
		return h.registration.ID, nil
	}
	id, err := identity.ParseID(target)
	switch {
	case err != nil:
		return identity.ID{}, status.Error(codes.InvalidArgument, err.Error())
	case id.TrustDomain() != v.server.cfg.TrustDomain:
		return identity.ID{}, status.Errorf(codes.InvalidArgument, "%s is not of the trust domain %s", id, v.server.cfg.TrustDomain)
	case id.Role() != identity.RoleWorkload:
		return identity.ID{}, status.Errorf(codes.InvalidArgument, "%s is not a workload's: a node is shut out by aval node evict", id)
	}
	return id, nil
}

// issuerEnd checks that an authority may be revoked, and says when the last of
// what it signed ends.
func (v *revoker) issuerEnd(ski string, now time.Time) (end time.Time, err error) {
	s := v.server
	raw, err := hex.DecodeString(ski)
	if err != nil || len(raw) != 20 || ski != strings.ToLower(ski) {
		return end, status.Errorf(codes.InvalidArgument, "issuer %q: a subject key identifier is 40 hex digits, in lower case", clip(ski, 80))
	}
	for _, c := range s.Credentials().SVID.Chain {
		if hex.EncodeToString(c.SubjectKeyId) == ski || hex.EncodeToString(c.AuthorityKeyId) == ski {
			return end, status.Errorf(codes.FailedPrecondition, "issuer %s still stands in the server's own chain: aval rotation start intermediate replaces it first", ski)
		}
	}
	known := false
	err = s.authorityLog.Read(s.authorityLog.Stats().First, func(e audit.Entry) error {
		if (e.Kind == audit.KindAuthorityCreated || e.Kind == audit.KindAuthorityRenewed) && strings.HasPrefix(e.KeySHA256, ski) {
			known = true
			if e.NotAfter.After(end) {
				end = e.NotAfter
			}
		}
		return nil
	})
	switch {
	case err != nil:
		return end, err
	case !known:
		return end, status.Errorf(codes.NotFound, "the log knows no authority %s", ski)
	case !now.Before(end):
		return end, status.Errorf(codes.FailedPrecondition, "issuer %s ended at %s", ski, end.UTC().Format(time.RFC3339))
	}
	return end, nil
}

// put stores, records and pushes a revocation. The caller holds documents.mu.
func (v *revoker) put(ctx context.Context, now time.Time, actor, action string, r revocation) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	op := store.Put(r.key(), raw)
	if r.over {
		op = store.Delete(r.key())
	}
	_, err = v.server.documents.write(ctx, now, written{ops: []store.Op{op}, revoked: []revocation{r},
		events: []audit.Event{r.event(now, actor, action, v.server.cfg.TrustDomain)}})
	if err != nil {
		return err
	}
	v.server.log.Warn("revocation", "action", action, "kind", r.Kind, "target", r.Target, "serials", len(r.Serials))
	select {
	case v.wake <- struct{}{}:
	default:
	}
	return nil
}

// lift lets an ID be issued again. What was issued before the revocation
// stays denied until it ends.
func (v *revoker) lift(ctx context.Context, now time.Time, actor, target string) (revocation, error) {
	s := v.server
	d := s.documents
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.settle(ctx); err != nil {
		return revocation{}, unsettled(err)
	}
	id, err := v.workload(target)
	if err != nil {
		return revocation{}, err
	}
	r, ok := d.now.Load().revoked[revocation{Kind: revokedID, Target: id.String()}.key()]
	switch {
	case !ok || !r.Lifted.IsZero():
		return revocation{}, status.Errorf(codes.NotFound,
			"%s is not revoked; the revocation of a serial, a node's SVIDs or an issuer cannot be lifted: new SVIDs are issued beside it", id)
	case now.Before(r.At.Add(2 * time.Second)):
		return revocation{}, status.Errorf(codes.FailedPrecondition, "%s was revoked this very moment: lift it in 2s, so that what was issued before can be told apart", id)
	}
	r.Lifted, r.Ends = now, r.At.Add(s.cfg.MaxTTL)
	for _, e := range s.live.pick(now, func(_ string, e liveSVID) bool { return e.id == r.Target }) {
		if e.notAfter.After(r.Ends) {
			r.Ends = e.notAfter
		}
	}
	return r, v.put(ctx, now, actor, actionLifted, r)
}

// Renew ends the revocations whose certificates have ended, and says when the
// next will. It is called by the server's loop.
func (v *revoker) Renew(ctx context.Context, now time.Time) time.Time {
	d := v.server.documents
	d.mu.Lock()
	defer d.mu.Unlock()
	var next time.Time
	due := slices.DeleteFunc(d.now.Load().sortedRevocations(), func(r revocation) bool {
		if r.Ends.IsZero() || r.ended(now) {
			return r.Ends.IsZero()
		}
		if at := r.Ends.Add(pruneSkew + time.Second); next.IsZero() || at.Before(next) {
			next = at
		}
		return true
	})
	for _, r := range due {
		r.over = true
		err := d.settle(ctx)
		if err == nil {
			err = v.put(ctx, now, "", actionEnded, r)
		}
		if err != nil {
			v.server.log.Warn("end of a revocation", "target", r.Target, "error", err)
			return now.Add(time.Minute)
		}
	}
	return next
}

// wireRevocation prints a revocation.
func wireRevocation(r revocation) *wire.Revocation {
	out := &wire.Revocation{Kind: r.Kind, Target: r.Target, At: r.At.UnixMilli(), Actor: r.Actor, Reason: r.Reason, Serials: uint32(len(r.Serials))}
	if !r.Ends.IsZero() {
		out.Ends = r.Ends.UnixMilli()
	}
	if !r.Lifted.IsZero() {
		out.Lifted = r.Lifted.UnixMilli()
	}
	return out
}

// maxReason bounds the text of a reason.
const maxReason = 1024

// Revoke makes certificates count for nothing; with dry_run it says which.
func (s adminService) Revoke(ctx context.Context, req *wire.RevokeRequest) (*wire.RevokeResponse, error) {
	if len(req.GetReason()) > maxReason {
		return nil, status.Errorf(codes.InvalidArgument, "reason of %d bytes, more than %d", len(req.GetReason()), maxReason)
	}
	r, err := s.revoker.revoke(ctx, time.Now(), s.actor(ctx), revocation{Kind: req.GetKind(), Target: req.GetTarget(), Reason: req.GetReason()}, req.GetDryRun())
	if err != nil {
		return nil, err
	}
	out := &wire.RevokeResponse{Revocation: wireRevocation(r.revocation), DryRun: req.GetDryRun()}
	for _, e := range r.exposed {
		out.Exposed = append(out.Exposed, &wire.ExposedSVID{SpiffeId: e.id, Serial: e.serial, Node: e.node, NotAfter: e.notAfter.UnixMilli()})
	}
	return out, nil
}

// ListRevocations returns the revocations in force, the newest first.
func (s adminService) ListRevocations(context.Context, *wire.ListRevocationsRequest) (*wire.ListRevocationsResponse, error) {
	out := &wire.ListRevocationsResponse{}
	for _, r := range s.documents.now.Load().sortedRevocations() {
		out.Revocations = append(out.Revocations, wireRevocation(r))
	}
	return out, nil
}

// LiftRevocation lets an identity be issued again.
func (s adminService) LiftRevocation(ctx context.Context, req *wire.LiftRevocationRequest) (*wire.Revocation, error) {
	r, err := s.revoker.lift(ctx, time.Now(), s.actor(ctx), req.GetTarget())
	if err != nil {
		return nil, err
	}
	return wireRevocation(r), nil
}
