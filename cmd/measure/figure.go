// Package measure takes figures for benchmarks and tells them: interleaved
// rounds and their medians, what a process costs by the kernel's account, and
// one line for each figure that names it, its baseline of the same run, their
// ratio, and the target.
//
// It leaves to the benchmarks what is measured. It stands on the third floor,
// and only tests import it.
package measure

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// Figure is one thing that was measured, beside a baseline or alone.
type Figure struct {
	What string  // such as "handshake, new peer"
	Unit string  // such as "µs of CPU"
	Ours float64 // what Aval needs

	// Beside names the baseline, and Baseline is what it needs; without a
	// name there is none.
	Beside   string
	Baseline float64

	// Most is the target: the ratio of Ours to Baseline is to be no greater,
	// or Ours itself where there is no baseline. Zero is no target.
	Most float64
}

// Holds reports whether the figure is within its target.
func (f Figure) Holds() bool { return f.Most == 0 || f.judged() <= f.Most }

func (f Figure) judged() float64 {
	if f.Beside == "" {
		return f.Ours
	}
	return f.Ours / f.Baseline
}

// Tell prints the figure's line.
func (f Figure) Tell(tb testing.TB) {
	tb.Helper()
	if err := f.write(os.Stdout); err != nil {
		tb.Fatal(err)
	}
	if b, ok := tb.(*testing.B); ok {
		b.ReportMetric(0, "ns/op") // the line says more
	}
}

func (f Figure) write(w io.Writer) error {
	var baseline, ratio, target string
	if f.Beside != "" {
		baseline = f.Beside + " " + number(f.Baseline)
		ratio = times(f.judged()) + "×"
	}
	if f.Most != 0 {
		target = "≤ " + number(f.Most)
		if f.Beside != "" {
			target = "≤ " + strconv.FormatFloat(f.Most, 'f', 2, 64) + "×"
		}
		if f.Holds() {
			target += "  holds"
		} else {
			target += "  MISSED"
		}
	}
	line := column(f.What, 50) + column(f.Unit, 16) + column("aval "+number(f.Ours), 15) + column(baseline, 24) + column(ratio, 9) + target
	_, err := fmt.Fprintln(w, "  "+strings.TrimRight(line, " "))
	return err
}

// column pads to a width in runes, and keeps a space behind what is longer.
func column(s string, width int) string {
	return s + strings.Repeat(" ", max(1, width-utf8.RuneCountInString(s)))
}

// times has two decimals unless the ratio is far from one.
func times(ratio float64) string {
	switch {
	case ratio < 0.1:
		return strconv.FormatFloat(ratio, 'f', 4, 64)
	case ratio < 100:
		return strconv.FormatFloat(ratio, 'f', 2, 64)
	}
	return strconv.FormatFloat(ratio, 'f', 0, 64)
}

// number has three digits or all before the point.
func number(v float64) string {
	switch {
	case v < 1:
		return strconv.FormatFloat(v, 'f', 3, 64)
	case v < 10:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case v < 100:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 0, 64)
}
