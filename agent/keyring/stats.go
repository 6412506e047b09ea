// This file holds the numbers that a ring tells about itself.

package keyring

import (
	"sync/atomic"
	"time"

	"github.com/aval-id/aval/rotation"
)

// counts grow for the life of the ring.
type counts struct{ issued, failed atomic.Uint64 }

// Stats describe a ring at one moment.
type Stats struct {
	SVIDs    int     // held and valid
	Fraction float64 // least part of a lifetime that is left of any of them; 1 where there are none
	Issued   uint64  // since the start, renewals included
	Failed   uint64  // requests without an SVID, since the start
}

// Stats returns the ring's numbers at now.
func (r *Ring) Stats(now time.Time) Stats {
	s := Stats{Fraction: 1, Issued: r.counts.issued.Load(), Failed: r.counts.failed.Load()}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.entries {
		if e.svid.IsZero() {
			continue
		}
		left := rotation.Remaining(e.svid.IssuedAt, e.svid.NotAfter(), now)
		s.Fraction = min(s.Fraction, left)
		if left > 0 {
			s.SVIDs++
		}
	}
	return s
}
