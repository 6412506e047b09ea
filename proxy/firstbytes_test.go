// This file holds the test of the metric that counts what first bytes are.

package proxy

import (
	"crypto/tls"
	"io"
	"testing"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/prometheus/client_golang/prometheus"
)

func TestFirstBytesAreCountedByWhatTheyTurnOutToBe(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, "")
	p, in := s.inbound(t, echo(t), nil)
	if got, err := exchange(tls.Client(mustDial(t, in), s.client(s.web)), "ping"); err != nil || got != "ping" {
		t.Fatalf("mutual TLS: %q, %v", got, err)
	}
	foreign := s.client(s.web)
	foreign.ServerName, foreign.NextProtos = "elsewhere.example", nil
	for _, speak := range []func(io.ReadWriteCloser){
		func(c io.ReadWriteCloser) { io.WriteString(c, "GET /x HTTP/1.1\r\nHost: a\r\n\r\n") },
		func(c io.ReadWriteCloser) { io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n") },
		func(c io.ReadWriteCloser) { io.WriteString(c, "SSH-2.0-x\r\n") },
		func(c io.ReadWriteCloser) { c.Close() },
		func(c io.ReadWriteCloser) { io.WriteString(c, "\x16\x03\x01\x00\x05"); c.Close() },
	} {
		c := mustDial(t, in)
		defer c.Close()
		speak(c)
	}
	// The application echoes the ClientHello, which ends this handshake.
	if _, err := exchange(tls.Client(mustDial(t, in), foreign), "ping"); err == nil {
		t.Fatal("the application shook hands")
	}
	for _, kind := range []string{kindMeshTLS, kindForeignTLS, audit.ProtocolHTTP, audit.ProtocolProbe, audit.ProtocolOther, audit.ProtocolSilent, kindBroken} {
		eventually(t, kind, func() bool { return kinds(t, p)[kind] == 1 })
	}

	p, in = s.inbound(t, greeter(t), func(c *Config) {
		c.Inbound[0].Protocol, c.Limits.ServerFirstWait = ProtocolServerFirst, 10*time.Millisecond
	})
	c := mustDial(t, in)
	if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	if got := kinds(t, p); len(got) != 1 || got[kindServerFirst] != 1 {
		t.Errorf("server first: %v", got)
	}
}

// kinds gathers the metric's counters by kind.
func kinds(t testing.TB, p *Proxy) map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(p.metrics.firstBytes)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			out[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
		}
	}
	return out
}
