// This file holds orders to have SVIDs issued anew before they are due, and
// what becomes of revoked ones.

package keyring

import (
	"encoding/hex"
	"math/rand/v2"
	"time"

	"github.com/aval-id/aval/identity"
)

// backdate is how long before its issue a certificate's NotBefore lies.
const backdate = time.Minute

// Order says which credentials are to be issued anew: those that one of
// Issuers signed, and those of IDs.
type Order struct {
	Issuers map[string]bool // by subject key identifier in hex
	IDs     map[string]bool // by SPIFFE ID
	// Before spares what was issued from then on, by the server's clock; zero
	// spares nothing.
	Before time.Time
	// Spread is the time over which the requests are distributed.
	Spread time.Duration
}

// Covers reports whether a credential is to be issued anew.
func (o Order) Covers(svid identity.SVID) bool {
	leaf := svid.Leaf()
	if !o.Before.IsZero() && !leaf.NotBefore.Add(backdate).Before(o.Before) {
		return false
	}
	return o.Issuers[hex.EncodeToString(leaf.AuthorityKeyId)] || o.IDs[svid.ID.String()]
}

// Due returns when a credential of the order is to be asked for: at a moment
// of its spread, drawn anew each time.
func (o Order) Due(now time.Time) time.Time {
	if o.Spread <= 0 {
		return now
	}
	return now.Add(rand.N(o.Spread))
}

// Reissue makes what an order covers due within its spread, what is under way
// too, once it has arrived. What nobody wants is dropped then, as at any
// renewal.
func (r *Ring) Reissue(o Order, now time.Time) {
	r.mu.Lock()
	n := 0
	for _, e := range r.entries {
		if e.flying {
			e.orders = append(e.orders, o)
		}
		if e.svid.IsZero() || !o.Covers(e.svid) {
			continue
		}
		if due := o.Due(now); due.Before(e.due) {
			e.due, n = due, n+1
		}
	}
	r.mu.Unlock()
	if n > 0 {
		r.logger.Info("SVIDs are issued anew on the server's order", "svids", n, "spread", o.Spread)
	}
	r.poke()
}

// Discard forgets the SVIDs that revoked picks, with their keys, and asks for
// new ones at once.
func (r *Ring) Discard(revoked func(identity.SVID) bool, now time.Time) {
	r.mu.Lock()
	n := 0
	for _, e := range r.entries {
		if e.svid.IsZero() || !revoked(e.svid) {
			continue
		}
		e.svid, e.due, e.planned, e.attempt, e.settled, e.err = identity.SVID{}, now, now, 0, false, nil
		for l := range e.leases {
			l.poke()
		}
		n++
	}
	r.mu.Unlock()
	if n == 0 {
		return
	}
	r.logger.Warn("SVIDs are revoked: new ones are asked for", "svids", n)
	r.changed()
	r.poke()
}
