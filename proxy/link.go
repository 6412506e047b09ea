// This file holds link, one connection through the proxy, and the table of
// open ones.

package proxy

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/aval-id/aval/identity/policy"
)

// link is a connection from accept to close. Its near side was accepted, its
// far side was dialled.
type link struct {
	near *raw

	// admitted is what an inbound connection was judged by, once it was
	// allowed; changed policies judge it again.
	admitted atomic.Pointer[admission]

	mu     sync.Mutex
	far    *raw // guarded by mu
	closed bool // guarded by mu
}

// admission is an allowed inbound connection as policies see it, with what a
// later record says of it.
type admission struct {
	conn                policy.Connection
	source, destination netip.AddrPort
	transport           string
	clientSerial        string
	byRequest           bool // its requests are judged one by one
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
