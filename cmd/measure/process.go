// This file holds what the kernel says of processes: processor time and
// resident memory.

package measure

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// CPU returns the processor time that the living threads of a process have
// used, to the nanosecond.
func CPU(tb testing.TB, pid int) time.Duration {
	tb.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		tb.Fatal(err)
	}
	var total time.Duration
	for _, t := range tasks {
		text, err := os.ReadFile(t)
		if err != nil {
			continue // the thread has ended
		}
		spent, _, _ := strings.Cut(string(text), " ")
		ns, err := strconv.ParseInt(spent, 10, 64)
		if err != nil {
			tb.Fatalf("%s: %v", t, err)
		}
		total += time.Duration(ns)
	}
	return total
}

// OwnCPU returns the processor time that this process has used.
func OwnCPU(tb testing.TB) time.Duration {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Resident returns the memory that a process holds, in KiB. What it shares
// with others counts in full with each.
func Resident(tb testing.TB, pid int) float64 {
	tb.Helper()
	path := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
	text, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		rest, ok := strings.CutPrefix(line, "Rss:")
		if !ok {
			continue
		}
		kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
		if err != nil {
			tb.Fatalf("%s: %v", path, err)
		}
		return kib
	}
	tb.Fatalf("%s has no resident memory", path)
	return 0
}

// Children returns the processes that a process has started and that run.
func Children(tb testing.TB, pid int) []int {
	tb.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		tb.Fatal(err)
	}
	var pids []int
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue
		}
		for word := range strings.FieldsSeq(string(text)) {
			child, err := strconv.Atoi(word)
			if err != nil {
				tb.Fatalf("%s: %v", list, err)
			}
			pids = append(pids, child)
		}
	}
	return pids
}
