// This file holds the documents in force as an immutable snapshot, and what
// each kind is parsed into.

package server

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/ca/store"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/policy"
)

// held is one document in force, parsed once.
type held struct {
	key      document.Key
	doc      document.Document
	json     []byte // canonical
	revision uint64
	needs    int // the policy evaluator version that it needs

	registration identity.Registration    // of a Registration
	keySets      map[string]time.Duration // of a RequestAuthentication: where keys come from, and how long a fetch may take
}

// snapshot is all documents of one moment. It is immutable; the maps in it
// are never changed once it is shared.
type snapshot struct {
	position store.Position
	docs     map[document.Key]*held
	// policies are the policies' keys by namespace.
	policies map[string]map[document.Key]bool
	// recent are the changes that led here, oldest first, each with its
	// revision; before it nothing is remembered.
	recent []change
	floor  uint64
	// revoked are the revocations by their key, denials what follows of them.
	revoked map[string]revocation
	denials *identity.Denials
}

// change is one document that was changed at a revision.
type change struct {
	revision uint64
	key      document.Key
}

// maxRecent bounds the changes that a snapshot remembers. A session that is
// further behind looks at every document.
const maxRecent = 4096

func newSnapshot(position store.Position) *snapshot {
	return &snapshot{
		position: position,
		docs:     map[document.Key]*held{},
		policies: map[string]map[document.Key]bool{},
		floor:    position.Revision,
	}
}

// parser turns documents into what is held, checking all that can be checked
// without the others.
type parser struct {
	trustDomain identity.TrustDomain
	settings    policy.Settings
	workload    ca.Profile
	admits      func(keysURI string) error // nil admits every source of keys
}

func (p parser) parse(d document.Document) (*held, []policy.Warning, error) {
	h := &held{key: d.Key(), doc: d}
	var warnings []policy.Warning
	var err error
	switch d.Kind() {
	case document.Registration:
		h.registration, err = identity.ParseRegistration(d, p.trustDomain)
		if err == nil {
			err = p.checkTTL(d, h.registration)
		}
	case document.PeerAuthentication:
		var pa policy.PeerAuthentication
		pa, warnings, err = policy.ParsePeerAuthentication(d, p.settings)
		h.needs = pa.Needs()
	case document.AuthorizationPolicy:
		var a policy.AuthorizationPolicy
		a, warnings, err = policy.ParseAuthorizationPolicy(d, p.settings)
		h.needs = a.Needs()
	case document.PlaintextException:
		var x policy.PlaintextException
		x, warnings, err = policy.ParsePlaintextException(d, p.settings)
		h.needs = x.Needs()
	case document.RequestAuthentication:
		var a policy.RequestAuthentication
		a, warnings, err = policy.ParseRequestAuthentication(d, p.settings)
		h.needs = a.Needs()
		if err == nil {
			h.keySets, err = p.keySets(d, a)
		}
	default:
		err = d.Errorf("kind", d.Kind(), "", "is not served")
	}
	if err != nil {
		return nil, nil, err
	}
	if h.json, err = d.JSON(); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", d.Key(), err)
	}
	return h, warnings, nil
}

// keySets returns the sources of keys that a document names, refusing those
// that this server does not ask.
func (p parser) keySets(d document.Document, a policy.RequestAuthentication) (map[string]time.Duration, error) {
	out := map[string]time.Duration{}
	var errs []error
	for i, r := range a.Rules() {
		if r.KeysURI == "" {
			continue
		}
		out[r.KeysURI] = max(out[r.KeysURI], r.Timeout)
		if p.admits == nil {
			continue
		}
		if err := p.admits(r.KeysURI); err != nil {
			errs = append(errs, d.Errorf(fmt.Sprintf("spec.jwtRules[%d].jwksUri", i), r.KeysURI, "", "%w", err))
		}
	}
	return out, document.Collect(errs...)
}

func (p parser) checkTTL(d document.Document, r identity.Registration) error {
	if err := p.workload.Check(r.TTL); err != nil {
		allowed := fmt.Sprintf("%s to %s", p.workload.Min, p.workload.Max)
		return document.Collect(d.Errorf("spec.ttl", r.TTL.String(), allowed, "%w", err))
	}
	return nil
}

// edit is a document's new state, or its end where held is nil.
type edit struct {
	key  document.Key
	held *held
}

// with returns the snapshot after edits at a position.
func (s *snapshot) with(position store.Position, edits []edit) *snapshot {
	next := &snapshot{position: position, floor: s.floor, revoked: s.revoked, denials: s.denials,
		docs: maps.Clone(s.docs), policies: maps.Clone(s.policies)}
	next.recent = append(make([]change, 0, len(s.recent)+len(edits)), s.recent...)
	copied := map[string]bool{}
	for _, e := range edits {
		if e.held == nil {
			delete(next.docs, e.key)
		} else {
			e.held.revision = position.Revision
			next.docs[e.key] = e.held
		}
		next.recent = append(next.recent, change{position.Revision, e.key})
		if e.key.Kind == document.Registration {
			continue
		}
		ns := e.key.Namespace
		if !copied[ns] {
			copied[ns] = true
			if next.policies[ns] = maps.Clone(next.policies[ns]); next.policies[ns] == nil {
				next.policies[ns] = map[document.Key]bool{}
			}
		}
		if e.held == nil {
			delete(next.policies[ns], e.key)
		} else {
			next.policies[ns][e.key] = true
		}
	}
	if drop := len(next.recent) - maxRecent; drop > 0 {
		next.floor = next.recent[drop-1].revision
		next.recent = slices.Clone(next.recent[drop:])
	}
	return next
}

// since returns the keys that changed after a revision, and false where that
// is not remembered.
func (s *snapshot) since(revision uint64) ([]document.Key, bool) {
	if revision < s.floor {
		return nil, false
	}
	i, _ := slices.BinarySearchFunc(s.recent, revision+1, func(c change, r uint64) int {
		if c.revision < r {
			return -1
		}
		return 1
	})
	keys := make([]document.Key, 0, len(s.recent)-i)
	for _, c := range s.recent[i:] {
		keys = append(keys, c.key)
	}
	return keys, true
}

// sorted returns the documents that pick accepts, by key.
func (s *snapshot) sorted(pick func(document.Key) bool) []*held {
	var out []*held
	for k, h := range s.docs {
		if pick(k) {
			out = append(out, h)
		}
	}
	slices.SortFunc(out, func(a, b *held) int { return a.key.Compare(b.key) })
	return out
}
