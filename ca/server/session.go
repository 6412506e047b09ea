// This file holds sessions: the one stream of each node, what the node holds,
// and the deltas that bring it up to date.

package server

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/ca/store"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/directory"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/jwt"
	"github.com/aval-id/aval/identity/wire"
)

// maxDeltaBytes is about how large one delta grows before the next begins.
const maxDeltaBytes = 1 << 20

// session is one node's open stream.
type session struct {
	node    ca.AttestedNode
	key     ca.ProvenKey
	version string

	wake chan struct{}      // documents or checkpoints changed; holds one
	end  chan *wire.Goodbye // holds one: why the session is over

	reports    chan *wire.EndpointReport // the newest that was not taken; holds one
	subscribed atomic.Bool               // the node asked for the registry

	// view and endpoints are used by the pushing goroutine alone.
	view      view
	endpoints directory.Reader

	sending sync.Mutex
	stream  syncStream // guarded by sending
	over    bool       // guarded by sending: the goodbye was said

	mu       sync.Mutex
	acked    store.Position // guarded by mu
	lastSeen time.Time      // guarded by mu
	skew     time.Duration  // guarded by mu: the node's clock minus ours
	held     report         // guarded by mu: what it last acknowledged

	ordered uint64 // the pushing goroutine's: the last order that was sent
}

func newSession(stream syncStream, node ca.AttestedNode, key ca.ProvenKey, hello *wire.Hello, rootNamespace string) *session {
	return &session{
		stream: stream, node: node, key: key, version: clip(hello.GetVersion(), 128),
		wake: make(chan struct{}, 1), reports: make(chan *wire.EndpointReport, 1),
		end: make(chan *wire.Goodbye, 1),
		view: view{attributes: node.Attributes(), root: rootNamespace,
			sent: map[document.Key]uint64{}, namespaces: map[string]int{},
			sources: map[document.Key][]string{}, keyed: map[string]*jwt.Keys{}},
	}
}

var errOver = errors.New("the session is over")

// send sends one frame; nothing follows the last one.
func (s *session) send(f *wire.ServerFrame) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	if s.over {
		return errOver
	}
	return s.stream.Send(f)
}

// sendLast sends the frame that ends the session.
func (s *session) sendLast(f *wire.ServerFrame) {
	s.sending.Lock()
	defer s.sending.Unlock()
	if !s.over {
		s.over = true
		_ = s.stream.Send(f) // the stream ends either way
	}
}

// notify wakes the session. It never blocks.
func (s *session) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// close ends the session with a goodbye; the first reason counts.
func (s *session) close(g *wire.Goodbye) {
	select {
	case s.end <- g:
	default:
	}
}

func (s *session) seen(now time.Time, clock int64) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastSeen = now
	if clock != 0 {
		s.skew = time.UnixMilli(clock).Sub(now)
	}
	return s.skew
}

func (s *session) ack(a *wire.Ack) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acked = store.Position{Epoch: a.GetPosition().GetEpoch(), Revision: a.GetPosition().GetRevision()}
	s.held = reportOf(a)
}

// presence is what is known of a node's last session.
type presence struct {
	connected bool
	acked     store.Position
	lastSeen  time.Time
	skew      time.Duration
	version   string
	held      report
}

// sessions are the open streams by node name, at most one of each.
type sessions struct {
	mu   sync.Mutex
	open map[string]*session // guarded by mu
	past map[string]presence // guarded by mu: of nodes that are not connected
}

// add makes ns the node's session and returns the one that it replaces.
func (x *sessions) add(ns *session) (replaced *session) {
	x.mu.Lock()
	defer x.mu.Unlock()
	replaced = x.open[ns.node.Name()]
	x.open[ns.node.Name()] = ns
	return replaced
}

// remove forgets a session, unless another took its place.
func (x *sessions) remove(s *session) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.open[s.node.Name()] == s {
		delete(x.open, s.node.Name())
		p := s.presence()
		p.connected = false
		x.past[s.node.Name()] = p
	}
}

func (s *session) presence() presence {
	s.mu.Lock()
	defer s.mu.Unlock()
	return presence{connected: true, acked: s.acked, lastSeen: s.lastSeen, skew: s.skew, version: s.version, held: s.held}
}

// of returns what is known of a node's session.
func (x *sessions) of(name string) presence {
	x.mu.Lock()
	defer x.mu.Unlock()
	if s := x.open[name]; s != nil {
		return s.presence()
	}
	return x.past[name]
}

// closeNode ends a node's session, if there is one.
func (x *sessions) closeNode(name string, g *wire.Goodbye) {
	x.mu.Lock()
	s := x.open[name]
	x.mu.Unlock()
	if s != nil {
		s.close(g)
	}
}

// notifyAll wakes every session.
func (x *sessions) notifyAll() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, s := range x.open {
		s.notify()
	}
}

// closeAll ends every session.
func (x *sessions) closeAll(g *wire.Goodbye) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, s := range x.open {
		s.close(g)
	}
}

func (x *sessions) count() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.open)
}

// view is what one node holds of the documents: the registrations whose node
// selector matches it, the policies of the root namespace, and those of the
// namespaces of its registrations.
type view struct {
	attributes identity.Attributes
	root       string
	position   store.Position
	sent       map[document.Key]uint64 // revision that was sent
	namespaces map[string]int          // registrations held, by namespace
	started    bool
	bundle     [32]byte // hash of the bundle that was sent
	denied     [32]byte // hash of the denials that were sent

	ring    *keyRing                  // that keyed was brought up to
	sources map[document.Key][]string // of the RequestAuthentications sent
	keyed   map[string]*jwt.Keys      // key sets that were sent, by URI
}

// advance brings the view from where it is to next and ring and returns the
// deltas to send. A document never comes without its keys, where there are
// any. The first call gives a whole snapshot; a later one always ends in a
// complete delta, even where nothing of it concerns this node, so that the
// node's position moves on.
func (v *view) advance(next *snapshot, ring *keyRing, bundle identity.Bundle) []*wire.Delta {
	if v.started && next.position == v.position && bundle.Hash() == v.bundle {
		return v.rekeyed(ring)
	}
	keys, known := next.since(v.position.Revision)
	if !v.started || !known || next.position.Epoch != v.position.Epoch {
		keys = keys[:0]
		for k := range next.docs {
			keys = append(keys, k)
		}
		for k := range v.sent {
			if _, ok := next.docs[k]; !ok {
				keys = append(keys, k)
			}
		}
	}
	d := deltas{position: &wire.Position{Epoch: next.position.Epoch, Revision: next.position.Revision}}
	if !v.started {
		d.begin().Reset_ = true
	}
	if !v.started || bundle.Hash() != v.bundle {
		d.begin().Bundles = []*wire.Bundle{wire.FromBundle(bundle)}
		v.bundle = bundle.Hash()
	}
	if next.denials.Hash() != v.denied {
		d.begin().Denials = wire.FromDenials(next.denials)
		v.denied = next.denials.Hash()
	}
	v.started, v.position = true, next.position
	touched := map[string]bool{}
	for _, k := range keys {
		if k.Kind == document.Registration {
			h := next.docs[k]
			if v.put(&d, k, h, h != nil && h.registration.Node.Matches(v.attributes)) {
				touched[k.Namespace] = true
			}
		}
	}
	for _, k := range keys {
		if k.Kind != document.Registration {
			v.put(&d, k, next.docs[k], v.wants(k.Namespace))
		}
	}
	// A namespace that came or went brings or takes its policies, changed or
	// not.
	for ns := range touched {
		for k := range next.policies[ns] {
			v.put(&d, k, next.docs[k], v.wants(ns))
		}
	}
	v.rekey(&d, ring)
	return d.finish()
}

// rekeyed is the deltas after a change of keys alone.
func (v *view) rekeyed(ring *keyRing) []*wire.Delta {
	if v.ring == ring {
		return nil
	}
	d := deltas{position: &wire.Position{Epoch: v.position.Epoch, Revision: v.position.Revision}}
	if !v.rekey(&d, ring) {
		return nil
	}
	return d.finish()
}

// rekey adds the key sets of the documents sent that the node does not hold,
// and takes back those that it holds for none. It reports whether there were
// any.
func (v *view) rekey(d *deltas, ring *keyRing) (changed bool) {
	v.ring = ring
	wanted := map[string]bool{}
	for _, uris := range v.sources {
		for _, uri := range uris {
			wanted[uri] = true
		}
	}
	for _, uri := range slices.Sorted(maps.Keys(wanted)) {
		held, ok := (*ring)[uri]
		if ok && v.keyed[uri] != held.keys {
			v.keyed[uri] = held.keys
			d.keySet(uri, held.keys.JSON())
			changed = true
		}
	}
	for uri := range v.keyed {
		if _, held := (*ring)[uri]; !held || !wanted[uri] {
			delete(v.keyed, uri)
			d.keySet(uri, nil)
			changed = true
		}
	}
	return changed
}

func (v *view) wants(namespace string) bool {
	return namespace == v.root || v.namespaces[namespace] > 0
}

// put sends a document, or takes it back, where the node's state differs. It
// reports whether the node holds another number of registrations.
func (v *view) put(d *deltas, k document.Key, h *held, wanted bool) (counted bool) {
	revision, sent := v.sent[k]
	switch {
	case wanted && h != nil && (!sent || revision != h.revision):
		v.sent[k] = h.revision
		if k.Kind == document.RequestAuthentication {
			v.sources[k] = slices.Collect(maps.Keys(h.keySets))
		}
		d.upsert(h)
		if !sent && k.Kind == document.Registration {
			v.namespaces[k.Namespace]++
			return true
		}
	case sent && (!wanted || h == nil):
		delete(v.sent, k)
		delete(v.sources, k)
		d.remove(k)
		if k.Kind == document.Registration {
			v.namespaces[k.Namespace]--
			return true
		}
	}
	return false
}

// deltas gathers changes into deltas of a bounded size.
type deltas struct {
	position *wire.Position
	list     []*wire.Delta
	bytes    int
}

func (d *deltas) begin() *wire.Delta {
	if len(d.list) == 0 || d.bytes > maxDeltaBytes {
		d.list = append(d.list, &wire.Delta{Position: d.position})
		d.bytes = 0
	}
	return d.list[len(d.list)-1]
}

func (d *deltas) upsert(h *held) {
	delta := d.begin()
	delta.Upserts = append(delta.Upserts, &wire.Resource{
		Key: wire.FromKey(h.key), Document: h.json, Revision: h.revision, Evaluator: uint32(h.needs)})
	d.bytes += len(h.json) + 128
}

func (d *deltas) keySet(uri string, keys []byte) {
	delta := d.begin()
	delta.KeySets = append(delta.KeySets, &wire.KeySet{Uri: uri, Keys: keys})
	d.bytes += len(uri) + len(keys) + 16
}

func (d *deltas) remove(k document.Key) {
	delta := d.begin()
	delta.Deletes = append(delta.Deletes, wire.FromKey(k))
	d.bytes += 128
}

func (d *deltas) finish() []*wire.Delta {
	d.begin()
	d.list[len(d.list)-1].Complete = true
	return d.list
}

// clip bounds a text that came from a client. What is left is UTF-8, as every
// message must be: half a letter would make an answer that cannot be sent.
func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "")
	}
	return s
}
