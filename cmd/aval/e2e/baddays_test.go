// This file holds bad days of processes: killed, stopped, and out of disk.

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aval-id/aval/cmd/aval/avaltest"
)

// load calls without end on one connection and on new ones, until the
// returned function is called, which says how many calls passed and failed, or
// the test ends.
func (s *shop) load(t *testing.T) func() (passed, failed int64) {
	var ok, bad atomic.Int64
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for i := range 3 {
		clients.Go(func() {
			var client *http.Client
			if i == 0 {
				client = &http.Client{Timeout: 10 * time.Second}
				defer client.CloseIdleConnections()
			}
			for {
				select {
				case <-stop:
					return
				default:
				}
				if s.call(client) == nil {
					ok.Add(1)
				} else {
					bad.Add(1)
				}
			}
		})
	}
	end := sync.OnceFunc(func() { close(stop); clients.Wait() })
	t.Cleanup(end)
	return func() (int64, int64) {
		end()
		return ok.Load(), bad.Load()
	}
}

func TestAHungAgentHoldsUpNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	s := newShop(t, "1h")
	s.open(t)
	avaltest.Must(t, s.Agent.Process.Signal(syscall.SIGSTOP))
	began := time.Now().UTC().Format(time.RFC3339Nano)
	end := s.load(t)
	// Who asks it is told in time that it does not answer.
	out, stderr, code := s.Run(nil, "svid", "fetch", "--socket", s.Socket, "--timeout", "1s")
	if code == 0 {
		t.Errorf("a stopped agent answered: %s%s", out, stderr)
	}
	if passed, failed := end(); failed > 0 || passed < 10 {
		t.Errorf("with the agent stopped %d calls passed and %d failed", passed, failed)
	}
	avaltest.Must(t, s.Agent.Process.Signal(syscall.SIGCONT))
	s.Await("records of meanwhile", func() bool {
		for _, e := range s.Entries("connection") {
			if at, _ := e["time"].(string); at > began && e["direction"] == "inbound" {
				return true
			}
		}
		return false
	})
	s.Apply(nobody)
	s.Await("a policy of afterwards holds", func() bool { return s.call(nil) != nil })
}

func TestAProxyNeedsNoPrivilegesAndSaysWhereItHasThem(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	if os.Getuid() != 0 {
		t.Skip("another user takes root")
	}
	s := newShop(t, "1h")
	s.StartAgent("n1")
	s.web = s.Proxy("web", s.connect)
	s.Apply("apiVersion: aval.dev/v1alpha1\nkind: Registration\nmetadata: {name: api, namespace: shop, labels: {app: api}}\nspec: {id: /ns/shop/sa/api, workload: {unix.uid: 15097}}\n")
	file := filepath.Join(s.Dir, "api.yaml")
	avaltest.Must(t, os.WriteFile(file, []byte("agent: unix://"+s.Socket+"\n"+s.admit), 0o644))
	s.api = s.StartAs(s.Binary, &syscall.Credential{Uid: 15097, Gid: 15097}, "proxy", "--config", file)
	s.Await("a call passes", func() bool { return s.call(nil) == nil })
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.api.Process.Pid))
	avaltest.Must(t, err)
	if !strings.Contains(string(status), "CapEff:\t0000000000000000") {
		t.Errorf("it has capabilities:\n%s", status)
	}
	const warning = "runs as root, which it needs for nothing"
	if strings.Contains(s.api.Log(), warning) || !strings.Contains(s.web.Log(), warning) {
		t.Errorf("as uid 15097: %s\nas root: %s", s.api.Log(), s.web.Log())
	}
}

func TestANodeBeyondItsPaceGetsAllOfItsSVIDsLater(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	f := avaltest.New(t)
	f.StartServer("--node-svids-per-second", "5", "--node-svid-burst", "8")
	f.StartAgent("n1")
	var docs strings.Builder
	const wanted = 30
	for i := range wanted {
		fmt.Fprintf(&docs, "---\n%s\n", avaltest.Registration("shop", fmt.Sprintf("w%d", i)))
	}
	f.Apply(docs.String())
	avaltest.Until(t, "all SVIDs", f.Stream(), func(m svids) bool { return len(m.GetSvids()) == wanted })
	limited := false
	for _, e := range f.Entries("refused") {
		limited = limited || e["reason"] == "limit"
	}
	if !limited {
		t.Error("nothing was refused, or it is not on record")
	}
}

func TestKilledPartsComeBackUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	s := newShop(t, "1h")
	s.open(t)
	// Twice the agent, and no call notices.
	end := s.load(t)
	for range 2 {
		s.Agent.Kill()
		s.StartAgentWith("n1", avaltest.Token{})
		s.Await("the agent is back", func() bool {
			_, _, code := s.Run(nil, "svid", "fetch", "--socket", s.Socket, "--timeout", "1s")
			return code != 4
		})
	}
	if passed, failed := end(); failed > 0 || passed < 10 {
		t.Errorf("while the agent was killed %d calls passed and %d failed", passed, failed)
	}
	// A proxy takes its connections with it, and nothing else: calls fail at
	// once meanwhile, and pass as soon as it is back.
	end = s.load(t)
	s.api.Kill()
	began := time.Now()
	if err := s.call(nil); err == nil || time.Since(began) > 5*time.Second {
		t.Errorf("without api's proxy: %v after %s", err, time.Since(began))
	}
	s.api = s.Proxy("api", s.admit)
	s.Await("calls pass", func() bool { return s.call(nil) == nil })
	if _, failed := end(); failed == 0 {
		t.Error("nothing failed without api's proxy")
	}
	s.web.Kill()
	s.web = s.Proxy("web", s.connect)
	s.Await("calls pass through a new proxy of web's", func() bool { return s.call(nil) == nil })
}

func TestAFullSpoolDiskFailsNoCallAndLosesNoRecordInMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	s := newShop(t, "1h")
	small := filepath.Join(s.Dir, "node-n1", "spool")
	avaltest.Must(t, os.MkdirAll(small, 0o700))
	avaltest.Must(t, syscall.Mount("tmpfs", small, "tmpfs", 0, "size=64k,mode=0700"))
	t.Cleanup(func() {
		s.Agent.Stop()
		syscall.Unmount(small, syscall.MNT_DETACH)
	})
	s.open(t)
	s.Server.Kill()
	calls := 0
	for ; !strings.Contains(s.Agent.Log(), "in memory alone"); calls++ {
		if err := s.call(nil); err != nil {
			t.Fatalf("call %d: %v", calls, err)
		}
		if calls > 5000 {
			t.Fatal("the spool's disk does not fill")
		}
	}
	for range 50 {
		if err := s.call(nil); err != nil {
			t.Fatalf("with the spool's disk full: %v", err)
		}
	}
	s.StartServer("--default-ttl", "1h", "--min-ttl", "1h")
	s.Await("all records are at the server", func() bool {
		total := 0.0
		for _, e := range s.Entries("connection") {
			if e["direction"] == "inbound" && e["reason"] == "allowed" {
				n, counted := e["count"].(float64)
				if !counted {
					n = 1
				}
				total += n
			}
		}
		return total >= float64(calls+50)
	})
	if n := strings.Count(s.Agent.Log(), "in memory alone"); n > 3 {
		t.Errorf("the full disk is told %d times", n)
	}
	s.Await("and the disk is used again", func() bool {
		if err := s.call(nil); err != nil {
			t.Fatal(err)
		}
		return strings.Contains(s.Agent.Log(), "on disk again")
	})
}
