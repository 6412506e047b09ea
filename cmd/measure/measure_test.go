package measure

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAFigureSaysWhetherItHoldsItsTarget(t *testing.T) {
	for _, tt := range []struct {
		figure Figure
		want   string
	}{
		{Figure{What: "handshake", Unit: "µs of CPU", Ours: 1210, Beside: "floor", Baseline: 1100, Most: 1.1},
			"handshake µs of CPU aval 1210 floor 1100 1.10× ≤ 1.10× holds"},
		{Figure{What: "handshake", Unit: "µs of CPU", Ours: 1600, Beside: "nginx", Baseline: 3000, Most: 0.5},
			"handshake µs of CPU aval 1600 nginx 3000 0.53× ≤ 0.50× MISSED"},
		{Figure{What: "memory", Unit: "MiB", Ours: 20.04, Most: 30}, "memory MiB aval 20.0 ≤ 30.0 holds"},
		{Figure{What: "latency", Unit: "µs", Ours: 0.5, Beside: "floor", Baseline: 9.876}, "latency µs aval 0.500 floor 9.88 0.0506×"},
	} {
		var out strings.Builder
		if err := tt.figure.write(&out); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(strings.Fields(out.String()), " "); got != tt.want {
			t.Errorf("%q, not %q", got, tt.want)
		}
	}
}

func TestSidesTakeTurns(t *testing.T) {
	var order []string
	n := 0.0
	side := func(name string) func() float64 {
		return func() float64 {
			order = append(order, name)
			n++
			return n
		}
	}
	if got := Interleave(3, side("a"), side("b")); !slices.Equal(got, []float64{3, 4}) {
		t.Errorf("medians %v", got)
	}
	if got := strings.Join(order, ""); got != "ababab" {
		t.Errorf("order %s", got)
	}
	if got := Quantile([]float64{5, 1, 4, 2, 3}, 99); got != 5 {
		t.Errorf("p99 of five is %v", got)
	}
	if got := Median(nil); got != 0 {
		t.Errorf("median of nothing is %v", got)
	}
}

func TestProcessesAreMeasuredByTheirPID(t *testing.T) {
	child := exec.Command("cat")
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer in.Close()
	if all := Children(t, os.Getpid()); !slices.Contains(all, child.Process.Pid) {
		t.Errorf("%d is not among %v", child.Process.Pid, all)
	}
	if kib := Resident(t, os.Getpid()); kib < 1024 {
		t.Errorf("%v KiB", kib)
	}
	before, own := CPU(t, os.Getpid()), OwnCPU(t)
	for began := time.Now(); time.Since(began) < 20*time.Millisecond; {
	}
	if used := CPU(t, os.Getpid()) - before; used < 5*time.Millisecond {
		t.Errorf("%v of CPU in 20 ms of work", used)
	}
	if OwnCPU(t) < own {
		t.Error("the own CPU time went down")
	}
}
