// This file holds the tests of clients that try to hide what policies ask for.

package proxy

import (
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/audit"
)

// denyName is a DENY policy for a server name.
const denyName = `
---
apiVersion: aval.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: shop}
spec:
  action: DENY
  rules: [{when: [{key: connection.sni, values: ["admin.shop"]}]}]
`

// splitting cuts the first TLS record in two and puts a warning between them,
// which a handshake passes over.
type splitting struct {
	net.Conn
	done bool
}

func (c *splitting) Write(b []byte) (int, error) {
	if c.done || len(b) < 20 {
		return c.Conn.Write(b)
	}
	c.done = true
	record := func(kind byte, body []byte) []byte {
		return append([]byte{kind, 3, 1, byte(len(body) >> 8), byte(len(body))}, body...)
	}
	out := record(22, b[5:15])
	out = append(out, record(21, []byte{1, 90})...) // user_canceled
	out = append(out, record(22, b[15:])...)
	if _, err := c.Conn.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}

func TestAServerNameIsJudgedAsTheHandshakeReadsIt(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+denyName)
	_, in := s.inbound(t, echo(t), nil)
	named := s.client(s.web)
	named.ServerName = "admin.shop"
	long := named.Clone() // a ClientHello above the reader's bound, and below crypto/tls's
	for i := range 200 {
		long.NextProtos = append(long.NextProtos, fmt.Sprintf("%03d%s", i, strings.Repeat("x", 200)))
	}
	wraps := map[string]func(net.Conn) net.Conn{
		"plain": func(c net.Conn) net.Conn { return tls.Client(c, named) },
		"long":  func(c net.Conn) net.Conn { return tls.Client(c, long) },
		"split": func(c net.Conn) net.Conn { return tls.Client(&splitting{Conn: c}, named) },
	}
	for name, wrap := range wraps {
		t.Run(name, func(t *testing.T) {
			c := wrap(mustDial(t, in))
			if got, err := exchange(c, "ping"); err == nil {
				t.Fatalf("a call was answered: %q", got)
			}
		})
	}
	for _, e := range s.agent.waitFor(3, reason("inbound", audit.ReasonPolicyDenied)) {
		if e.SNI != "admin.shop" || e.Policy != "shop/closed" {
			t.Errorf("record: %+v", e)
		}
	}
	other := s.client(s.web)
	other.ServerName = "api.shop"
	if _, err := callTo(in, other); err != nil {
		t.Errorf("another name: %v", err)
	}
}

func TestStrangersLeaveRoomForTheWorkloadsOwnCalls(t *testing.T) {
	s := newScene(t)
	s.publish(t, "")
	_, upstream := s.inbound(t, echo(t), nil)
	p, _ := runProxy(t, Config{Agent: s.agent.socket, Identity: s.web.ID,
		Inbound:  []Inbound{{Listen: "127.0.0.1:0", Forward: echo(t), Port: 8080}},
		Outbound: []Outbound{{Listen: "127.0.0.1:0", Dial: upstream, ID: s.api.ID}},
		Limits:   Limits{MaxConnections: 8, Drain: time.Second}})
	for range 12 {
		// Who is turned away may learn of it while it dials.
		if c, err := net.Dial("tcp", p.Status().Inbound[0]); err == nil {
			defer c.Close() // and says nothing
		}
	}
	s.agent.waitFor(5, func(e audit.Event) bool {
		return e.Reason == audit.ReasonLimit && e.Direction == audit.DirectionInbound
	})
	if got, err := callTo(p.Status().Outbound[0], nil); err != nil || got != "ping" {
		t.Errorf("a call of the workload's own: %q, %v", got, err)
	}
}
