// This file holds Loop, the one renewal loop of the house.

package rotation

import (
	"context"
	"time"
)

// maxSleep bounds a single timer. Timers run on the monotonic clock, which
// stands still in a suspended machine, so the wall clock is looked at again
// at least this often.
const maxSleep = 30 * time.Second

// Renewer renews what is due. It is called by one goroutine at a time.
type Renewer interface {
	// Renew renews everything that is due at now and returns when to call
	// it next. A zero time means "nothing is scheduled": the loop then waits
	// for a wake. It handles its own errors and answers them with an earlier
	// next time; it returns early when ctx ends. It is called at once when
	// the clock was set back, and should then plan anew (SetBack).
	Renew(ctx context.Context, now time.Time) (next time.Time)
}

// Loop calls r.Renew when it is due by the wall clock, and at each receive
// from wake (which may be nil), until ctx ends. It returns ctx's error.
func Loop(ctx context.Context, r Renewer, wake <-chan struct{}) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next := r.Renew(ctx, time.Now().Round(0))
		if err := ctx.Err(); err != nil {
			return err
		}
		if !sleepUntil(ctx, timer, next, wake) {
			return ctx.Err()
		}
	}
}

// sleepUntil waits until the wall clock passes next, or is set back, or a wake
// comes. It returns false when ctx ends.
func sleepUntil(ctx context.Context, timer *time.Timer, next time.Time, wake <-chan struct{}) bool {
	began := time.Now()
	for {
		wait := maxSleep
		if !next.IsZero() {
			wait = min(wait, time.Until(next.Round(0)))
		}
		timer.Reset(max(wait, 0))
		select {
		case <-ctx.Done():
			return false
		case <-wake:
			return true
		case <-timer.C:
			now := time.Now()
			if SetBack(began.Add(now.Sub(began)), now) || !next.IsZero() && !now.Round(0).Before(next) {
				return true
			}
		}
	}
}
