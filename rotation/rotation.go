// Package rotation says when a credential is due for renewal and holds the
// one loop that renews credentials. Decisions take the time as an argument;
// deadlines are wall-clock, so that a machine that was suspended wakes to a
// renewal.
//
// It knows nothing of certificates: what is renewed, and how, is the
// caller's. It stands on the ground floor and imports the standard library
// alone.
package rotation

import (
	"context"
	"math/rand/v2"
	"time"
)

// Jitter returns a random spread for Due, evenly in [-1, 1). Renewals that
// were issued together must not come back together.
func Jitter() float64 { return 2*rand.Float64() - 1 }

// Due returns when a credential that was issued at issued and ends at
// notAfter is to be renewed: at half its life, shifted by up to a tenth of
// its lifetime for a jitter in [-1, 1]. The half counts from the issue, not
// from a backdated NotBefore.
func Due(issued, notAfter time.Time, jitter float64) time.Time {
	life := notAfter.Sub(issued)
	if life <= 0 {
		return issued
	}
	jitter = max(-1, min(1, jitter))
	return issued.Add(life/2 + time.Duration(jitter*float64(life)/10)).Round(0)
}

// clockStep is how far a clock may be set back without a credential of its
// own becoming one of the future: what NotBefore is commonly backdated by.
const clockStep = time.Minute

// SetBack reports whether the clock that says now was set back since it said
// then. What was issued then is not valid yet, and what was planned then is
// late by as much.
func SetBack(then, now time.Time) bool { return now.Round(0).Before(then.Round(0).Add(-clockStep)) }

// Remaining returns which fraction of the lifetime is left at now, from 1 at
// the issue to 0 at the end and after it.
func Remaining(issued, notAfter, now time.Time) float64 {
	life := notAfter.Sub(issued)
	if life <= 0 || !now.Before(notAfter) {
		return 0
	}
	return min(1, float64(notAfter.Sub(now))/float64(life))
}

// Backoff returns how long to wait before try number attempt (from 0): it
// doubles from base up to limit and is spread over half of itself, so that
// many who failed together do not return together.
func Backoff(attempt int, base, limit time.Duration) time.Duration {
	d := base
	for range min(attempt, 40) {
		if d *= 2; d >= limit {
			d = limit
			break
		}
	}
	d = min(d, limit)
	return d/2 + rand.N(d/2+1)
}

// Pause waits for d and returns true, or returns false as soon as ctx ends.
func Pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
