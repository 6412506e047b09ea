// This file holds the tests of due times and of the renewal loop.

package rotation

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestDueAtHalfLifeWithinATenth(t *testing.T) {
	issued := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	end := issued.Add(10 * time.Hour)
	for jitter, want := range map[float64]time.Duration{0: 5 * time.Hour, 1: 6 * time.Hour, -1: 4 * time.Hour, 7: 6 * time.Hour} {
		if got := Due(issued, end, jitter).Sub(issued); got != want {
			t.Errorf("jitter %v: due after %v, want %v", jitter, got, want)
		}
	}
	if got := Due(end, issued, 1); !got.Equal(end) {
		t.Errorf("a credential without a life is due at %v", got)
	}
	for range 1000 {
		if j := Jitter(); j < -1 || j >= 1 {
			t.Fatalf("jitter %v", j)
		}
	}
}

func TestRemainingIsAFraction(t *testing.T) {
	issued := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	end := issued.Add(time.Hour)
	for at, want := range map[time.Duration]float64{-time.Hour: 1, 0: 1, 15 * time.Minute: 0.75, time.Hour: 0, 2 * time.Hour: 0} {
		if got := Remaining(issued, end, issued.Add(at)); got != want {
			t.Errorf("at %v: %v, want %v", at, got, want)
		}
	}
}

func TestBackoffGrowsToItsLimit(t *testing.T) {
	for attempt := range 100 {
		d := Backoff(attempt, 100*time.Millisecond, 10*time.Second)
		full := min(10*time.Second, 100*time.Millisecond<<min(attempt, 20))
		if d < full/2 || d > full {
			t.Fatalf("attempt %d: %v is not within half of %v", attempt, d, full)
		}
	}
}

// leaf is a credential of four hours that a month of rotations renews.
type leaf struct {
	issued, end time.Time
	due         time.Time
	renewals    int
	late        time.Duration
	fail        int
}

func (l *leaf) Renew(_ context.Context, now time.Time) time.Time {
	if now.Before(l.due) {
		return l.due
	}
	if l.fail > 0 {
		l.fail--
		return now.Add(Backoff(l.fail, time.Second, time.Minute))
	}
	if !l.end.IsZero() && now.After(l.end) {
		l.late = max(l.late, now.Sub(l.end))
	}
	l.issued, l.end = now, now.Add(4*time.Hour)
	l.due = Due(l.issued, l.end, Jitter())
	l.renewals++
	return l.due
}

func TestAMonthOfRotationsNeverExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*24*time.Hour)
		defer cancel()
		l := &leaf{fail: 5}
		if err := Loop(ctx, l, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		// Renewed every 1.6 to 2.4 hours.
		if l.late > 0 || l.renewals < 300 || l.renewals > 450 {
			t.Fatalf("%d renewals, %v late", l.renewals, l.late)
		}
	})
}

func TestAClockThatIsSetBackIsTold(t *testing.T) {
	now := time.Now()
	for d, want := range map[time.Duration]bool{0: false, time.Hour: false, -30 * time.Second: false, -61 * time.Second: true, -24 * time.Hour: true} {
		// The monotonic clock of the two says nothing.
		if got := SetBack(now, now.Round(0).Add(d)); got != want {
			t.Errorf("%v: %v", d, got)
		}
	}
}

func TestAWakeRenewsAtOnceAndCancelEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		calls := make(chan time.Time, 10)
		wake := make(chan struct{})
		done := make(chan error, 1)
		go func() {
			done <- Loop(ctx, renewFunc(func(now time.Time) time.Time { calls <- now; return time.Time{} }), wake)
		}()
		first := <-calls
		wake <- struct{}{}
		if again := <-calls; again.Sub(first) != 0 {
			t.Fatalf("the wake was served after %v", again.Sub(first))
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	})
}

type renewFunc func(time.Time) time.Time

func (f renewFunc) Renew(_ context.Context, now time.Time) time.Time { return f(now) }

func TestAPauseEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if began := time.Now(); !Pause(ctx, time.Second) || time.Since(began) != time.Second {
			t.Fatal("a pause was cut short")
		}
		if began := time.Now(); Pause(ctx, time.Hour) || time.Since(began) != 59*time.Second {
			t.Fatalf("a pause outlived its context by %v", time.Since(began)-59*time.Second)
		}
	})
}
