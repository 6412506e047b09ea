// This file holds the crash test: a process that is killed while it records
// has lost nothing that it acknowledged.

package audit

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const crashDirEnv = "AUDIT_CRASH_DIR"

// crashChild records for ever from several goroutines, prints each index
// once it is acknowledged, and runs the checkpoint loop.
func crashChild(dir string) {
	cfg := testConfig(dir)
	cfg.SegmentBytes, cfg.CheckpointEvery, cfg.Reserve = 40<<10, 10*time.Millisecond, 1<<20
	l, err := Open(cfg)
	if err != nil {
		fmt.Println("open:", err)
		os.Exit(1)
	}
	go l.Run(context.Background())
	var mu sync.Mutex
	for w := range 4 {
		go func() {
			for i := 0; ; i++ {
				var rs []Receipt
				var err error
				if w == 0 {
					rs, err = l.RecordAll(context.Background(), []Event{testEvent(i), testEvent(i), testEvent(i)})
				} else {
					var r Receipt
					r, err = l.Record(context.Background(), testEvent(i))
					rs = append(rs, r)
				}
				mu.Lock()
				if err != nil {
					fmt.Println("record:", err)
					os.Exit(1)
				}
				fmt.Println(rs[len(rs)-1].Index)
				mu.Unlock()
			}
		}()
	}
	select {}
}

func TestNothingAcknowledgedIsLostByAKill(t *testing.T) {
	rounds := 40
	if testing.Short() {
		rounds = 8
	}
	dir := t.TempDir()
	v := verifierKey(t)
	acknowledged := int64(-1)
	for round := range rounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashDirEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		killAt := 1 + rand.IntN(300) // after so many acknowledgements
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			index, err := strconv.ParseInt(strings.TrimSpace(lines.Text()), 10, 64)
			if err != nil {
				t.Fatalf("round %d: child says %q", round, lines.Text())
			}
			acknowledged = max(acknowledged, index)
			if n == killAt {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
		r, err := Verify(dir, v, VerifyOptions{})
		if err != nil || !r.Verified || r.Entries <= acknowledged {
			t.Fatalf("round %d, as the kill left it: %v, acknowledged %d, %+v", round, err, acknowledged, r)
		}
		l := mustOpen(t, testConfig(dir))
		if l.Size() <= acknowledged {
			t.Fatalf("round %d: size %d, and %d was acknowledged", round, l.Size(), acknowledged)
		}
		checkpointNow(t, l)
		if r := mustVerify(t, l, VerifyOptions{}); !r.Verified || r.CheckpointSize != l.Size() {
			t.Fatalf("round %d: %+v", round, r)
		}
		l.Close()
	}
}

func verifierKey(t testing.TB) string {
	t.Helper()
	s, err := newSigner(testOrigin, testKey(0))
	if err != nil {
		t.Fatal(err)
	}
	return s.text
}
