// This file holds the serving of redirected connections: where each was
// going decides which inbound or outbound path it takes.

package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/mtls"
	"github.com/aval-id/aval/proxy/intercept"
)

// Why a connection to a transparent port is a loop.
var (
	errOwnConnection = errors.New("the proxy opened this connection itself: the interception rules do not let its user pass")
	errOwnListener   = errors.New("the original destination is a listener of this proxy")
)

// origin finds where a redirected connection was going, and refuses what
// would come back to the proxy.
func (p *Proxy) origin(l *link) (netip.AddrPort, error) {
	if p.dialled.has(addrOf(l.near.RemoteAddr())) {
		return netip.AddrPort{}, errOwnConnection
	}
	return intercept.OriginalDestination(l.near.TCPConn)
}

// serveRedirectedIn serves a connection from another machine, and reports
// whether it was forwarded; otherwise it is over.
func (p *Proxy) serveRedirectedIn(ctx context.Context, l *link) bool {
	to, err := p.origin(l)
	if err == nil && p.listensOn(to.Port()) {
		err = errOwnListener
	}
	if err != nil {
		return p.refuseRedirected(audit.DirectionInbound, l, to, err)
	}
	l.original = to
	return p.serveInbound(ctx, p.cfg.Transparent.Inbound.listener(to), l)
}

// serveRedirectedOut serves a connection of a local process, and reports
// whether it was forwarded; otherwise it is over.
func (p *Proxy) serveRedirectedOut(ctx context.Context, l *link) bool {
	to, err := p.origin(l)
	if err == nil && to.Addr().IsLoopback() && p.listensOn(to.Port()) {
		err = errOwnListener
	}
	if err != nil {
		return p.refuseRedirected(audit.DirectionOutbound, l, to, err)
	}
	l.original = to
	return p.resolve(ctx, l, to)
}

// resolve finds whom to expect at a destination: by configuration, by the
// registry of endpoints, or nobody. Where somebody is expected there is mutual
// TLS with that identity, or nothing.
func (p *Proxy) resolve(ctx context.Context, l *link, to netip.AddrPort) bool {
	if d, ok := p.destinations.find(to); ok {
		p.resolved(to, originConfigured, []identity.ID{d.ID}, false)
		out := &Outbound{Dial: d.dial(to), ServerName: d.ServerName, ALPN: d.ALPN}
		return p.serveCall(ctx, &call{p: p, out: out, ids: []identity.ID{d.ID}, origin: "configuration", l: l})
	}
	answer, registered, known := p.registry.find(ctx, to, p.cfg.Limits.DialTimeout)
	switch {
	case !known:
		p.resolved(to, originUnknown, nil, true)
		return p.passThrough(ctx, l, to, audit.ReasonNoSnapshot, "the registry of endpoints has not come yet: who is there is not known")
	case registered && answer.Mutual:
		p.resolved(to, originRegistry, answer.IDs, false)
		// The mesh's own protocol leaves what the application speaks to its
		// first bytes.
		out := &Outbound{Dial: to.String(), ALPN: []string{mtls.ALPN}}
		return p.serveCall(ctx, &call{p: p, out: out, ids: answer.IDs, origin: "the registry of endpoints", l: l})
	case registered:
		p.resolved(to, originRegistry, nil, false)
		return p.passThrough(ctx, l, to, "", "the registry of endpoints has the mode DISABLE for the destination")
	}
	refused := ""
	if p.cfg.Transparent.Outbound.Unknown == UnknownRefuse {
		refused = audit.ReasonPlaintextRefused
	}
	p.resolved(to, originUnknown, nil, refused != "")
	return p.passThrough(ctx, l, to, refused, "no identity is configured or registered for the destination")
}

// resolved notes and counts what is made of a destination.
func (p *Proxy) resolved(to netip.AddrPort, origin string, ids []identity.ID, refused bool) {
	p.metrics.resolved.WithLabelValues(origin).Inc()
	p.registry.note(to, origin, ids, refused, time.Now())
}

// dialKnown dials so that a connection which comes back is known.
func (p *Proxy) dialKnown(ctx context.Context, dialer net.Dialer, address string) (*raw, error) {
	c, forget, err := p.dialled.dial(ctx, dialer, address)
	if err != nil {
		return nil, err
	}
	t, err := tcpOf(c)
	if err != nil {
		forget()
		return nil, err
	}
	r, err := newRaw(t, nil)
	if err != nil {
		forget()
		t.Close()
		return nil, err
	}
	r.closing = forget
	return r, nil
}

// listensOn reports whether the port is one of the proxy's listeners'.
func (p *Proxy) listensOn(number uint16) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.ports, func(o port) bool { return addrOf(o.listener.Addr()).Port() == number })
}

// passThrough forwards a connection as it is, or refuses it where there is a
// reason to.
func (p *Proxy) passThrough(ctx context.Context, l *link, to netip.AddrPort, refused audit.Reason, detail string) bool {
	source := addrOf(l.near.RemoteAddr())
	e := p.event(time.Now(), audit.DirectionOutbound, audit.VerdictAllowed, audit.ReasonPlaintextAllowed)
	e.Transport, e.Source, e.Destination = audit.TransportPlaintext, source.String(), to.String()
	e.Port, e.Detail = to.Port(), detail
	if refused != "" {
		e.Verdict, e.Reason = audit.VerdictDenied, refused
		p.record(e, source)
		l.close(true)
		return false
	}
	far, err := p.dial(ctx, to.String())
	if err != nil {
		e.Verdict, e.Reason, e.Detail = audit.VerdictFailed, audit.ReasonUpstreamUnreachable, brief(err.Error())
		p.record(e, source)
		l.close(true)
		return false
	}
	if !l.attach(far) {
		return false
	}
	p.record(e, source)
	p.forward(l, half{raw: l.near}, half{raw: far})
	return true
}

// refuseRedirected ends a connection that has no place to go.
func (p *Proxy) refuseRedirected(direction string, l *link, to netip.AddrPort, why error) bool {
	source := addrOf(l.near.RemoteAddr())
	e := p.event(time.Now(), direction, audit.VerdictDenied, audit.ReasonLoop)
	e.Source, e.Destination, e.Detail = source.String(), addrOf(l.near.LocalAddr()).String(), brief(why.Error())
	if to.IsValid() {
		e.Destination, e.Port = to.String(), to.Port()
	}
	p.record(e, source)
	l.close(true)
	return false
}
