// This file holds the tests of naming the process behind a connection.

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/neighbour"
	"github.com/aval-id/aval/identity/wire"
)

// It runs beside no other test of the package: a search has little time.
func TestAPlaintextClientOfThisMachineIsNamed(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("PERMISSIVE"))
	_, in := s.inbound(t, echo(t), nil)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	named := func() bool {
		s.agent.mu.Lock()
		defer s.agent.mu.Unlock()
		return slices.ContainsFunc(s.agent.events, func(e audit.Event) bool {
			if e.ClientProcess != "" && !strings.HasPrefix(e.ClientProcess, fmt.Sprintf("uid=%d", os.Getuid())) {
				t.Errorf("process: %q", e.ClientProcess)
			}
			return strings.HasSuffix(e.ClientProcess, " exe="+exe)
		})
	}
	// A search has its time, which a loaded machine may need: another follows
	// with another client.
	began, clients := time.Now(), 0
	eventuallyWithin(t, 30*time.Second, "a client is named by its user and executable", func() bool {
		if time.Since(began) >= time.Duration(clients)*time.Second {
			clients++
			if _, err := exchange(mustDial(t, in), "hello"); err != nil { // stays open meanwhile
				t.Fatal(err)
			}
		}
		return named()
	})
	// One with an identity needs no such name.
	if _, err := exchange(s.dialTLS(t, in), "hello"); err != nil {
		t.Fatal(err)
	}
	if e := s.agent.waitFor(1, reason("inbound", audit.ReasonAllowed))[0]; e.ClientProcess != "" {
		t.Errorf("a proven peer has the process %q", e.ClientProcess)
	}
}

func TestARecordNeverWaitsForRoomNorGetsLost(t *testing.T) {
	var got []*audit.Event
	c := newCallers(func(e *audit.Event, _ netip.Addr) { got = append(got, e) })
	local := netip.MustParseAddrPort("127.0.0.1:1")
	offered := 0
	for range 2 * callersWaiting {
		if c.offer(&audit.Event{Direction: audit.DirectionInbound}, local, local) {
			offered++
		}
	}
	if offered != callersWaiting {
		t.Errorf("%d records wait", offered)
	}
	if c.offer(&audit.Event{Direction: audit.DirectionInbound}, netip.MustParseAddrPort("192.0.2.1:1"), local) {
		t.Error("a client elsewhere is looked for here")
	}
	c.end()
	if len(got) != offered || c.offer(&audit.Event{Direction: audit.DirectionInbound}, local, local) {
		t.Errorf("%d of %d records went on", len(got), offered)
	}
	// A socket that is gone has no process, and its record goes on.
	c.identify(t.Context(), []unknownCaller{{&audit.Event{Time: time.Now()}, local, local}}, true)
	if len(got) != offered+1 || got[offered].ClientProcess != "" {
		t.Errorf("the record of a socket that is gone: %+v", got[len(got)-1])
	}
}

func TestTheAgentNamesWhatTheProxyMayNotSee(t *testing.T) {
	u := unknownCaller{&audit.Event{}, netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2")}
	var c callers
	p := neighbour.Process{UID: 5}
	if got := c.asked(t.Context(), u, p); got != p {
		t.Errorf("without an agent: %v", got)
	}
	answer, fault := &wire.HolderResponse{Uid: 5, Unit: "batch.service", Exe: "/usr/bin/curl"}, error(nil)
	c.ask = func(_ context.Context, req *wire.HolderRequest) (*wire.HolderResponse, error) {
		if req.GetSource() != "127.0.0.1:1" || req.GetDestination() != "127.0.0.1:2" {
			t.Errorf("asked for %v", req)
		}
		return answer, fault
	}
	if got := c.asked(t.Context(), u, p).String(); got != "uid=5 unit=batch.service exe=/usr/bin/curl" {
		t.Errorf("with an agent: %s", got)
	}
	answer.Uid = 6 // the kernel's word to the proxy counts
	if got := c.asked(t.Context(), u, p); got != p {
		t.Errorf("another user: %v", got)
	}
	fault = errors.New("away")
	if got := c.asked(t.Context(), u, p); got != p {
		t.Errorf("without an answer: %v", got)
	}
}
