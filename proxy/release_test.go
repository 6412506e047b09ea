// This file holds the test of what open connections let go of.

package proxy

import (
	"crypto/tls"
	"net"
	"runtime"
	"testing"
	"weak"
)

// An open connection outlives many generations of policies, and must not keep
// the one it was admitted under.
func TestAnOpenConnectionKeepsNoGenerationOfPolicies(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT"))
	p, in := s.inbound(t, echo(t), nil)
	q, out := s.outbound(t, in, s.api.ID)
	conn, local := tls.Client(mustDial(t, in), s.client(s.web)), mustDial(t, out)
	for _, c := range []net.Conn{conn, local} {
		if _, err := exchange(c, "before"); err != nil {
			t.Fatal(err)
		}
	}
	before := []weak.Pointer[state]{weak.Make(p.state.Load()), weak.Make(q.state.Load())}
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	for _, old := range before {
		eventually(t, "the old generation is let go", func() bool {
			runtime.GC()
			return old.Value() == nil
		})
	}
	for _, c := range []net.Conn{conn, local} {
		if got, err := exchange(c, "after"); err != nil || got != "after" {
			t.Errorf("the connection: %q, %v", got, err)
		}
	}
}
