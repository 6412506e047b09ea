// This file holds the tests of windows.

package rotation

import (
	"testing"
	"time"
)

func TestAWindowOpensWhenItSays(t *testing.T) {
	monday := time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		window string
		at     time.Duration
		wait   time.Duration
	}{
		{"", 3 * time.Hour, 0},
		{"02:00-05:00", 3 * time.Hour, 0},
		{"02:00-05:00", 5 * time.Hour, 21 * time.Hour},
		{"23:00-01:00", 30 * time.Minute, 0},
		{"23:00-01:00", time.Hour, 22 * time.Hour},
		{"sat,SUN 02:00-05:00", 0, 5*24*time.Hour + 2*time.Hour},
		{"Mon 00:00-00:00", 23 * time.Hour, 0},
		{"Sun 22:00-02:00", time.Hour, 0},
	} {
		w, err := ParseWindow(c.window)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.Next(monday.Add(c.at)).Sub(monday.Add(c.at)); got != c.wait {
			t.Errorf("%q at %v: opens in %v, want %v", c.window, c.at, got, c.wait)
		}
	}
	for _, bad := range []string{"tomorrow", "02:00", "Sat", "Foo 02:00-05:00", "25:00-26:00", "Sat 02:00-05:00 x", "Sat, 02:00-03:00"} {
		if w, err := ParseWindow(bad); err == nil {
			t.Errorf("%q was taken as %v", bad, w)
		}
	}
}

func TestARootIsDueAtTwoThirds(t *testing.T) {
	if got := DueAt(began, began.Add(9*time.Hour), 2, 3); !got.Equal(began.Add(6 * time.Hour)) {
		t.Fatal(got)
	}
}

func FuzzWindow(f *testing.F) {
	f.Add("Sat,Sun 02:00-05:00", int64(0))
	f.Add("23:30-00:15", int64(1<<40))
	f.Fuzz(func(t *testing.T, text string, at int64) {
		w, err := ParseWindow(text)
		if err != nil {
			return
		}
		again, err := ParseWindow(w.String())
		if err != nil || again != w {
			t.Fatalf("%q prints as %q: %v", text, w, err)
		}
		now := time.Unix(at%(1<<33), 0)
		if next := w.Next(now); next.Before(now.Truncate(time.Second)) || next.Sub(now) > 8*24*time.Hour || !w.Next(next).Equal(next) {
			t.Fatalf("%q at %v opens at %v", w, now, next)
		}
	})
}
