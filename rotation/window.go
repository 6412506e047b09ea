// This file holds Window, the times of the week at which rotations may begin
// by themselves.

package rotation

import (
	"fmt"
	"strings"
	"time"
)

// Window is a span of time of some days of the week, in UTC. It may run past
// midnight. The zero value is always open. What prints also parses.
type Window struct {
	days   [7]bool // on which it begins, Sunday first
	from   time.Duration
	length time.Duration
}

var dayNames = []string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}

// ParseWindow reads "Sat,Sun 02:00-05:00", or "02:00-05:00" for every day,
// both in UTC. The empty text is the window that is always open.
func ParseWindow(text string) (Window, error) {
	if strings.TrimSpace(text) == "" {
		return Window{}, nil
	}
	fail := func(why string) (Window, error) {
		return Window{}, fmt.Errorf("window %q: %s; write it as 'Sat,Sun 02:00-05:00' or '02:00-05:00', in UTC", text, why)
	}
	var w Window
	fields := strings.Fields(text)
	switch len(fields) {
	case 1:
		w.days = [7]bool{true, true, true, true, true, true, true}
	case 2:
		for name := range strings.SplitSeq(fields[0], ",") {
			day := indexFold(dayNames, name)
			if day < 0 {
				return fail("there is no day " + name)
			}
			w.days[day] = true
		}
	default:
		return fail("it has too many parts")
	}
	first, last, ok := strings.Cut(fields[len(fields)-1], "-")
	from, err := time.Parse("15:04", first)
	to, err2 := time.Parse("15:04", last)
	if !ok || err != nil || err2 != nil {
		return fail("the times are not of the form HH:MM-HH:MM")
	}
	midnight := from.Truncate(24 * time.Hour)
	w.from, w.length = from.Sub(midnight), to.Sub(from)
	if w.length <= 0 {
		w.length += 24 * time.Hour
	}
	return w, nil
}

func indexFold(names []string, name string) int {
	for i, n := range names {
		if strings.EqualFold(n, name) {
			return i
		}
	}
	return -1
}

// IsZero reports whether the window is always open.
func (w Window) IsZero() bool { return w == Window{} }

// String prints the window.
func (w Window) String() string {
	if w.IsZero() {
		return ""
	}
	var days []string
	for i, on := range w.days {
		if on {
			days = append(days, dayNames[i])
		}
	}
	clock := func(d time.Duration) string {
		d %= 24 * time.Hour
		return fmt.Sprintf("%02d:%02d", d/time.Hour, d%time.Hour/time.Minute)
	}
	times := clock(w.from) + "-" + clock(w.from+w.length)
	if len(days) == 7 {
		return times
	}
	return strings.Join(days, ",") + " " + times
}

// Next returns t where the window is open at t, and else when it opens next.
func (w Window) Next(t time.Time) time.Time {
	if w.IsZero() {
		return t
	}
	t = t.UTC().Round(0)
	midnight := t.Truncate(24 * time.Hour)
	// It may have opened yesterday and run past midnight.
	for day := midnight.Add(-24 * time.Hour); ; day = day.Add(24 * time.Hour) {
		if !w.days[day.Weekday()] {
			continue
		}
		switch opens := day.Add(w.from); {
		case opens.After(t):
			return opens
		case t.Before(opens.Add(w.length)):
			return t
		}
	}
}

// DueAt returns when an authority is to be replaced: at the fraction
// numerator/denominator of its life.
func DueAt(issued, notAfter time.Time, numerator, denominator int64) time.Time {
	life := notAfter.Sub(issued)
	return issued.Add(life / time.Duration(denominator) * time.Duration(numerator)).Round(0)
}
