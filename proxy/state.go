// This file holds state: what the proxy knows at one moment, built from one
// complete snapshot and swapped whole.

package proxy

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/policy"
	"github.com/aval-id/aval/identity/wire"
)

// state is immutable. Policies are compiled once per generation: a snapshot
// that changes only credentials keeps the Set.
type state struct {
	creds      *identity.Credentials
	set        *policy.Set
	position   *wire.Position
	node       string
	policies   [sha256.Size]byte // of all that set was compiled from
	unreadable error             // what made the set deny, for the log
}

func (s *state) id() identity.ID            { return s.creds.SVID.ID }
func (s *state) serial() string             { return s.creds.SVID.Serial() }
func (s *state) names() []string            { return s.creds.SVID.Leaf().DNSNames }
func (s *state) end() time.Time             { return s.creds.SVID.NotAfter() }
func (s *state) expired(now time.Time) bool { return !now.Before(s.end()) }

// Credentials makes one state a mtls.Source.
func (s *state) Credentials() *identity.Credentials { return s.creds }

// newState builds the state that follows prev, which may be nil, or says why
// the snapshot cannot replace it: whatever is missing or does not fit
// together leaves prev in force.
func newState(snap *wire.Snapshot, want identity.ID, prev *state, now time.Time) (*state, error) {
	creds, err := snapshotCredentials(snap, prev)
	if err != nil {
		return nil, err
	}
	s := &state{creds: creds, position: snap.GetPosition(), node: snap.GetNodeId()}
	if !want.IsZero() && s.id() != want {
		return nil, fmt.Errorf("snapshot is for %s, not for %s", s.id(), want)
	}
	if s.expired(now) {
		return nil, fmt.Errorf("SVID of the snapshot ended at %s", s.end().Format(time.RFC3339))
	}
	td := s.id().TrustDomain()
	if named := snap.GetSettings().GetTrustDomain(); named != td.String() {
		return nil, fmt.Errorf("settings of the snapshot are of trust domain %q, its SVID is of %s", named, td)
	}
	if b, ok := creds.Bundle(td); !ok || len(b.Roots()) == 0 {
		return nil, fmt.Errorf("snapshot has no root of %s", td)
	}
	s.policies = policyHash(snap)
	if prev != nil && prev.policies == s.policies {
		s.set, s.unreadable = prev.set, prev.unreadable
		return s, nil
	}
	s.set, s.unreadable = compile(snap, td)
	return s, nil
}

// snapshotCredentials parses the SVID and the bundles. Roots that did not
// change keep their parsed form.
func snapshotCredentials(snap *wire.Snapshot, prev *state) (*identity.Credentials, error) {
	chain, err := identity.ParseChain(snap.GetChain())
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(snap.GetKey())
	if err != nil {
		return nil, errors.New("snapshot: private key is not PKCS#8") // the cause may quote key bytes
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, errors.New("snapshot: private key cannot sign")
	}
	svid, err := identity.NewSVID(chain, key, time.UnixMilli(snap.GetIssuedAt()))
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	if svid.ID.String() != snap.GetSpiffeId() {
		return nil, fmt.Errorf("snapshot names %q, its SVID is of %s", snap.GetSpiffeId(), svid.ID)
	}
	if role := svid.ID.Role(); role != identity.RoleWorkload {
		return nil, fmt.Errorf("snapshot has a %s's SVID, %s", role, svid.ID)
	}
	var bundles []identity.Bundle
	for _, b := range snap.GetBundles() {
		bundle, err := wire.ToBundle(b)
		if err != nil {
			return nil, fmt.Errorf("snapshot: %w", err)
		}
		bundles = append(bundles, bundle)
	}
	generation := uint64(1)
	if prev != nil {
		generation = prev.creds.Generation + 1
	}
	return identity.NewCredentials(svid, generation, bundles...), nil
}

// compile makes the Set. What cannot be read denies; the error says what.
func compile(snap *wire.Snapshot, td identity.TrustDomain) (*policy.Set, error) {
	settings := policy.Settings{
		TrustDomain:   td,
		RootNamespace: snap.GetSettings().GetRootNamespace(),
		DefaultDeny:   snap.GetSettings().GetDefaultDeny(),
		Requests:      true,
	}
	var docs []document.Document
	var unreadable []policy.AuthorizationPolicy
	var errs []error
	for _, r := range snap.GetPolicies() {
		key := wire.ToKey(r.GetKey())
		d, err := readPolicy(r, key)
		if err != nil {
			unreadable = append(unreadable, policy.Unreadable(key, int(r.GetEvaluator())))
			errs = append(errs, err)
			continue
		}
		docs = append(docs, d)
	}
	pas, aps, err := policy.Load(docs, settings)
	if err != nil {
		errs = append(errs, err)
	}
	workload := policy.Workload{Namespace: snap.GetWorkloadNamespace(), Labels: snap.GetWorkloadLabels()}
	return policy.Compile(settings, workload, pas, append(aps, unreadable...), snap.GetPosition().GetRevision()), errors.Join(errs...)
}

func readPolicy(r *wire.Resource, key document.Key) (document.Document, error) {
	if r.GetEvaluator() > policy.EvaluatorVersion {
		return document.Document{}, fmt.Errorf("%s needs evaluator %d, this is %d", key, r.GetEvaluator(), policy.EvaluatorVersion)
	}
	d, err := document.FromJSON(r.GetDocument())
	if err != nil {
		return document.Document{}, fmt.Errorf("%s: %w", key, err)
	}
	if d.Key() != key {
		return document.Document{}, fmt.Errorf("%s: document is %s", key, d.Key())
	}
	switch d.Kind() {
	case document.PeerAuthentication, document.AuthorizationPolicy:
		return d, nil
	}
	return document.Document{}, fmt.Errorf("%s: kind is not a policy that is known here", key)
}

// policyHash covers everything that a Set is compiled from.
func policyHash(snap *wire.Snapshot) [sha256.Size]byte {
	h := sha256.New()
	field := func(b []byte) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(b)))
		h.Write(n[:])
		h.Write(b)
	}
	s := snap.GetSettings()
	field([]byte(s.GetTrustDomain()))
	field([]byte(s.GetRootNamespace()))
	field(fmt.Append(nil, s.GetDefaultDeny()))
	field([]byte(snap.GetWorkloadNamespace()))
	for _, name := range slices.Sorted(maps.Keys(snap.GetWorkloadLabels())) {
		field([]byte(name))
		field([]byte(snap.GetWorkloadLabels()[name]))
	}
	field(nil)
	resources := slices.Clone(snap.GetPolicies())
	slices.SortFunc(resources, func(a, b *wire.Resource) int {
		if c := wire.ToKey(a.GetKey()).Compare(wire.ToKey(b.GetKey())); c != 0 {
			return c
		}
		return bytes.Compare(a.GetDocument(), b.GetDocument())
	})
	for _, r := range resources {
		field([]byte(wire.ToKey(r.GetKey()).String()))
		field(r.GetDocument())
		field(fmt.Append(nil, r.GetEvaluator()))
	}
	var sum [sha256.Size]byte
	h.Sum(sum[:0])
	return sum
}
