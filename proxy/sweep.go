// This file holds what ends open connections: the sweep, the one loop that ends
// them for their age, their silence, or the end of what they were admitted by,
// and that watches the memory; and what a change of policies or a revocation
// ends.

package proxy

import (
	"context"
	"fmt"
	runtimemetrics "runtime/metrics"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/rotation"
)

const (
	// sweepEvery is how often connections and memory are looked at, unless a
	// shorter setting asks for more.
	sweepEvery = 250 * time.Millisecond
	// deadEvery is how often connections are looked at for one side that was
	// reset while the other takes nothing: nobody reads there.
	deadEvery = 5 * time.Second
	// quietFor is the silence after which a connection that is to be drained
	// is closed.
	quietFor = time.Second
)

// withdrawal says since when the agent refuses the proxy its identity.
type withdrawal struct {
	since time.Time
	cause error
}

func (w *withdrawal) detail() string {
	return brief("the agent no longer grants this proxy its identity: " + status.Convert(w.cause).Message())
}

// withdraw stops admitting. What is open goes on as the setting says.
func (p *Proxy) withdraw(cause error, now time.Time) {
	if p.state.Load() == nil || p.withdrawn.Load() != nil {
		return
	}
	p.withdrawn.Store(&withdrawal{now, cause})
	p.log.Error("the identity was taken away; nothing new is admitted", "error", cause, "open_connections", string(p.cfg.OnIdentityLost))
}

// sweep runs until ctx ends.
func (p *Proxy) sweep(ctx context.Context) {
	every := sweepEvery
	for _, d := range []time.Duration{p.cfg.Limits.IdleTimeout, p.cfg.Limits.MaxLifetime} {
		if d > 0 {
			every = max(time.Millisecond, min(every, d/8))
		}
	}
	var collector *pace
	if p.cfg.PaceCollector {
		collector = newPace(time.Now())
	}
	for buried := time.Now(); rotation.Pause(ctx, every); {
		p.memory.look(p.log.Warn)
		now := time.Now()
		if collector != nil {
			collector.adjust(now)
		}
		if p.sweeps() {
			p.sweepOnce(now)
		}
		if now.Sub(buried) >= deadEvery {
			buried = now
			p.bury()
		}
	}
}

// bury ends connections of which one side is gone.
func (p *Proxy) bury() {
	for _, l := range p.table.snapshot() {
		if l.opened.Load() != nil && l.dead() {
			l.close(true)
		}
	}
}

// dead reports whether one side was reset.
func (l *link) dead() bool {
	near, far := l.sides()
	for _, r := range []*raw{near, far} {
		if r == nil {
			continue
		}
		if info, err := r.info(); err == nil && info.State == unix.BPF_TCP_CLOSE {
			return true
		}
	}
	return false
}

// sweeps reports whether any setting ends connections.
func (p *Proxy) sweeps() bool {
	l := p.cfg.Limits
	return l.IdleTimeout > 0 || l.MaxLifetime > 0 || p.cfg.OnPeerExpiry != Keep ||
		p.cfg.OnIdentityLost != Keep && p.withdrawn.Load() != nil
}

// sweepOnce ends every connection whose time has come, each with a record.
func (p *Proxy) sweepOnce(now time.Time) {
	for _, l := range p.table.snapshot() {
		if l.opened.Load() == nil {
			continue // the handshake has a deadline of its own
		}
		reason, detail, abort := p.over(l, now)
		if reason == "" {
			continue
		}
		l.because(reason)
		if l.close(abort) {
			p.recordCut(l, now, reason, detail)
		}
	}
}

// reconsider judges every open inbound connection by the new policies and
// closes those that are no longer allowed, each with a record.
func (p *Proxy) reconsider(st *state) {
	if p.cfg.OnPolicyChange == Keep {
		return
	}
	for _, l := range p.table.snapshot() {
		a := l.admitted.Load()
		if a == nil {
			continue
		}
		d := a.judge(st)
		if d.Allowed {
			continue
		}
		l.because(audit.ReasonPolicyChanged)
		if !l.close(true) {
			continue
		}
		e := p.event(time.Now(), audit.DirectionInbound, audit.VerdictDenied, audit.ReasonPolicyChanged)
		e.ClientID, e.ClientSerial, e.Transport = a.conn.Peer.String(), a.clientSerial, a.transport
		e.Source, e.Destination = a.source.String(), a.destination.String()
		if a.remote != a.source {
			e.Remote = a.remote.String()
		}
		e.Port, e.SNI, e.Detail = a.conn.Port, brief(a.conn.SNI), d.Reason
		decided(e, d)
		p.record(e, a.source)
	}
	p.requests.Reconsider(st.set)
}

// cutRevoked ends every connection whose peer is revoked, each with a record,
// unless they are to be kept.
func (p *Proxy) cutRevoked(st *state, now time.Time) {
	denials := st.creds.Denials()
	if denials.Empty() || p.cfg.OnRevocation == Keep {
		return
	}
	for _, l := range p.table.snapshot() {
		peer := l.peer.Load()
		if peer == nil {
			continue // the handshake asks for itself
		}
		why := peer.Denied(denials)
		if why == "" {
			continue
		}
		l.because(audit.ReasonRevoked)
		if l.close(true) {
			p.recordCut(l, now, audit.ReasonRevoked, why)
		}
	}
}

// over says why a connection is to end now, with "" for no reason.
func (p *Proxy) over(l *link, now time.Time) (reason, detail string, abort bool) {
	if withdrawn := p.withdrawn.Load(); withdrawn != nil && p.due(p.cfg.OnIdentityLost, withdrawn.since, l, now) {
		return audit.ReasonIdentityWithdrawn, withdrawn.detail(), p.cfg.OnIdentityLost == Cut
	}
	if peer := l.peer.Load(); peer != nil && !now.Before(peer.NotAfter) && p.due(p.cfg.OnPeerExpiry, peer.NotAfter, l, now) {
		return audit.ReasonExpired, "the peer's certificate ended while the connection was open", p.cfg.OnPeerExpiry == Cut
	}
	limits := p.cfg.Limits
	if limits.MaxLifetime > 0 && now.Sub(l.began) >= limits.MaxLifetime {
		return audit.ReasonLimit, fmt.Sprintf("open for %s", limits.MaxLifetime), false
	}
	if limits.IdleTimeout > 0 && l.idle(limits.IdleTimeout, now) {
		return audit.ReasonLimit, fmt.Sprintf("idle for %s", limits.IdleTimeout), false
	}
	return "", "", false
}

// due reports whether the action, asked for since a moment, ends the
// connection now.
func (p *Proxy) due(a Action, since time.Time, l *link, now time.Time) bool {
	switch a {
	case Cut:
		return true
	case Drain:
		return now.Sub(since) >= p.cfg.Limits.Drain || l.silence() >= quietFor
	}
	return false
}

// idle reports whether nothing came over the connection for so long. It asks
// the kernel only where that is possible at all.
func (l *link) idle(most time.Duration, now time.Time) bool {
	if l.quiet.IsZero() {
		l.quiet = l.opened.Load().Add(most)
	}
	if now.Before(l.quiet) {
		return false
	}
	silent := l.silence()
	if silent >= most {
		return true
	}
	l.quiet = now.Add(most - silent)
	return false
}

// silence is how long no data came or went on either side, by the kernel's
// word: it also knows of what is spliced.
func (l *link) silence() time.Duration {
	least := time.Duration(-1)
	near, far := l.sides()
	for _, r := range []*raw{near, far} {
		if r == nil {
			continue
		}
		if info, err := r.info(); err == nil {
			d := time.Duration(min(info.Last_data_recv, info.Last_data_sent)) * time.Millisecond
			if least < 0 || d < least {
				least = d
			}
		}
	}
	return max(0, least)
}

// info asks the kernel about the connection (tcp(7) TCP_INFO).
func (r *raw) info() (*unix.TCPInfo, error) {
	var info *unix.TCPInfo
	var failed error
	err := r.sys.Control(func(fd uintptr) { info, failed = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err == nil {
		err = failed
	}
	return info, err
}

// recordCut records the decision to end an open connection.
func (p *Proxy) recordCut(l *link, now time.Time, reason, detail string) {
	e := p.event(now, l.direction, audit.VerdictDenied, reason)
	e.Source, e.Destination, e.Detail = l.source.String(), l.target, detail
	e.Transport, e.DurationMS = audit.TransportPlaintext, now.Sub(l.began).Milliseconds()
	if peer := l.peer.Load(); peer != nil {
		e.Transport, e.SNI, e.ALPN = audit.TransportMTLS, brief(peer.sni), peer.alpn
		if l.direction == audit.DirectionInbound {
			e.ClientID, e.ClientSerial = peer.ID.String(), peer.Serial
		} else {
			e.ServerID, e.ServerSerial = peer.ID.String(), peer.Serial
		}
	}
	if a := l.admitted.Load(); a != nil {
		e.Transport, e.Port, e.SNI, e.Destination = a.transport, a.conn.Port, brief(a.conn.SNI), a.destination.String()
		if a.remote != a.source {
			e.Remote = a.remote.String()
		}
	}
	p.record(e, l.source)
}

// memory knows whether the process holds more than it may.
type memory struct {
	most    uint64 // bytes
	full    atomic.Bool
	held    atomic.Uint64
	samples []runtimemetrics.Sample // of the sweep
}

func newMemory(l Limits) *memory {
	return &memory{most: uint64(l.MaxMemoryMiB) << 20, samples: []runtimemetrics.Sample{
		{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}, {Name: "/memory/classes/heap/free:bytes"}}}
}

// look measures. What the runtime holds free counts as free: it is used
// before anything is asked of the kernel. A full memory stays so until a
// tenth of the bound is free.
func (m *memory) look(warn func(string, ...any)) {
	runtimemetrics.Read(m.samples)
	held := m.samples[0].Value.Uint64() - m.samples[1].Value.Uint64() - m.samples[2].Value.Uint64()
	m.held.Store(held)
	switch full := m.full.Load(); {
	case !full && held > m.most:
		m.full.Store(true)
		warn("memory is at its bound; new connections are refused", "bytes", held, "limit", m.most)
	case full && held < m.most-m.most/10:
		m.full.Store(false)
		warn("memory is below its bound again", "bytes", held, "limit", m.most)
	}
}
