// This file holds the clock that jumps and the agent that is gone for an hour.

package e2e

import (
	"net/http"
	"testing"
	"time"

	"github.com/aval-id/aval/cmd/aval/avaltest"
)

// eventually waits for what takes a look at the wall clock, which processes
// take each half minute.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(90 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("%s: not within 90 s", what)
		}
	}
}

func TestAnHourWithoutTheAgentAndAClockThatJumpsForthAndBack(t *testing.T) {
	if testing.Short() {
		t.Skip("runs for a minute or two")
	}
	f, clock := avaltest.NewWithClock(t)
	s := shopOf(t, f, "4h")
	s.open(t)
	kept := &http.Client{Timeout: 10 * time.Second}
	defer kept.CloseIdleConnections()
	calls := func(when string) {
		t.Helper()
		for range 5 {
			for _, client := range []*http.Client{nil, kept} {
				if err := s.call(client); err != nil {
					t.Fatalf("%s: %v", when, err)
				}
			}
		}
	}
	calls("before")

	// An hour without the agent: proxies serve by what they hold.
	s.Agent.Kill()
	avaltest.Must(t, clock.Set(time.Hour))
	calls("an hour without the agent")
	s.StartAgentWith("n1", avaltest.Token{})
	s.Apply(nobody)
	s.Await("a policy of after the hour holds", func() bool { return s.call(nil) != nil })
	s.Aval("delete", "AuthorizationPolicy", "nobody", "-n", "shop")
	s.Await("and its end", func() bool { return s.call(nil) == nil })

	// A jump over every lifetime but the root's: all of it is renewed.
	issued := len(s.Entries("issuance"))
	avaltest.Must(t, clock.Set(6*24*time.Hour))
	eventually(t, "calls pass after six days", func() bool { return s.call(nil) == nil })
	if now := len(s.Entries("issuance")); now < issued+3 { // the intermediate, and both SVIDs
		t.Errorf("%d issuances became %d", issued, now)
	}

	// Back: everything that was issued meanwhile is of the future.
	avaltest.Must(t, clock.Set(time.Hour))
	eventually(t, "calls pass after the clock was set back", func() bool { return s.call(nil) == nil })
	calls("after it was set back")
	again := len(s.Entries("issuance"))
	s.Server.Stop()
	s.StartServer("--default-ttl", "4h", "--min-ttl", "4h")
	s.Await("the agent is back", func() bool { _, _, code := s.Run(nil, "check", "--socket", s.Socket); return code == 0 || code == 1 })
	calls("after a restart")
	if now := len(s.Entries("issuance")); now > again+20 {
		t.Errorf("issuance goes in circles: %d became %d", again, now)
	}
	s.Aval("audit", "verify", "--data-dir", s.ServerDir)
}
