// This file holds entitlement: the one loop that follows what a process is
// entitled to, for every streaming call.

package endpoint

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/aval-id/aval/agent/attest"
	"github.com/aval-id/aval/agent/keyring"
	"github.com/aval-id/aval/agent/roster"
	"github.com/aval-id/aval/identity"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// moment is what a process is entitled to now: whole, with SVIDs where the
// call wants them. What could not be had is left out.
type moment struct {
	roster *roster.Roster
	svids  []identity.SVID
	regs   []*roster.Registration // that svids follow from
}

// follower says what one call makes of its moments.
type follower struct {
	// choose narrows the registrations that match, and refuses.
	choose func(matches []*roster.Registration) ([]*roster.Registration, error)
	// keys says that the call needs SVIDs.
	keys bool
	// push sends the moment unless nothing of it is new. It calls check
	// before it sends.
	push func(m moment, check func() error) error
}

// syncPatience bounds how long a call waits for the first snapshot.
const syncPatience = 5 * time.Second

// errNotSynced is the answer while there is no complete snapshot: the caller
// may try again.
var errNotSynced = status.Error(codes.Unavailable, "the agent holds no snapshot of its server yet")

// follow runs a streaming call: it pushes at once, and then at each change of
// the roster or of an SVID, until the call ends or the process is entitled to
// nothing any more. The process is attested at the start, again before each
// push, and from time to time between them; one that became another ends the
// call.
func (s *Server) follow(ctx context.Context, f follower) error {
	who, err := caller(ctx)
	if err != nil {
		return err
	}
	watch, err := s.watch(who)
	if err != nil {
		return err
	}
	defer watch.end()
	view, changed, err := s.firstView(ctx)
	if err != nil {
		return err
	}
	seen, err := s.attributes(who, view)
	if err != nil {
		return err
	}
	lease := s.cfg.Ring.Lease()
	defer lease.Close()
	want, err := s.entitle(view, seen, f, lease)
	if err != nil {
		return err
	}
	pushed := false
	for {
		m, ready, err := s.moment(want, time.Now(), lease)
		if err != nil && !pushed {
			return err // later, what the caller has serves it until its end
		}
		if ready {
			if err := f.push(m, func() error { return s.unchanged(who, view, seen) }); err != nil {
				return err
			}
			pushed = true
		}
		renewed, err := watch.wait(ctx, lease.Changed(), changed)
		if err != nil {
			return err
		}
		if renewed {
			continue
		}
		if view, changed = s.cfg.Feed.Current(); view == nil {
			return errNotSynced
		}
		if seen, err = s.withDigest(who, view, seen); err != nil {
			return err
		}
		if want, err = s.entitle(view, seen, f, lease); err != nil {
			return err
		}
	}
}

// firstView returns the roster of the moment. While there is none it waits a
// little: a workload that starts with its agent is served the moment the
// snapshot is there, rather than after its client's back-off.
func (s *Server) firstView(ctx context.Context) (*roster.Roster, <-chan struct{}, error) {
	limit := time.NewTimer(syncPatience)
	defer limit.Stop()
	for {
		view, changed := s.cfg.Feed.Current()
		if view != nil {
			return view, changed, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, nil, status.FromContextError(ctx.Err()).Err()
		case <-limit.C:
			return nil, nil, errNotSynced
		}
	}
}

// wanted is what a call follows under one roster.
type wanted struct {
	roster   *roster.Roster
	regs     []*roster.Registration
	subjects []keyring.Subject // of regs; nil where the call wants no SVIDs
}

// entitle works out what the process is entitled to under a roster, and asks
// for the SVIDs that the call wants.
func (s *Server) entitle(view *roster.Roster, seen identity.Attributes, f follower, lease *keyring.Lease) (w wanted, err error) {
	matches := view.Match(seen)
	if matches, err = notRevoked(view, matches); err != nil {
		return wanted{}, err
	}
	if len(matches) == 0 {
		return wanted{}, errNoIdentity(seen)
	}
	if f.choose != nil {
		if matches, err = f.choose(matches); err != nil {
			return wanted{}, err
		}
	}
	w = wanted{roster: view, regs: matches}
	if !f.keys {
		return w, nil
	}
	for _, reg := range matches {
		w.subjects = append(w.subjects, keyring.SubjectOf(reg.Registration))
	}
	lease.Want(w.subjects)
	return w, nil
}

// moment joins what is wanted with the SVIDs that are there. It is not ready
// while some of them are under way for the first time; none at all is an
// error.
func (s *Server) moment(w wanted, now time.Time, lease *keyring.Lease) (m moment, ready bool, err error) {
	m = moment{roster: w.roster}
	if w.subjects == nil {
		return m, true, nil
	}
	held, settled, err := lease.SVIDs(now)
	if !settled {
		return m, false, nil
	}
	for i, reg := range w.regs {
		if svid, ok := held[w.subjects[i]]; ok && w.roster.Denials.DeniesSVID(svid) == "" {
			m.svids = append(m.svids, svid.WithHint(reg.Hint))
			m.regs = append(m.regs, reg)
		}
	}
	if len(m.svids) == 0 {
		return m, false, unavailable(err)
	}
	return m, true, nil
}

// withDigest reads the digest of the caller's executable once some
// registration asks for digests and the last reading has none.
func (s *Server) withDigest(who *attest.Peer, view *roster.Roster, seen identity.Attributes) (identity.Attributes, error) {
	if !view.Hashes || seen[attest.SHA256] != nil {
		return seen, nil
	}
	again, err := s.attributes(who, view)
	if err != nil {
		return nil, err
	}
	if !alike(seen, again) {
		return nil, errChanged
	}
	return again, nil
}

// unavailable words the lack of every SVID, which may pass.
func unavailable(err error) error {
	if err == nil {
		err = errors.New("no SVID was issued yet")
	}
	return status.Errorf(codes.Unavailable, "no SVID to serve: %v", err)
}

// errChanged ends the streams of a process that became another.
var errChanged = status.Error(codes.PermissionDenied, "the process changed what it was attested by")

// attributes attests the caller.
func (s *Server) attributes(who *attest.Peer, view *roster.Roster) (identity.Attributes, error) {
	var hashes *attest.Hashes
	if view.Hashes {
		hashes = &s.hashes
	}
	a, err := who.Attributes(hashes)
	if err != nil {
		return nil, unattested(err)
	}
	return a, nil
}

// unattested is the answer to a caller that could not be attested: what this
// process lacks for it may be there later.
func unattested(err error) error {
	for _, passing := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		if errors.Is(err, passing) {
			return status.Errorf(codes.Unavailable, "caller cannot be attested now: %v", err)
		}
	}
	return status.Errorf(codes.PermissionDenied, "caller cannot be attested: %v", err)
}

// unchanged attests the caller again and compares.
func (s *Server) unchanged(who *attest.Peer, view *roster.Roster, seen identity.Attributes) error {
	again, err := s.attributes(who, view)
	if err != nil {
		return err
	}
	if !alike(seen, again) || view.Hashes && seen[attest.SHA256] != nil && again[attest.SHA256] == nil {
		return errChanged
	}
	return nil
}

// alike compares two readings of one process. A digest counts only where both
// have one.
func alike(a, b identity.Attributes) bool {
	if a[attest.SHA256] == nil || b[attest.SHA256] == nil {
		a, b = without(a, attest.SHA256), without(b, attest.SHA256)
	}
	return a.Equal(b)
}

func without(a identity.Attributes, name string) identity.Attributes {
	out := make(identity.Attributes, len(a))
	for k, v := range a {
		if k != name {
			out[k] = v
		}
	}
	return out
}

// notRevoked leaves out registrations whose identity is revoked. Where that
// leaves none the caller is told so.
func notRevoked(view *roster.Roster, matches []*roster.Registration) ([]*roster.Registration, error) {
	left := make([]*roster.Registration, 0, len(matches))
	for _, reg := range matches {
		if !view.Denials.Bars(reg.ID) {
			left = append(left, reg)
		}
	}
	if len(left) == 0 && len(matches) > 0 {
		return nil, status.Errorf(codes.PermissionDenied, "no identity issued: %s is revoked", names(matches))
	}
	return left, nil
}

// errNoIdentity tells the caller what was seen of it, which is its own.
func errNoIdentity(seen identity.Attributes) error {
	return status.Error(codes.PermissionDenied, fmt.Sprintf("no identity issued: no registration matches %s", seen))
}
