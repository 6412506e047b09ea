// Package registry keeps which workload takes connections where, as the nodes
// report it: which reports count, which conflict with others, and what changed.
// It lives in memory alone; nodes report again when they connect.
//
// It owns the rules by which a node may claim an address. It leaves the streams
// to the server, what an endpoint says to identity/directory, and who may hold
// which identity to ca. It stands on the second floor, inside ca's room.
package registry

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/directory"
	"github.com/aval-id/aval/identity/directory/protocol"
	"github.com/aval-id/aval/identity/wire"
)

// Grace is how long the endpoints of a node stay after its stream has ended.
// An agent that is restarted, or that has lost its server for a moment, takes
// nothing away.
const Grace = 30 * time.Second

// Config is what a Registry needs.
type Config struct {
	// Registration returns a registration in force by namespace/name. It may
	// be called with the registry locked.
	Registration func(path string) (identity.Registration, bool)
	// Changed is called after something changed, with the registry unlocked.
	Changed func()
	// AttributesOnly makes the address that a node's stream comes from count
	// for nothing, as where nodes come through a load balancer.
	AttributesOnly bool
}

// Registry is safe for concurrent use.
type Registry struct {
	cfg Config

	mu        sync.Mutex
	nodes     map[identity.ID]*node           // guarded by mu
	remote    map[netip.Addr]identity.ID      // guarded by mu: the node that an address was first seen of
	byAddress map[netip.Addr]map[*claim]bool  // guarded by mu: claims that are their nodes' to make
	journal   directory.Journal               // guarded by mu: what is accepted
	conflicts map[directory.Key]directory.Key // guarded by mu: refused for another
}

// node is what is known of one node with a stream, or with one lately.
type node struct {
	attested ca.AttestedNode
	evidence evidence
	claims   map[directory.Key]*claim
	faults   []State   // of the last report: what cannot be read
	open     int       // streams
	reported bool      // on the stream of the moment
	expires  time.Time // when its claims end, unless it reports before; zero means not
}

// claim is one endpoint of a node's report.
type claim struct {
	directory.Endpoint
	since    time.Time
	rank     int    // of the evidence; more is narrower
	evidence string // that the address is the node's
	fault    string // why it is not the node's to make; "" where it is
	fresh    bool   // it says something that was not judged yet
}

// New returns an empty registry.
func New(cfg Config) *Registry {
	return &Registry{cfg: cfg, nodes: map[identity.ID]*node{}, remote: map[netip.Addr]identity.ID{},
		byAddress: map[netip.Addr]map[*claim]bool{}, conflicts: map[directory.Key]directory.Key{}}
}

// Join says that a stream of the node has begun, from an address. The function
// that it returns says that it has ended: the node's claims stay for Grace.
func (r *Registry) Join(attested ca.AttestedNode, from netip.Addr) (left func(now time.Time)) {
	defer r.change()()
	n := r.nodes[attested.ID()]
	if n == nil {
		n = &node{claims: map[directory.Key]*claim{}}
		r.nodes[attested.ID()] = n
	}
	n.open++
	n.reported = false
	n.attested = attested
	r.disown(attested.ID())
	from = from.Unmap()
	if r.cfg.AttributesOnly || !directory.Dialable(from) {
		from = netip.Addr{}
	}
	if owner, taken := r.remote[from]; from.IsValid() && taken && owner != attested.ID() {
		from = netip.Addr{} // the first that came from it has it
	} else if from.IsValid() {
		r.remote[from] = attested.ID()
	}
	n.evidence = newEvidence(attested.Attributes(), from)
	r.judge(n)
	return func(now time.Time) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if n.open--; n.open == 0 {
			n.expires = now.Add(Grace)
		}
	}
}

// Drop forgets a node at once, as when it is evicted.
func (r *Registry) Drop(id identity.ID) {
	defer r.change()()
	r.forget(id)
}

func (r *Registry) forget(id identity.ID) {
	n := r.nodes[id]
	if n == nil {
		return
	}
	delete(r.nodes, id)
	r.disown(id)
	r.withdraw(n, func(*claim) bool { return true })
}

func (r *Registry) disown(id identity.ID) {
	for a, owner := range r.remote {
		if owner == id {
			delete(r.remote, a)
		}
	}
}

// Expire forgets what outlived its grace, and returns when to be called next,
// zero for not before something changes.
func (r *Registry) Expire(now time.Time) (next time.Time) {
	defer r.change()()
	for id, n := range r.nodes {
		switch {
		case n.expires.IsZero():
		case now.Before(n.expires):
			if next.IsZero() || n.expires.Before(next) {
				next = n.expires
			}
		case n.open > 0: // it came back, and reported nothing
			n.expires = time.Time{}
			r.withdraw(n, func(*claim) bool { return true })
		default:
			r.forget(id)
		}
	}
	return next
}

// Report takes what a node reports and returns those of its claims that do not
// count, for the record, where they are not the ones of the report before.
func (r *Registry) Report(id identity.ID, report *wire.EndpointReport, now time.Time) []State {
	defer r.change()()
	n := r.nodes[id]
	if n == nil {
		return nil
	}
	n.expires, n.reported = time.Time{}, true
	before := map[directory.Key]string{}
	for _, s := range r.states(n) {
		before[s.Key] = s.Reason
	}
	kept := r.take(n, id, report, now)
	surplus := len(n.claims) > directory.MaxPerNode
	r.withdraw(n, func(c *claim) bool { return !kept[c.Key] && (report.GetComplete() || surplus) })
	r.judge(n)
	var fresh []State
	for _, s := range r.states(n) {
		if s.State != Accepted && before[s.Key] != s.Reason {
			fresh = append(fresh, s)
		}
	}
	return fresh
}

// maxFaults bounds the unreadable endpoints of a node that are shown.
const maxFaults = 16

// take makes claims of a report and returns their keys. A claim that was there
// already keeps its age.
func (r *Registry) take(n *node, id identity.ID, report *wire.EndpointReport, now time.Time) map[directory.Key]bool {
	kept := map[directory.Key]bool{}
	n.faults = nil
	list := report.GetEndpoints()
	for _, w := range list[:min(len(list), directory.MaxPerNode)] {
		w.Node = id.String()
		e, err := protocol.ToEndpoint(w)
		switch {
		case err == nil && n.claims[e.Key] != nil:
			kept[e.Key] = true
			old := n.claims[e.Key]
			old.fresh = old.fresh || !old.Equal(e)
			old.Endpoint = e
		case err == nil:
			kept[e.Key] = true
			n.claims[e.Key] = &claim{Endpoint: e, since: now, fresh: true}
		case len(n.faults) < maxFaults:
			n.faults = append(n.faults, State{Endpoint: directory.Endpoint{Key: directory.Key{Node: id}}, State: Refused,
				Reason: fmt.Sprintf("%.300q", err.Error()), Since: now})
		}
	}
	return kept
}

// Reconsider judges the claims of registrations anew that changed, by
// namespace/name; nil means all.
func (r *Registry) Reconsider(changed map[string]bool) {
	defer r.change()()
	for _, n := range r.nodes {
		r.judgeThose(n, func(c *claim) bool { return changed == nil || changed[c.Registration] })
	}
}

// change locks the registry; the returned function unlocks it and tells of
// what changed meanwhile.
func (r *Registry) change() func() {
	r.mu.Lock()
	before := r.journal.Revision()
	return func() {
		changed := r.journal.Revision() != before
		r.mu.Unlock()
		if changed && r.cfg.Changed != nil {
			r.cfg.Changed()
		}
	}
}

// judge decides for each claim of a node whether it is the node's to make, and
// settles the addresses that this concerns.
func (r *Registry) judge(n *node) { r.judgeThose(n, func(*claim) bool { return true }) }

// judgeThose is judge for some of the claims.
func (r *Registry) judgeThose(n *node, which func(*claim) bool) {
	touched := map[netip.Addr]bool{}
	for _, c := range n.claims {
		if !which(c) {
			continue
		}
		rank, words, fault := n.evidence.of(c.Address)
		if fault == "" {
			fault = r.entitled(n, c)
		}
		if !c.fresh && rank == c.rank && fault == c.fault && (fault != "" || r.settled(c)) {
			continue
		}
		c.rank, c.evidence, c.fault, c.fresh = rank, words, fault, false
		touched[c.Address] = true
		if c.fault != "" {
			r.drop(c)
			continue
		}
		if r.byAddress[c.Address] == nil {
			r.byAddress[c.Address] = map[*claim]bool{}
		}
		r.byAddress[c.Address][c] = true
	}
	for a := range touched {
		r.settle(a)
	}
}

// settled reports whether the claim is accepted, or in conflict.
func (r *Registry) settled(c *claim) bool {
	_, conflict := r.conflicts[c.Key]
	return conflict || r.journal.Has(c.Key)
}

// entitled says why the node may not hold the identity of a claim, by the same
// check that an SVID passes.
func (r *Registry) entitled(n *node, c *claim) string {
	reg, ok := r.cfg.Registration(c.Registration)
	if !ok {
		return "registration " + c.Registration + " is not in force"
	}
	if _, err := n.attested.Workload(reg, c.ID); err != nil {
		return err.Error()
	}
	return ""
}

// withdraw takes claims of a node away.
func (r *Registry) withdraw(n *node, which func(*claim) bool) {
	touched := map[netip.Addr]bool{}
	for k, c := range n.claims {
		if which(c) {
			r.drop(c)
			delete(n.claims, k)
			touched[c.Address] = true
		}
	}
	for a := range touched {
		r.settle(a)
	}
}

// drop makes a claim count for nothing. Its address is to be settled then.
func (r *Registry) drop(c *claim) {
	delete(r.byAddress[c.Address], c)
	if len(r.byAddress[c.Address]) == 0 {
		delete(r.byAddress, c.Address)
	}
	delete(r.conflicts, c.Key)
	r.journal.Delete(c.Key)
}

// settle decides which claims on an address are accepted. Of two that overlap,
// of different nodes and different identities, the one whose evidence is
// narrower counts, and among equals the one that was there first; the other is
// a conflict. Those of one node, which may hold both identities, and those of
// one identity, stand together; and so do those on an address that an operator
// has named for both nodes, by itself.
func (r *Registry) settle(a netip.Addr) {
	claims := make([]*claim, 0, len(r.byAddress[a]))
	for c := range r.byAddress[a] {
		claims = append(claims, c)
	}
	slices.SortFunc(claims, func(x, y *claim) int {
		return cmp.Or(cmp.Compare(y.rank, x.rank), x.since.Compare(y.since), directory.Compare(x.Key, y.Key))
	})
	var accepted []*claim
	for _, c := range claims {
		with := slices.IndexFunc(accepted, func(o *claim) bool {
			return o.Node != c.Node && o.ID != c.ID && o.Overlaps(c.Endpoint) && (o.rank != named || c.rank != named)
		})
		delete(r.conflicts, c.Key)
		switch {
		case with >= 0:
			r.conflicts[c.Key] = accepted[with].Key
			r.journal.Delete(c.Key)
		case !r.journal.Has(c.Key) && r.journal.Len() >= directory.MaxTotal:
		default:
			accepted = append(accepted, c)
			r.journal.Put(c.Endpoint)
		}
	}
}

// Read returns the deltas that a reader lacks.
func (r *Registry) Read(reader *directory.Reader, settled bool) []*directory.Delta {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.journal.Read(reader, settled)
}

// Reported reports whether a node has a stream and has told what it has.
func (r *Registry) Reported(id identity.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodes[id]
	return n != nil && n.open > 0 && n.reported
}

// Len is the number of endpoints that count.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.journal.Len()
}

// The states of claims.
const (
	Accepted = "accepted"
	Refused  = "refused"
	Conflict = "conflict"
)

// State is what the registry makes of a claim.
type State struct {
	directory.Endpoint
	State     string
	Reason    string // why it is not accepted
	Since     time.Time
	Evidence  string
	Connected bool
	// Other is the node that the address belongs to by a better right, zero
	// where the claim is refused for other reasons.
	Other identity.ID
}

// States returns every claim, by address and port.
func (r *Registry) States() []State {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []State
	for _, n := range r.nodes {
		out = append(out, r.states(n)...)
	}
	slices.SortFunc(out, func(a, b State) int { return directory.Compare(a.Key, b.Key) })
	return out
}

func (r *Registry) states(n *node) []State {
	out := make([]State, 0, len(n.claims))
	for _, c := range n.claims {
		s := State{Endpoint: c.Endpoint, State: Accepted, Since: c.since, Evidence: c.evidence, Connected: n.open > 0}
		other, conflict := r.conflicts[c.Key]
		switch {
		case c.fault != "":
			s.State, s.Reason, s.Other = Refused, c.fault, r.holder(c)
		case conflict:
			s.State, s.Other = Conflict, other.Node
			s.Reason = fmt.Sprintf("%s of node %s has it by a better right", other.ID, name(other.Node))
		case !r.journal.Has(c.Key):
			s.State, s.Reason = Refused, fmt.Sprintf("the registry holds %d endpoints already", directory.MaxTotal)
		}
		out = append(out, s)
	}
	for _, s := range n.faults {
		s.Connected = n.open > 0
		out = append(out, s)
	}
	return out
}

// holder is another node whose address a refused claim names.
func (r *Registry) holder(c *claim) identity.ID {
	for o := range r.byAddress[c.Address] {
		if o.Node != c.Node {
			return o.Node
		}
	}
	if owner, ok := r.remote[c.Address]; ok && owner != c.Node {
		return owner
	}
	return identity.ID{}
}

func name(node identity.ID) string { return node.Path()[strings.LastIndexByte(node.Path(), '/')+1:] }
