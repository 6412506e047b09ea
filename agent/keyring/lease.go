// This file holds Lease: what one stream wants of the ring.

package keyring

import (
	"errors"
	"fmt"
	"time"

	"github.com/aval-id/aval/identity"
)

// Lease is the want of one stream. While it is open the ring keeps its
// subjects renewed. It is used by one goroutine.
type Lease struct {
	ring    *Ring
	changed chan struct{}
	wanted  []Subject
}

// Lease opens a lease that wants nothing yet.
func (r *Ring) Lease() *Lease { return &Lease{ring: r, changed: make(chan struct{}, 1)} }

// Changed receives after an SVID of the lease was issued, renewed, refused or
// dropped.
func (l *Lease) Changed() <-chan struct{} { return l.changed }

// Want replaces what the lease wants. What the ring lacks is asked for.
func (l *Lease) Want(subjects []Subject) {
	r := l.ring
	r.mu.Lock()
	wanted := make(map[Subject]bool, len(subjects))
	missing := false
	for _, s := range subjects {
		wanted[s] = true
		e, ok := r.entries[s]
		if !ok {
			e = &entry{subject: s, leases: make(map[*Lease]struct{})}
			r.entries[s] = e
			missing = true
		}
		e.leases[l] = struct{}{}
	}
	for _, s := range l.wanted {
		if e, ok := r.entries[s]; ok && !wanted[s] {
			delete(e.leases, l)
		}
	}
	l.wanted = append(l.wanted[:0], subjects...)
	r.mu.Unlock()
	if missing {
		r.poke()
	}
}

// Close gives up what the lease wants. The SVIDs stay until they would be due
// for renewal.
func (l *Lease) Close() { l.Want(nil) }

// SVIDs returns the lease's valid SVIDs in the order of Want. Settled says
// that each subject was tried at least once, so that what is missing failed;
// err is then why the first of them did.
func (l *Lease) SVIDs(now time.Time) (svids map[Subject]identity.SVID, settled bool, err error) {
	r := l.ring
	r.mu.Lock()
	defer r.mu.Unlock()
	svids = make(map[Subject]identity.SVID, len(l.wanted))
	settled = true
	for _, s := range l.wanted {
		e, ok := r.entries[s]
		switch {
		case !ok:
			err = firstOf(err, errors.New("registration "+s.Registration+" is gone"))
		case !e.svid.IsZero() && now.Before(e.svid.NotAfter()):
			svids[s] = e.svid
		case !e.settled:
			settled = false
		case e.err != nil:
			err = firstOf(err, e.err)
		default:
			err = firstOf(err, fmt.Errorf("SVID for %s expired at %s", s.ID, e.svid.NotAfter().UTC().Format(time.RFC3339)))
		}
	}
	return svids, settled, err
}

func (l *Lease) poke() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

func firstOf(a, b error) error {
	if a != nil {
		return a
	}
	return b
}
