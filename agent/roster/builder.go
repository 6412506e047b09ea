// This file holds Builder, the pure state that deltas change and rosters are
// made from.

package roster

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/aval-id/aval/agent/attest"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/wire"
)

// ErrOutOfStep says that a delta does not follow what is held. The cure is a
// full snapshot.
var ErrOutOfStep = errors.New("out of step with the server")

// Builder is the state of one stream. It is made from the roster held before
// it, so that a stream that breaks within a snapshot leaves nothing behind.
// It is not safe for concurrent use.
type Builder struct {
	node      Node
	td        identity.TrustDomain
	position  Position // of the last complete delta
	epoch     uint64   // that the stream speaks of
	needReset bool     // nothing held counts until a reset comes

	regs     map[document.Key]*Registration
	policies map[document.Key]Policy
	bundles  map[identity.TrustDomain]identity.Bundle
	keySets  map[string]*wire.KeySet
	denials  *identity.Denials
}

// NewBuilder starts a stream that the server welcomed at a position. Held is
// the roster of the stream before it, or nil. With resync what is held counts
// for nothing; in another epoch without resync only a reset gives a roster
// again.
func NewBuilder(node Node, td identity.TrustDomain, held *Roster, welcome Position, resync bool) *Builder {
	b := &Builder{node: node, td: td, epoch: welcome.Epoch}
	b.clear()
	if held == nil || resync || held.Position == (Position{}) {
		return b
	}
	if held.Position.Epoch != welcome.Epoch {
		b.needReset = true
		return b
	}
	b.position = held.Position
	for _, reg := range held.Registrations {
		b.regs[document.Key{Kind: document.Registration, Namespace: reg.Namespace, Name: reg.Name}] = reg
	}
	for _, p := range held.Policies {
		b.policies[wire.ToKey(p.Resource.GetKey())] = p
	}
	for _, bundle := range held.Bundles {
		b.bundles[bundle.TrustDomain()] = bundle
	}
	maps.Copy(b.keySets, held.KeySets)
	b.denials = held.Denials
	return b
}

// Apply takes one delta. It returns a roster when the delta completes a
// snapshot, and nil otherwise. Faults are documents that this agent cannot
// read; they are left out, so that they give nobody an identity, and are for
// the log. After an error the stream must be given up.
func (b *Builder) Apply(d *wire.Delta) (r *Roster, faults []error, err error) {
	at := PositionOf(d.GetPosition())
	if at.Epoch != b.epoch {
		return nil, nil, fmt.Errorf("delta at %s in a stream of epoch %d: %w", at, b.epoch, ErrOutOfStep)
	}
	if d.GetReset_() {
		b.clear()
		b.needReset, b.position = false, Position{}
	}
	if b.needReset {
		return nil, nil, fmt.Errorf("delta at %s without the full snapshot that was announced: %w", at, ErrOutOfStep)
	}
	if at.Before(b.position) {
		return nil, nil, fmt.Errorf("delta at %s after %s: %w", at, b.position, ErrOutOfStep)
	}
	for _, key := range d.GetDeletes() {
		delete(b.regs, wire.ToKey(key))
		delete(b.policies, wire.ToKey(key))
	}
	for _, res := range d.GetUpserts() {
		if err := b.upsert(res); err != nil {
			faults = append(faults, err)
		}
	}
	for _, wb := range d.GetBundles() {
		bundle, err := wire.ToBundle(wb)
		if err != nil {
			return nil, faults, fmt.Errorf("delta at %s: %w", at, err)
		}
		b.bundles[bundle.TrustDomain()] = bundle
	}
	for _, set := range d.GetKeySets() {
		if len(set.GetKeys()) == 0 {
			delete(b.keySets, set.GetUri())
		} else {
			b.keySets[set.GetUri()] = set
		}
	}
	if d.GetDenials() != nil {
		if b.denials, err = wire.ToDenials(d.GetDenials()); err != nil {
			return nil, faults, fmt.Errorf("delta at %s: %w", at, err)
		}
	}
	if !d.GetComplete() {
		return nil, faults, nil
	}
	b.position = at
	r, err = b.build()
	return r, faults, err
}

func (b *Builder) clear() {
	b.regs = make(map[document.Key]*Registration)
	b.policies = make(map[document.Key]Policy)
	b.bundles = make(map[identity.TrustDomain]identity.Bundle)
	b.keySets = make(map[string]*wire.KeySet)
	b.denials = nil
}

func (b *Builder) upsert(res *wire.Resource) error {
	key := wire.ToKey(res.GetKey())
	switch key.Kind {
	case document.Registration:
		delete(b.regs, key) // one that cannot be read gives no identity
		reg, err := parseRegistration(key, res, b.td)
		if err != nil {
			return err
		}
		b.regs[key] = reg
	case document.PeerAuthentication, document.AuthorizationPolicy, document.PlaintextException:
		b.policies[key] = Policy{Namespace: key.Namespace, Resource: res}
	case document.RequestAuthentication:
		b.policies[key] = Policy{Namespace: key.Namespace, Resource: res, KeySets: keySetsOf(res)}
	default:
		// A policy of a kind that only newer agents know still reaches the
		// proxies, which fail closed on it.
		b.policies[key] = Policy{Namespace: key.Namespace, Resource: res}
		return fmt.Errorf("%s: kind is not known to this agent", key)
	}
	return nil
}

// keySetsOf returns the URIs of keys that a RequestAuthentication names. One
// that cannot be read names none; the proxies deny on it.
func keySetsOf(res *wire.Resource) []string {
	var doc struct {
		Spec struct {
			JWTRules []struct {
				JWKSURI string `json:"jwksUri"`
			} `json:"jwtRules"`
		} `json:"spec"`
	}
	if json.Unmarshal(res.GetDocument(), &doc) != nil {
		return nil
	}
	var uris []string
	for _, r := range doc.Spec.JWTRules {
		if r.JWKSURI != "" {
			uris = append(uris, r.JWKSURI)
		}
	}
	return uris
}

func parseRegistration(key document.Key, res *wire.Resource, td identity.TrustDomain) (*Registration, error) {
	doc, err := document.FromJSON(res.GetDocument())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	if doc.Key() != key {
		return nil, fmt.Errorf("%s: the document is %s", key, doc.Key())
	}
	reg, err := identity.ParseRegistration(doc, td)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return &Registration{Registration: reg, Revision: res.GetRevision()}, nil
}

func (b *Builder) build() (*Roster, error) {
	own, ok := b.bundles[b.td]
	if !ok {
		return nil, fmt.Errorf("snapshot at %s has no bundle of %s: %w", b.position, b.td, ErrOutOfStep)
	}
	r := &Roster{Node: b.node, Position: b.position, Bundle: own, Bundles: []identity.Bundle{own}, KeySets: maps.Clone(b.keySets), Denials: b.denials}
	for _, td := range slices.SortedFunc(maps.Keys(b.bundles), compareDomains) {
		if td != b.td {
			r.Bundles = append(r.Bundles, b.bundles[td])
		}
	}
	r.Registrations = slices.SortedFunc(maps.Values(b.regs), compare)
	for _, key := range slices.SortedFunc(maps.Keys(b.policies), document.Key.Compare) {
		r.Policies = append(r.Policies, b.policies[key])
	}
	for _, reg := range r.Registrations {
		if _, ok := reg.Workload[attest.SHA256]; ok {
			r.Hashes = true
		}
	}
	r.index = newIndex(r.Registrations)
	return r, nil
}

func compareDomains(a, b identity.TrustDomain) int {
	switch {
	case a.String() < b.String():
		return -1
	case a.String() > b.String():
		return 1
	}
	return 0
}
