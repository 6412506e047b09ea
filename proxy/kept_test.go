// This file holds the tests of what a change of policies or a revocation does
// to open connections, as it is set.

package proxy

import (
	"crypto/tls"
	"net"
	"strings"
	"testing"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/wire"
)

// deny publishes a snapshot that denies certificates.
func (s *scene) deny(t testing.TB, policies string, d *wire.Denials) {
	t.Helper()
	s.rev++
	snap := workload{td: s.td, svid: s.api, revision: s.rev, policies: policies}.snapshot(t)
	snap.Denials = d
	s.agent.put(snap)
}

func TestARevokedPeerIsCutOffAndRefused(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	_, in := s.inbound(t, echo(t), nil)
	other := s.td.SVID(t, "/ns/shop/sa/other")
	web, stays := tls.Client(mustDial(t, in), s.client(s.web)), tls.Client(mustDial(t, in), s.client(other))
	for _, c := range []net.Conn{web, stays} {
		if _, err := exchange(c, "before"); err != nil {
			t.Fatal(err)
		}
	}
	s.deny(t, "", &wire.Denials{Serials: []string{identity.Serial(s.web.Leaf())}})
	if err := gone(web); err != nil {
		t.Error(err)
	}
	e := s.agent.waitFor(1, func(e audit.Event) bool { return e.ClientID == s.web.ID.String() && e.Reason == audit.ReasonRevoked })[0]
	if e.ClientSerial != identity.Serial(s.web.Leaf()) {
		t.Errorf("record of the cut: %+v", e)
	}
	if _, err := exchange(tls.Client(mustDial(t, in), s.client(s.web)), "again"); err == nil {
		t.Error("a revoked peer came in")
	}
	s.agent.waitFor(1, func(e audit.Event) bool {
		return e.Kind == audit.KindConnection && reason("inbound", audit.ReasonRevoked)(e)
	})
	if _, err := exchange(stays, "after"); err != nil {
		t.Errorf("another peer: %v", err)
	}
}

func TestWhatIsOpenIsKeptWhereThatIsSet(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	_, in := s.inbound(t, echo(t), func(c *Config) { c.OnPolicyChange, c.OnRevocation = Keep, Keep })
	web := tls.Client(mustDial(t, in), s.client(s.web))
	if _, err := exchange(web, "before"); err != nil {
		t.Fatal(err)
	}
	s.deny(t, allow("example.org/ns/shop/sa/other"), &wire.Denials{Serials: []string{identity.Serial(s.web.Leaf())}})
	eventually(t, "a new connection is refused", func() bool {
		_, err := exchange(tls.Client(mustDial(t, in), s.client(s.web)), "new")
		return err != nil
	})
	if got, err := exchange(web, "after"); err != nil || got != "after" {
		t.Errorf("the open connection: %q, %v", got, err)
	}
}

func TestWhatIsCutOrKeptHasNoThirdWay(t *testing.T) {
	for _, field := range []string{"onPolicyChange", "onRevocation"} {
		_, err := ParseConfig("p.yaml", []byte("agent: /run/a\ninbound: [{listen: '127.0.0.1:0', forward: '127.0.0.1:1'}]\n"+field+": drain\n"))
		if err == nil || !strings.Contains(err.Error(), field+`: "drain" is neither cut nor keep`) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
