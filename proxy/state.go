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
	"github.com/aval-id/aval/identity/jwt"
	"github.com/aval-id/aval/identity/policy"
	"github.com/aval-id/aval/identity/wire"
)

// state is immutable. Policies are compiled once per generation: a snapshot
// that changes only credentials keeps the Set.
type state struct {
	creds      *identity.Credentials
	set        *policy.Set
	exempt     *policy.Exemptions // compiled with set
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
func (s *state) Credentials() *identity.Credentials {
	if s == nil {
		return nil
	}
	return s.creds
}

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
		s.set, s.exempt, s.unreadable = prev.set, prev.exempt, prev.unreadable
		return s, nil
	}
	s.set, s.exempt, s.unreadable, err = compile(snap, td)
	if err != nil && prev != nil {
		return nil, fmt.Errorf("policies do not compile: %w", err)
	}
	if err != nil {
		s.unreadable = errors.Join(err, s.unreadable)
	}
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
	denials, err := wire.ToDenials(snap.GetDenials())
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	return identity.NewCredentials(svid, generation, bundles...).WithDenials(denials), nil
}

// compile makes the Set and its exemptions. A policy that this evaluator does
// not understand denies; unreadable says which. Err says that the set as a whole is broken:
// a resource is no document, or another one than it is called, which no newer
// version explains. The Set denies then, for those who have no other.
func compile(snap *wire.Snapshot, td identity.TrustDomain) (set *policy.Set, exempt *policy.Exemptions, unreadable, err error) {
	defer func() {
		if fault := recover(); fault != nil {
			set, exempt, err = new(policy.Set), nil, fmt.Errorf("panic: %v", fault)
		}
	}()
	settings := policy.Settings{
		TrustDomain:   td,
		RootNamespace: snap.GetSettings().GetRootNamespace(),
		DefaultDeny:   snap.GetSettings().GetDefaultDeny(),
		Requests:      true,
	}
	var docs []document.Document
	var denying []policy.AuthorizationPolicy
	var errs, broken []error
	for _, r := range snap.GetPolicies() {
		key := wire.ToKey(r.GetKey())
		d, err := readPolicy(r, key)
		if err != nil {
			denying = append(denying, policy.Unreadable(key, int(r.GetEvaluator())))
			if errors.Is(err, errBroken) {
				broken = append(broken, err)
			} else {
				errs = append(errs, err)
			}
			continue
		}
		docs = append(docs, d)
	}
	pas, aps, err := policy.Load(docs, settings)
	if err != nil {
		errs = append(errs, err)
	}
	exceptions, bad, err := policy.LoadExceptions(docs, settings)
	if err != nil {
		errs = append(errs, err)
	}
	workload := policy.Workload{Namespace: snap.GetWorkloadNamespace(), Labels: snap.GetWorkloadLabels()}
	authentication, worse, err := authenticationOf(snap, docs, settings, workload)
	if err != nil {
		errs = append(errs, err)
	}
	aps = slices.Concat(aps, denying, bad, worse)
	generation := snap.GetPosition().GetRevision()
	set = policy.Compile(settings, workload, pas, aps, generation).Authenticating(authentication)
	exempt = policy.CompileExemptions(settings, workload, exceptions, aps, generation)
	return set, exempt, errors.Join(errs...), errors.Join(broken...)
}

// authenticationOf compiles what documents say of tokens. One that cannot be
// read is returned as a policy that denies.
func authenticationOf(snap *wire.Snapshot, docs []document.Document, s policy.Settings, w policy.Workload) (*policy.Authentication, []policy.AuthorizationPolicy, error) {
	all, denying, err := policy.LoadRequestAuthentications(docs, s)
	keys, fault := issuerKeys(snap)
	return policy.CompileAuthentication(s, w, all, keys), denying, errors.Join(err, fault)
}

// issuerKeys parses the key sets. Of one that cannot be read no token is
// valid.
func issuerKeys(snap *wire.Snapshot) (map[string]*jwt.Keys, error) {
	keys := make(map[string]*jwt.Keys, len(snap.GetKeySets()))
	var errs []error
	for _, set := range snap.GetKeySets() {
		parsed, err := jwt.ReadKeys(set.GetKeys())
		if err != nil {
			errs = append(errs, fmt.Errorf("keys of %s: %w", set.GetUri(), err))
			continue
		}
		keys[set.GetUri()] = parsed
	}
	return keys, errors.Join(errs...)
}

// errBroken marks a resource that cannot have been meant.
var errBroken = errors.New("resource is broken")

func readPolicy(r *wire.Resource, key document.Key) (document.Document, error) {
	if r.GetEvaluator() > policy.EvaluatorVersion {
		return document.Document{}, fmt.Errorf("%s needs evaluator %d, this is %d", key, r.GetEvaluator(), policy.EvaluatorVersion)
	}
	d, err := document.FromJSON(r.GetDocument())
	if err != nil {
		return document.Document{}, fmt.Errorf("%w: %s: %w", errBroken, key, err)
	}
	if d.Key() != key {
		return document.Document{}, fmt.Errorf("%w: %s: document is %s", errBroken, key, d.Key())
	}
	switch d.Kind() {
	case document.PeerAuthentication, document.AuthorizationPolicy, document.RequestAuthentication, document.PlaintextException:
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
	field(nil)
	for _, set := range snap.GetKeySets() {
		field([]byte(set.GetUri()))
		field(set.GetKeys())
	}
	var sum [sha256.Size]byte
	h.Sum(sum[:0])
	return sum
}
