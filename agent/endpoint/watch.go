// This file holds watch: the looks at a process while nothing is pushed to it.

package endpoint

import (
	"context"
	"time"

	"github.com/aval-id/aval/agent/attest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// maxLooks bounds how many processes a second are looked at again while
// nothing is pushed to them.
const maxLooks = 200

// watch is the eye of one call on its process.
type watch struct {
	s     *Server
	who   *attest.Peer
	trace attest.Trace
	look  *time.Timer
}

// watch begins to look at the process of a call, until end.
func (s *Server) watch(who *attest.Peer) (*watch, error) {
	trace, err := who.Trace()
	if err != nil {
		return nil, unattested(err)
	}
	s.followed.Add(1)
	return &watch{s: s, who: who, trace: trace, look: time.NewTimer(s.untilLook())}, nil
}

func (w *watch) end() {
	w.look.Stop()
	w.s.followed.Add(-1)
}

// untilLook is how long a stream waits before its process is looked at again:
// longer where there are many.
func (s *Server) untilLook() time.Duration {
	return max(s.cfg.LookEvery, time.Duration(s.followed.Load())*time.Second/maxLooks)
}

// wait returns once an SVID was renewed or, with renewed false, the roster
// changed. It fails when the call ends, and when the process is another
// program or user than it was, or gone.
func (w *watch) wait(ctx context.Context, svids, roster <-chan struct{}) (renewed bool, err error) {
	for {
		select {
		case <-ctx.Done():
			return false, status.FromContextError(ctx.Err()).Err()
		case <-svids:
			return true, nil
		case <-roster:
			return false, nil
		case <-w.look.C:
			if err := w.became(); err != nil {
				return false, err
			}
			w.look.Reset(w.s.untilLook())
		}
	}
}

// became looks. What cannot be seen now is looked at the next time.
func (w *watch) became() error {
	now, err := w.who.Trace()
	if err != nil {
		if err = unattested(err); status.Code(err) == codes.Unavailable {
			return nil
		}
		return err
	}
	if now != w.trace {
		return errChanged
	}
	return nil
}
