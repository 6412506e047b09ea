// This file holds the outbound path: from a local plaintext connection to
// mutual TLS with the one upstream that its listener names.

package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/mtls"
)

// settleTime is how long an outbound record waits for the upstream's first
// word. In TLS 1.3 a server refuses a client after the client's handshake is
// done, so that "allowed" would be a guess before.
const settleTime = 150 * time.Millisecond

// serveOutbound reports whether the connection was forwarded; otherwise it is
// over.
func (p *Proxy) serveOutbound(ctx context.Context, out *Outbound, l *link) bool {
	return p.serveCall(ctx, &call{p: p, out: out, ids: []identity.ID{out.ID}, l: l})
}

// serveCall is serveOutbound for a call whose upstream is known.
func (p *Proxy) serveCall(ctx context.Context, c *call) bool {
	now := time.Now()
	l, out := c.l, c.out
	c.st, c.source = p.state.Load(), addrOf(l.near.RemoteAddr())
	defer c.release()
	if c.st.expired(now) {
		return c.fail(c.event(audit.VerdictDenied, audit.ReasonExpired), "the proxy's own SVID has ended")
	}
	if withdrawn := p.withdrawn.Load(); withdrawn != nil {
		return c.fail(c.event(audit.VerdictDenied, audit.ReasonIdentityWithdrawn), withdrawn.detail())
	}
	far, err := p.dial(ctx, out.Dial)
	if err == nil {
		if err = p.announce(far, out.SendProxyProtocol, c.source, addrOf(l.near.LocalAddr())); err != nil {
			far.Close()
		}
	}
	if err != nil {
		p.log.Warn("upstream takes no connection", "dial", out.Dial, "error", err)
		return c.fail(c.event(audit.VerdictFailed, audit.ReasonUpstreamUnreachable), err.Error())
	}
	if !l.attach(far) {
		return false
	}
	return c.handshake(far)
}

// call is one outbound connection until it is forwarded or given up.
type call struct {
	p      *Proxy
	out    *Outbound
	ids    []identity.ID // each of which the other side may prove
	origin string        // of ids, for the record; empty where a listener names the one
	l      *link
	st     *state
	source netip.AddrPort
}

// release lets go of what only the handshake needed, as visit.release does.
func (c *call) release() { c.st = nil }

// Credentials are those of the moment of accept, until the handshake is done.
func (c *call) Credentials() *identity.Credentials { return c.st.Credentials() }

// handshake proves the upstream's identity and forwards.
func (c *call) handshake(far *raw) bool {
	began := time.Now()
	far.SetDeadline(began.Add(c.p.cfg.Limits.HandshakeTimeout))
	var peer mtls.Peer
	exact := mtls.AnyID(c.ids...)
	config := mtls.ClientConfig(c, c.p.verifier, func(p mtls.Peer, cs tls.ConnectionState) error {
		peer = p
		return exact(p, cs)
	})
	config.ServerName, config.NextProtos = c.out.ServerName, c.out.ALPN
	conn := tls.Client(far, config)
	if err := conn.Handshake(); err != nil {
		e := c.event(audit.VerdictDenied, reasonOf(err))
		e.Transport, e.Destination = audit.TransportMTLS, addrOf(far.RemoteAddr()).String()
		if r, ok := errors.AsType[*mtls.Rejection](err); ok {
			peer.ID, peer.Serial = r.ID, r.Serial
		}
		detail := err.Error()
		if !peer.ID.IsZero() {
			e.ServerID, e.ServerSerial = peer.ID.String(), peer.Serial
			detail += " (" + unproven + ")"
		}
		return c.fail(e, detail)
	}
	far.SetDeadline(time.Time{})
	c.p.metrics.handshake.Observe(time.Since(began).Seconds())
	e := c.event(audit.VerdictAllowed, audit.ReasonAllowed)
	e.Destination, e.ServerID, e.ServerSerial = addrOf(far.RemoteAddr()).String(), peer.ID.String(), peer.Serial
	negotiated(e, conn.ConnectionState())
	c.p.remember(c.l, e, c.source)
	c.l.meet(peer, conn.ConnectionState())
	if why := peer.Denied(c.p.state.Load().creds.Denials()); why != "" {
		if c.l.close(true) { // else cutRevoked has been here
			c.p.recordCut(c.l, time.Now(), audit.ReasonRevoked, why)
		}
		return false
	}
	c.p.forward(c.l, half{raw: c.l.near}, half{raw: far, tls: conn, heard: c.await(e)})
	return true
}

// await records e as it is when the upstream sends something, or settleTime
// passes, and as a refusal where the upstream's first word is an alert or a
// reset. The returned function takes that first word.
func (c *call) await(e *audit.Event) func(error) {
	var told atomic.Bool
	tell := func() {
		if !told.Swap(true) {
			c.p.record(e, c.source)
		}
	}
	timer := time.AfterFunc(settleTime, tell)
	return func(err error) {
		timer.Stop()
		if err == nil || !refusedByPeer(err) && !isReset(err) {
			tell()
			return
		}
		late := told.Swap(true)
		refused := *e
		refused.Verdict, refused.Reason = audit.VerdictDenied, audit.ReasonHandshakeFailed
		refused.Detail = "upstream refused: " + brief(err.Error())
		if isReset(err) {
			if late {
				return // a reset after a silence is no refusal
			}
			refused.Reason = audit.ReasonReset
		}
		if began := c.l.life.Swap(nil); began != nil { // it never did
			began.pair.Closed(0, 0)
		}
		c.p.record(&refused, c.source)
	}
}

// event starts this connection's record.
func (c *call) event(verdict audit.Verdict, reason string) *audit.Event {
	e := c.p.event(time.Now(), audit.DirectionOutbound, verdict, reason)
	e.ClientID, e.ClientSerial = c.st.id().String(), c.st.serial()
	e.Generation, e.Detail = c.st.set.Generation(), c.expectation()
	if len(c.ids) == 1 {
		e.ServerID = c.ids[0].String()
	}
	e.Transport = audit.TransportMTLS
	e.Source, e.Destination, e.SNI = c.source.String(), c.out.Dial, c.out.ServerName
	return e
}

// expectation says where the identity comes from.
func (c *call) expectation() string {
	if c.origin == "" {
		return ""
	}
	return "identity by " + c.origin
}

// fail records and closes.
func (c *call) fail(e *audit.Event, detail string) bool {
	if from := c.expectation(); from != "" {
		detail = from + ": " + detail
	}
	e.Detail = brief(detail)
	c.p.record(e, c.source)
	c.l.close(true)
	return false
}
