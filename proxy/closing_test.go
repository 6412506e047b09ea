// This file holds the tests of the record of a connection's end, of what the
// first bytes say, and of aggregation.

package proxy

import (
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aval-id/aval/audit"
)

func ended(direction string) func(audit.Event) bool {
	return func(e audit.Event) bool { return e.Kind == audit.KindConnectionClosed && e.Direction == direction }
}

func TestTheEndSaysBytesAndDurationOnBothSides(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	const asked, answered = 100_000, 3 << 20
	_, in := s.inbound(t, app(t, func(c *net.TCPConn) {
		io.CopyN(io.Discard, c, asked)
		c.Write(make([]byte, answered))
	}), nil)
	_, out := s.outbound(t, in, s.api.ID)
	c := mustDial(t, out)
	c.Write(make([]byte, asked))
	c.CloseWrite()
	if n, err := io.Copy(io.Discard, c); n != answered || err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
	for _, direction := range []string{audit.DirectionInbound, audit.DirectionOutbound} {
		began := s.agent.waitFor(1, reason(direction, audit.ReasonAllowed))[0]
		e := s.agent.waitFor(1, ended(direction))[0]
		if e.BytesIn != asked || e.BytesOut != answered || e.DurationMS < 0 || e.Reason != audit.ReasonClosed {
			t.Errorf("%s: %d in, %d out, %d ms, %s", direction, e.BytesIn, e.BytesOut, e.DurationMS, e.Reason)
		}
		if e.Source != began.Source || e.ClientID != began.ClientID || e.ServerID != began.ServerID ||
			e.ClientSerial != began.ClientSerial || e.Port != began.Port || e.Transport != began.Transport {
			t.Errorf("%s: the end cannot be joined to the beginning\n%+v\n%+v", direction, began, e)
		}
	}
}

func TestTheEndSaysWhatCutIt(t *testing.T) {
	s := newScene(t)
	s.publish(t, "")
	_, in := s.inbound(t, echo(t), nil)
	open := func() *net.TCPConn {
		t.Helper()
		c := mustDial(t, in)
		c.Write([]byte("ping"))
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	reset := open()
	reset.SetLinger(0)
	reset.Close()
	cut := func(reason string) func(audit.Event) bool {
		return func(e audit.Event) bool { return e.Kind == audit.KindConnectionClosed && e.Reason == reason }
	}
	s.agent.waitFor(1, cut(audit.ReasonReset))
	open()
	s.publish(t, mode("STRICT"))
	e := s.agent.waitFor(1, cut(audit.ReasonPolicyChanged))[0]
	if e.BytesIn != 4 || e.BytesOut != 4 || e.Transport != audit.TransportPlaintext || e.ClientID != "" {
		t.Errorf("record: %+v", e)
	}
}

func TestARefusedConnectionHasNoEnd(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT"))
	p, in := s.inbound(t, echo(t), nil)
	if _, err := callTo(in, nil); err == nil {
		t.Fatal("plaintext came in")
	}
	s.agent.waitFor(1, reason(audit.DirectionInbound, audit.ReasonPlaintextRefused))
	eventually(t, "it is over", func() bool { return p.Status().Open == 0 })
	p.reporter.mu.Lock()
	defer p.reporter.mu.Unlock()
	if slices.ContainsFunc(p.reporter.queue, func(e *audit.Event) bool { return e.Kind == audit.KindConnectionClosed }) {
		t.Error("the end of a connection that never was let in is recorded")
	}
}

func TestFirstBytesTellProbesFromApplications(t *testing.T) {
	for first, want := range map[string]string{
		"GET /x HTTP/1.1\r\nHost: a\r\nUser-Agent: kube-probe/1.33\r\n\r\n": audit.ProtocolProbe,
		"GET /healthz?v HTTP/1.1\r\nHost: a\r\n\r\n":                        audit.ProtocolProbe,
		"OPTIONS / HTTP/1.0\r\nUSER-AGENT:  HAProxy\r\n\r\n":                audit.ProtocolProbe,
		"GET /x HTTP/1.1\r\nHost: a\r\n\r\nUser-Agent: kube-probe/1":        audit.ProtocolHTTP,
		"GET /healthzz HTTP/1.1\r\n":                                        audit.ProtocolHTTP,
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":                                  audit.ProtocolHTTP,
		"GET":                                                               audit.ProtocolOther,
		"\x00\x01":                                                          audit.ProtocolOther,
	} {
		if got := spoken(audit.TransportPlaintext, audit.ReasonPlaintextAllowed, []byte(first)); got != want {
			t.Errorf("%q: %s, not %s", first, got, want)
		}
	}
	if got := spoken("", audit.ReasonReset, nil); got != audit.ProtocolSilent {
		t.Errorf("nothing: %q", got)
	}
	if got := spoken(audit.TransportMTLS, audit.ReasonAllowed, []byte("\x16")); got != "" {
		t.Errorf("mTLS: %q", got)
	}
}

func FuzzSpoken(f *testing.F) {
	f.Add([]byte("GET /healthz HTTP/1.1\r\nUser-Agent: kube-probe/1\r\n\r\n"))
	f.Add([]byte("PRI * HTTP/2.0"))
	f.Add([]byte("\x16\x03\x01"))
	f.Fuzz(func(t *testing.T, first []byte) {
		got := spoken(audit.TransportPlaintext, "", first)
		if len(first) > 0 && !slices.Contains(audit.Protocols(), got) {
			t.Errorf("%q is not in the closed list", got)
		}
	})
}

func TestAlikeRecordsAddUpAndStateOnlyWhatIsCommon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := testReporter(10_000)
		source := netip.MustParseAddr("192.0.2.1")
		const n = 1000
		for i := range n {
			serial := "01"
			if i == n-1 {
				serial = "02"
			}
			r.add(&audit.Event{Time: time.Now(), Kind: audit.KindConnection, Verdict: audit.VerdictAllowed, Reason: audit.ReasonAllowed,
				ClientID: "spiffe://example.org/web", ClientSerial: serial, Source: "192.0.2.1:1"}, source)
			r.add(&audit.Event{Time: time.Now(), Kind: audit.KindConnectionClosed, Verdict: audit.VerdictDone, Reason: audit.ReasonClosed,
				ClientID: "spiffe://example.org/web", BytesIn: 2, BytesOut: 3, DurationMS: 5, Source: "192.0.2.1:1"}, source)
		}
		time.Sleep(time.Second)
		events, lost := r.batch(time.Now(), false)
		if lost != 0 || len(events) != allowedPerSecond+refusalsPerSecond+2 {
			t.Fatalf("%d records, %d lost", len(events), lost)
		}
		var began, ends, in, out uint64
		var lasted int64
		for _, e := range events {
			if _, err := json.Marshal(e); err != nil || e.Validate() != nil {
				t.Fatal(err, e.Validate())
			}
			if e.Kind == audit.KindConnection {
				began += max(1, e.Count)
				if e.Count > 1 && (e.ClientSerial != "" || e.ClientID == "" || e.Source != "192.0.2.1") {
					t.Errorf("record: %+v", e)
				}
				continue
			}
			ends, in, out, lasted = ends+max(1, e.Count), in+e.BytesIn, out+e.BytesOut, lasted+e.DurationMS
		}
		if began != n || ends != n || in != 2*n || out != 3*n || lasted != 5*n {
			t.Errorf("%d beginnings, %d ends, %d in, %d out, %d ms", began, ends, in, out, lasted)
		}
	})
}

func TestAnExceptionLetsPlaintextInAndItsEndClosesIt(t *testing.T) {
	s := newScene(t)
	const exception = "\n---\napiVersion: aval.dev/v1alpha1\nkind: PlaintextException\nmetadata: {name: legacy, namespace: shop}\n" +
		"spec: {from: [127.0.0.1], reason: it moves, until: UNTIL}\n"
	until := time.Now().Add(2 * time.Second).UTC().Format(time.RFC3339Nano)
	s.publish(t, mode("STRICT")+strings.Replace(exception, "UNTIL", until, 1))
	p, in := s.inbound(t, echo(t), nil)
	c := mustDial(t, in)
	c.Write([]byte("ping"))
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		t.Fatalf("plaintext under an exception: %v", err)
	}
	if got, err := callTo(in, s.client(s.web)); err != nil || got != "ping" {
		t.Errorf("mTLS beside it: %q %v", got, err)
	}
	e := s.agent.waitFor(1, reason(audit.DirectionInbound, audit.ReasonPlaintextAllowed))[0]
	if e.Exception != "shop/legacy" || e.Mode != "STRICT" || e.ModeSource != "shop/mode" {
		t.Errorf("record: %+v", e)
	}
	if err := gone(c); err != nil {
		t.Errorf("at the end: %v", err)
	}
	s.agent.waitFor(1, reason(audit.DirectionInbound, audit.ReasonPolicyChanged))
	if _, err := callTo(in, nil); err == nil {
		t.Error("plaintext comes in after the end")
	}
	eventually(t, "all is closed", func() bool { return p.Status().Open == 0 })
}
