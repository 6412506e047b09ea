// This file holds the inbound path: from an accepted connection over its
// first bytes and its handshake to a verdict.

package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/mtls"
	"github.com/aval-id/aval/identity/policy"
)

// visit is one inbound connection until it is forwarded or refused. One
// goroutine owns it.
type visit struct {
	p                   *Proxy
	in                  *Inbound
	l                   *link
	st                  *state // of the moment of accept; the verdict is checked again against the newest
	mode                policy.Mode
	deadline            time.Time // of everything before the verdict
	source, destination netip.AddrPort
	remote              netip.AddrPort // for whom source dialled; source itself unless a header says so
	told                bool           // a header was believed
	opening             opening
	began               atomic.Bool // the client has sent something
	transport           string
	exception           string // that let plaintext in
}

// serveInbound reports whether the connection was forwarded; otherwise it is
// over.
func (p *Proxy) serveInbound(ctx context.Context, in *Inbound, l *link) bool {
	now := time.Now()
	v := &visit{p: p, in: in, l: l, st: p.state.Load(), deadline: now.Add(p.cfg.Limits.HandshakeTimeout),
		source: addrOf(l.near.RemoteAddr()), destination: l.destination()}
	defer v.release()
	if v.st.expired(now) {
		return v.refuse(audit.ReasonExpired, "the proxy's own SVID has ended", v.undecided(), nil)
	}
	if withdrawn := p.withdrawn.Load(); withdrawn != nil {
		return v.refuse(audit.ReasonIdentityWithdrawn, withdrawn.detail(), v.undecided(), nil)
	}
	v.mode = v.st.modeFor(v.source.Addr(), in.Port, now)
	l.near.SetDeadline(v.deadline)
	if !v.preamble() {
		return false
	}
	switch {
	case v.mode == policy.Disable && in.Protocol != ProtocolTLS:
		return v.plaintext(ctx, audit.TransportPlaintext, nil)
	case v.mode == policy.Permissive && in.Protocol == ProtocolServerFirst:
		return v.serverFirst(ctx)
	}
	err := v.look(v.deadline)
	return v.route(ctx, err, nil)
}

// release lets go of what only the verdict needed. The TLS connection holds
// the visit by its configuration, and would keep a whole generation of
// policies for as long as it lives.
func (v *visit) release() { v.st, v.opening = nil, opening{} }

// Credentials are those of the moment of accept, until the verdict.
func (v *visit) Credentials() *identity.Credentials { return v.st.Credentials() }

// look reads the client's first bytes until it knows what they are.
func (v *visit) look(until time.Time) error {
	v.l.near.SetReadDeadline(until)
	var chunk [2048]byte
	for v.opening.stage == stageMore {
		n, err := v.l.near.Read(chunk[:])
		if n > 0 {
			v.began.Store(true)
			v.opening.feed(chunk[:n])
		}
		if err != nil && v.opening.stage == stageMore {
			return err
		}
	}
	return nil
}

// route sends the connection where its first bytes say. far is the
// application where it was dialled already.
func (v *visit) route(ctx context.Context, err error, far *raw) bool {
	v.l.near.prefix = v.opening.raw
	v.p.metrics.firstBytes.WithLabelValues(v.opening.kind(v.st.names())).Inc()
	switch {
	case err != nil:
		return v.refuse(reasonOf(err), "before the first bytes told what it is", v.undecided(), far)
	case v.opening.stage == stagePlain && v.in.Protocol == ProtocolTLS:
		v.transport = audit.TransportPlaintext
		return v.refuse(audit.ReasonPlaintextRefused, "the port takes TLS only", v.undecided(), far)
	case v.opening.stage == stagePlain:
		return v.plaintext(ctx, audit.TransportPlaintext, far)
	case v.mode == policy.Disable,
		v.mode == policy.Permissive && v.opening.stage == stageHello && !v.opening.hello.forMesh(v.st.names()):
		return v.plaintext(ctx, audit.TransportTLSPassthrough, far)
	}
	return v.terminate(ctx, far)
}

// serverFirst gives the client a moment, and then lets whoever speaks first
// decide: a slow ClientHello is TLS as long as the application is silent.
func (v *visit) serverFirst(ctx context.Context) bool {
	wait := time.Now().Add(v.p.cfg.Limits.ServerFirstWait)
	err := v.look(wait)
	if err == nil || !isTimeout(err) {
		return v.route(ctx, err, nil)
	}
	if v.began.Load() || !v.verdict("").Allowed {
		// It has begun, or plaintext is refused anyhow: only a ClientHello
		// can still be let in.
		err = v.look(v.deadline)
		if isTimeout(err) && !v.began.Load() {
			v.p.metrics.firstBytes.WithLabelValues(audit.ProtocolSilent).Inc()
			d := v.verdict("")
			v.transport = audit.TransportPlaintext
			return v.refuse(d.Reason, "", d, nil)
		}
		return v.route(ctx, err, nil)
	}
	far, err := v.dial(ctx)
	if err != nil {
		v.transport = audit.TransportPlaintext
		return v.unreachable(err, v.verdict(""), mtls.Peer{}, nil)
	}
	if !v.l.attach(far) {
		return false
	}
	err = v.race(far)
	if v.began.Load() {
		return v.route(ctx, err, far)
	}
	if err != nil && !isTimeout(err) {
		return v.route(ctx, err, far)
	}
	// The application spoke, or nobody did in all that time.
	v.p.metrics.firstBytes.WithLabelValues(kindServerFirst).Inc()
	return v.plaintext(ctx, audit.TransportPlaintext, far)
}

// race reads the client's first bytes until the application has sent its
// own. Nothing of the application's is read here.
func (v *visit) race(far *raw) error {
	spoke := make(chan struct{})
	go func() {
		defer close(spoke)
		if far.wait() == nil && !v.began.Load() {
			v.l.near.interrupt()
		}
	}()
	err := v.look(v.deadline)
	far.interrupt()
	<-spoke
	far.resume()
	// The client may have begun in the very moment of the interruption.
	if isTimeout(err) && v.began.Load() && time.Now().Before(v.deadline) {
		err = v.look(v.deadline)
	}
	return err
}

// verdict judges the connection as one without identity.
func (v *visit) verdict(sni string) policy.Decision {
	d, _ := v.st.decide(v.connection(identity.ID{}, sni), time.Now())
	return d
}

// undecided is what a record says of the policies where none was asked: the
// mode in force.
func (v *visit) undecided() policy.Decision {
	d := policy.Decision{Rule: -1, Generation: v.st.set.Generation()}
	d.Mode, d.ModeSource = v.st.set.Mode(v.in.Port)
	return d
}

func (v *visit) connection(peer identity.ID, sni string) policy.Connection {
	return policy.Connection{Peer: peer, Source: v.source.Addr(), Destination: v.destination.Addr(), Port: v.in.Port, SNI: sni, Remote: v.remote.Addr()}
}

// plaintext lets the application have the connection as it is, where mode and
// policies admit a peer without identity.
func (v *visit) plaintext(ctx context.Context, transport string, far *raw) bool {
	v.transport = transport
	switch {
	case far != nil || !v.byRequest() || v.exempted():
	case transport != audit.TransportPlaintext:
		v.warnNotHTTP()
	default:
		if forwarded, done := v.plainRequests(); done {
			return forwarded
		}
	}
	conn := v.connection(identity.ID{}, v.opening.hello.SNI)
	d, by := v.st.decide(conn, time.Now())
	if !d.Allowed {
		return v.refuse(d.Reason, "", d, far)
	}
	v.exception = by
	return v.admit(ctx, admission{conn: conn}, d, half{raw: v.l.near}, far)
}

// terminate runs the handshake. Whatever fails in it ends the connection:
// there is no way back to plaintext.
func (v *visit) terminate(ctx context.Context, far *raw) bool {
	v.transport = audit.TransportMTLS
	v.l.near.SetDeadline(v.deadline)
	began := time.Now()
	d := v.undecided()
	var peer mtls.Peer
	config := mtls.ServerConfig(v, v.p.verifier, func(p mtls.Peer, cs tls.ConnectionState) error {
		// The name that the handshake read counts: a hello that the reader
		// gave up on has one too.
		peer, v.opening.hello.SNI = p, cs.ServerName
		if role := p.ID.Role(); role != identity.RoleWorkload {
			return &mtls.Rejection{Reason: mtls.ReasonIDMismatch, ID: p.ID, Serial: p.Serial,
				Err: fmt.Errorf("peer has the role %s, not workload", role)}
		}
		if d = v.judge(p.ID, v.opening.hello.SNI); !d.Allowed {
			return &mtls.Rejection{Reason: d.Reason, ID: p.ID, Serial: p.Serial, Err: errors.New("policies do not allow it")}
		}
		return nil
	})
	config.NextProtos = v.protocols()
	conn := tls.Server(v.l.near, config)
	if err := conn.Handshake(); err != nil {
		return v.failed(err, d, peer, far)
	}
	v.p.metrics.handshake.Observe(time.Since(began).Seconds())
	v.l.meet(peer, conn.ConnectionState())
	// What was revoked since the accept is found either here or by cutRevoked.
	if why := peer.Denied(v.p.state.Load().creds.Denials()); why != "" {
		e := v.established(audit.VerdictDenied, audit.ReasonRevoked, d, peer, conn)
		e.Detail = why
		v.p.record(e, v.source)
		v.abandon(far)
		v.l.close(true)
		return false
	}
	a := admission{conn: v.connection(peer.ID, v.opening.hello.SNI), clientSerial: peer.Serial}
	if far == nil && v.byRequest() {
		return v.secureRequests(ctx, a, d, conn)
	}
	return v.admit(ctx, a, d, half{raw: v.l.near, tls: conn}, far)
}

// protocols returns what ALPN may agree on. A client that offers the mesh's
// own protocol and nothing of the application's gets that.
func (v *visit) protocols() []string {
	offered := v.opening.hello.ALPN
	if slices.ContainsFunc(v.in.ALPN, func(s string) bool { return slices.Contains(offered, s) }) {
		return v.in.ALPN
	}
	if slices.Contains(offered, mtls.ALPN) {
		return []string{mtls.ALPN}
	}
	return v.in.ALPN
}

// failed records a handshake that did not complete.
func (v *visit) failed(err error, d policy.Decision, peer mtls.Peer, far *raw) bool {
	reason := reasonOf(err)
	if v.opening.stage == stageHello && !v.opening.hello.TLS13 {
		reason = audit.ReasonTLSVersion
	}
	e := v.event(audit.VerdictDenied, reason, d)
	e.ServerSerial, e.Detail = v.st.serial(), brief(err.Error())
	if r, ok := errors.AsType[*mtls.Rejection](err); ok {
		peer.ID, peer.Serial = r.ID, r.Serial
	}
	if !peer.ID.IsZero() {
		e.ClientID, e.Detail = peer.ID.String(), e.Detail+" ("+unproven+")"
	}
	e.ClientSerial = peer.Serial
	v.p.record(e, v.source)
	v.abandon(far)
	if reason != audit.ReasonReset && reason != audit.ReasonHandshakeTimeout {
		v.partingRead()
	}
	return false
}

// partingRead lets the alert that was sent reach the client: closing with
// bytes unread would reset the connection and discard it.
func (v *visit) partingRead() {
	const most, longest = 64 << 10, 250 * time.Millisecond
	v.l.near.CloseWrite()
	v.l.near.SetReadDeadline(time.Now().Add(longest))
	io.CopyN(io.Discard, v.l.near.TCPConn, most)
}

// admit dials the application where that is still to be done, makes sure that
// the newest policies agree, records, and forwards.
func (v *visit) admit(ctx context.Context, a admission, d policy.Decision, near half, far *raw) bool {
	v.l.seat.Decided()
	peer := mtls.Peer{ID: a.conn.Peer, Serial: a.clientSerial}
	if far == nil {
		var err error
		if far, err = v.dial(ctx); err != nil {
			return v.unreachable(err, d, peer, near.tls)
		}
		if !v.l.attach(far) {
			return false
		}
	}
	a.source, a.destination, a.remote, a.transport = v.source, v.destination, v.remote, v.transport
	v.l.admitted.Store(&a)
	if now := v.p.state.Load(); now.set != v.st.set {
		if d, v.exception = now.decide(a.conn, time.Now()); !d.Allowed {
			v.l.admitted.Store(nil)
			return v.refuse(d.Reason, "policies changed during the handshake", d, nil)
		}
	}
	if withdrawn := v.p.withdrawn.Load(); withdrawn != nil {
		v.l.admitted.Store(nil)
		return v.refuse(audit.ReasonIdentityWithdrawn, withdrawn.detail(), d, nil)
	}
	v.p.recordBeginning(v.l, v.established(audit.VerdictAllowed, d.Reason, d, peer, near.tls), v.source)
	near.raw.SetDeadline(time.Time{})
	v.p.forward(v.l, near, half{raw: far})
	return true
}

// unreachable records that the application took no connection.
func (v *visit) unreachable(err error, d policy.Decision, peer mtls.Peer, conn *tls.Conn) bool {
	e := v.established(audit.VerdictFailed, audit.ReasonUpstreamUnreachable, d, peer, conn)
	e.Detail = brief(err.Error())
	v.p.record(e, v.source)
	v.p.log.Warn("application takes no connection", "forward", v.in.Forward, "error", err)
	v.l.close(conn == nil)
	return false
}

// refuse records a refusal and cuts the connection.
func (v *visit) refuse(reason, detail string, d policy.Decision, far *raw) bool {
	e := v.event(audit.VerdictDenied, reason, d)
	e.Detail = detail
	v.p.record(e, v.source)
	v.abandon(far)
	v.l.close(true)
	return false
}

func (v *visit) abandon(far *raw) {
	if far != nil {
		far.Close()
	}
}

// event starts this connection's record.
func (v *visit) event(verdict audit.Verdict, reason string, d policy.Decision) *audit.Event {
	e := v.p.event(time.Now(), audit.DirectionInbound, verdict, reason)
	e.ServerID = v.st.id().String()
	e.Transport, e.SNI, e.Port = v.transport, brief(v.opening.hello.SNI), v.in.Port
	e.Source, e.Destination = v.source.String(), v.destination.String()
	e.Exception = v.exception
	e.Protocol = spoken(v.transport, reason, v.opening.raw)
	if v.told && v.remote != v.source {
		e.Remote = v.remote.String()
	}
	decided(e, d)
	return e
}

// established is event for a connection whose peer is known as far as it can
// be: by a completed handshake, or not at all in plaintext.
func (v *visit) established(verdict audit.Verdict, reason string, d policy.Decision, peer mtls.Peer, conn *tls.Conn) *audit.Event {
	e := v.event(verdict, reason, d)
	e.ClientID, e.ClientSerial = peer.ID.String(), peer.Serial
	if conn != nil {
		negotiated(e, conn.ConnectionState())
		e.ServerSerial = v.st.serial()
	}
	return e
}

// dial connects to the application, and tells it for whom where it wants to
// know.
func (v *visit) dial(ctx context.Context) (*raw, error) {
	far, err := v.p.dial(ctx, v.in.Forward)
	if err != nil {
		return nil, err
	}
	if err := v.p.announce(far, v.in.SendProxyProtocol, v.remote, v.destination); err != nil {
		far.Close()
		return nil, err
	}
	return far, nil
}

func (p *Proxy) dial(ctx context.Context, address string) (*raw, error) {
	dialer := net.Dialer{Timeout: p.cfg.Limits.DialTimeout}
	if p.cfg.Transparent != nil {
		return p.dialKnown(ctx, dialer, address)
	}
	c, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	t, err := tcpOf(c)
	if err != nil {
		return nil, err
	}
	return newRaw(t, nil)
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}
