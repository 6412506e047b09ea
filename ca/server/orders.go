// This file holds orders to nodes to have leaves issued anew before they are
// due, spread so that the server keeps up.

package server

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aval-id/aval/identity/wire"
)

// rolloverOrder names the order that belongs to the root's rollover.
const rolloverOrder = "root"

// Bounds of the spread.
const (
	defaultCost = time.Millisecond // of one certificate, before any was measured
	maxSpread   = 10 * time.Minute
)

// orders are the orders that stand. A node that connects is given them too.
type orders struct {
	cost atomic.Int64 // nanoseconds for one certificate, a moving mean

	mu       sync.Mutex
	sequence uint64           // guarded by mu
	standing map[string]order // guarded by mu, by name
}

// order is one order; concerns says to whom it goes.
type order struct {
	sequence uint64
	key      string // what it asks for, to tell a repetition
	message  *wire.Reissue
	concerns func(node string) bool // nil means every node
}

// measure takes in how long a batch of n certificates took.
func (o *orders) measure(took time.Duration, n int) {
	if n == 0 {
		return
	}
	one := int64(took) / int64(n)
	if old := o.cost.Load(); old > 0 {
		one = old + (one-old)/8
	}
	o.cost.Store(max(1, one))
}

// spread returns over which time n certificates are to be asked for, at half
// of what the server can do.
func (o *orders) spread(n int) time.Duration {
	cost := time.Duration(o.cost.Load())
	if cost == 0 {
		cost = defaultCost
	}
	return min(2*cost*time.Duration(n), maxSpread)
}

// put makes an order stand, in place of the one of the same name, and reports
// whether it is a new one.
func (o *orders) put(name string, ord order) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if held, ok := o.standing[name]; ok && held.key == ord.key {
		return false
	}
	if o.standing == nil {
		o.standing = map[string]order{}
	}
	if len(o.standing) > maxReissues { // long done: their leaves are of before
		maps.DeleteFunc(o.standing, func(name string, _ order) bool { return name != rolloverOrder })
	}
	o.sequence++
	ord.sequence = o.sequence
	ord.message.Order = name + " " + ord.key
	o.standing[name] = ord
	return true
}

// drop ends an order.
func (o *orders) drop(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.standing, name)
}

// send sends a session the orders that it was not sent yet. The session's
// pushing goroutine calls it.
func (o *orders) send(sess *session) error {
	o.mu.Lock()
	due := slices.SortedFunc(maps.Values(o.standing), func(a, b order) int { return int(a.sequence) - int(b.sequence) })
	o.mu.Unlock()
	for _, ord := range due {
		if ord.sequence <= sess.ordered {
			continue
		}
		sess.ordered = ord.sequence
		if ord.concerns != nil && !ord.concerns(sess.node.Name()) {
			continue
		}
		if err := sess.send(&wire.ServerFrame{Frame: &wire.ServerFrame_Reissue{Reissue: ord.message}}); err != nil {
			return err
		}
	}
	return nil
}

// orderReissue has every leaf of the old root issued anew. It may be called
// again: an order that stands is not repeated.
func (s *Server) orderReissue(r rolloverRecord, now time.Time) {
	old, _ := s.marks.below(r.Old.ski())
	issuers := slices.Sorted(maps.Keys(old))
	spread := s.orders.spread(s.live.count(now) + len(s.nodes.all()))
	if s.orders.put(rolloverOrder, order{key: r.ID + " " + strings.Join(issuers, " "),
		message: &wire.Reissue{Issuers: issuers, Spread: spread.Milliseconds()}}) {
		s.log.Info("nodes are told to have their leaves issued anew", "issuers", len(issuers), "spread", spread)
		s.sessions.notifyAll()
	}
}

// reissues are the rotations without phases of this process's life, the last
// of each name.
type reissues struct {
	mu   sync.Mutex
	last map[string]reissue // guarded by mu
}

// maxReissues bounds how many are remembered.
const maxReissues = 256

func (x *reissues) put(r reissue) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.last == nil || len(x.last) >= maxReissues {
		x.last = map[string]reissue{}
	}
	x.last[r.key()] = r
}

func (x *reissues) of(key string) (reissue, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	r, ok := x.last[key]
	return r, ok
}
