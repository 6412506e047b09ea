// This file holds link, one connection through the proxy, and the table of
// open ones.

package proxy

import (
	"crypto/tls"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/mtls"
	"github.com/aval-id/aval/identity/policy"
	"github.com/aval-id/aval/identity/wire/sources"
)

// link is a connection from accept to close. Its near side was accepted, its
// far side was dialled.
type link struct {
	near      *raw
	served    atomic.Uint64 // bytes to the dialling side, where requests are judged by themselves
	direction string
	target    string // what its listener forwards to or dials
	source    netip.AddrPort
	began     time.Time     // accepted
	seat      *sources.Seat // nil for outbound

	peer   atomic.Pointer[party]     // who proved to be on the other side; nil without TLS
	opened atomic.Pointer[time.Time] // when it began to be forwarded, or its requests to be served
	quiet  time.Time                 // the sweep's: it cannot be idle for too long before
	// original is where a redirected connection was going, and zero for one
	// that came by itself. It is set before the link is served.
	original netip.AddrPort

	// admitted is what an inbound connection was judged by, once it was
	// allowed; changed policies judge it again.
	admitted atomic.Pointer[admission]

	// life is what the record of the end says, once the beginning is
	// recorded; ending is the first reason that was given for it.
	life   atomic.Pointer[life]
	ending atomic.Pointer[audit.Reason]

	mu     sync.Mutex
	far    *raw // guarded by mu
	closed bool // guarded by mu
}

// admission is an allowed inbound connection as policies see it, with what a
// later record says of it.
type admission struct {
	conn                policy.Connection
	source, destination netip.AddrPort
	remote              netip.AddrPort // for whom source dialled; source itself unless a header said so
	transport           string
	clientSerial        string
	byRequest           bool // its requests are judged one by one
}

// party is the other side of an open connection's TLS.
type party struct {
	mtls.Peer
	sni, alpn string
}

// meet notes who is on the other side.
func (l *link) meet(peer mtls.Peer, cs tls.ConnectionState) {
	l.peer.Store(&party{Peer: peer, sni: cs.ServerName, alpn: cs.NegotiatedProtocol})
}

// sides returns the raw connections, far nil where there is none yet.
func (l *link) sides() (near, far *raw) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.near, l.far
}

// destination is the address that the client dialled.
func (l *link) destination() netip.AddrPort {
	if l.original.IsValid() {
		return l.original
	}
	return addrOf(l.near.LocalAddr())
}

// attach gives the link its far side. It reports false, and closes far, where
// the link was closed meanwhile.
func (l *link) attach(far *raw) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		far.Close()
		return false
	}
	l.far = far
	return true
}

// close ends both sides and reports whether this call did it.
func (l *link) close(abort bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.closed = true
	for _, c := range []*raw{l.near, l.far} {
		switch {
		case c == nil:
		case abort:
			c.abort()
		default:
			c.Close()
		}
	}
	return true
}

// table holds the open links.
type table struct {
	mu    sync.Mutex
	links map[*link]struct{} // guarded by mu
}

func (t *table) add(l *link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.links[l] = struct{}{}
}

func (t *table) remove(l *link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.links, l)
}

// snapshot returns the links open now.
func (t *table) snapshot() []*link {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*link, 0, len(t.links))
	for l := range t.links {
		all = append(all, l)
	}
	return all
}
