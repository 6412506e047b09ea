// This file holds Node, what is known of an admitted node, and the proof
// values that stand between a node and a certificate: AttestedNode and
// Entitlement.

package ca

import (
	"slices"
	"time"

	"github.com/aval-id/aval/identity"
)

// Node is what a server knows of a node that it admitted. It is a value; the
// slices and maps in it are never changed once shared.
type Node struct {
	ID         identity.ID         `json:"id"`
	Name       string              `json:"name"`
	Attributes identity.Attributes `json:"attributes,omitempty"`
	// Keys are the hashes of the keys that the node may use: the current one
	// and, between a renewal and its first use, the next.
	Keys []string `json:"keys"`
	// Attestation is how the node was first admitted: "join_token".
	Attestation string    `json:"attestation"`
	Attested    time.Time `json:"attested"`
	NotAfter    time.Time `json:"not_after"` // end of the newest credential
	Evicted     bool      `json:"evicted,omitempty"`
	EvictedAt   time.Time `json:"evicted_at,omitzero"`
}

// AttestedNode is a node that proved itself now, by a key recorded for it.
// The zero value is invalid; only Attest makes one.
type AttestedNode struct{ node Node }

// Attest checks that n was not evicted and that key is one of its keys.
func (n Node) Attest(key ProvenKey) (AttestedNode, error) {
	switch {
	case n.ID.Role() != identity.RoleNode:
		return AttestedNode{}, denied(ReasonWrongRole, "%s is not a node", n.ID)
	case n.Evicted:
		return AttestedNode{}, denied(ReasonEvicted, "node %s is evicted", n.Name)
	case key.IsZero() || !slices.Contains(n.Keys, key.Hash()):
		return AttestedNode{}, denied(ReasonUnknownKey, "the key is not one that node %s may use", n.Name)
	}
	return AttestedNode{node: n}, nil
}

// WithKey returns n with key as its next key, beside the current one.
func (n Node) WithKey(key ProvenKey) Node {
	if hash := key.Hash(); !slices.Contains(n.Keys, hash) {
		n.Keys = append(slices.Clone(n.Keys[max(0, len(n.Keys)-1):]), hash)
	}
	return n
}

// KeyUsed returns n after key was used: the keys before it count no more. It
// reports whether that changed anything.
func (n Node) KeyUsed(key ProvenKey) (Node, bool) {
	i := slices.Index(n.Keys, key.Hash())
	if i <= 0 {
		return n, false
	}
	n.Keys = slices.Clone(n.Keys[i:])
	return n, true
}

// ID returns the node's SPIFFE ID.
func (a AttestedNode) ID() identity.ID { return a.node.ID }

// Name returns the node's name.
func (a AttestedNode) Name() string { return a.node.Name }

// Attributes returns what registrations match against. The caller must not
// change them.
func (a AttestedNode) Attributes() identity.Attributes { return a.node.Attributes }

// Entitlement says that one identity may be issued now, and on whose behalf.
// The zero value is invalid; only the checks of this package make one.
type Entitlement struct {
	id           identity.ID
	role         identity.Role
	node         identity.ID
	registration string
	revision     uint64
	ttl          time.Duration
	dnsNames     []string
}

// ID returns the identity that may be issued.
func (e Entitlement) ID() identity.ID { return e.id }

// At returns the entitlement with the store revision at which its registration
// came into force, for the record.
func (e Entitlement) At(revision uint64) Entitlement {
	e.revision = revision
	return e
}

// Workload entitles the node to a registration's identity: the registration's
// node selector holds for the node's attested attributes, the ID asked for is
// the registration's own, and its role is a workload's.
func (a AttestedNode) Workload(reg identity.Registration, asked identity.ID) (Entitlement, error) {
	name := reg.Namespace + "/" + reg.Name
	switch {
	case a.node.ID.IsZero():
		return Entitlement{}, denied(ReasonNotEntitled, "no attested node asks for %s", asked)
	case reg.ID.IsZero() || asked != reg.ID:
		return Entitlement{}, denied(ReasonNotEntitled, "registration %s does not yield %s", name, asked)
	case reg.ID.Role() != identity.RoleWorkload || reg.ID.TrustDomain() != a.node.ID.TrustDomain():
		return Entitlement{}, denied(ReasonNotEntitled, "registration %s yields %s, which is no workload of %s", name, reg.ID, a.node.ID.TrustDomain())
	case !reg.Node.Matches(a.node.Attributes):
		return Entitlement{}, denied(ReasonNotEntitled, "registration %s is not for node %s", name, a.node.Name)
	}
	return Entitlement{id: reg.ID, role: identity.RoleWorkload, node: a.node.ID, registration: name, ttl: reg.TTL, dnsNames: reg.DNSNames}, nil
}

// Self entitles the node to a credential of its own.
func (a AttestedNode) Self() (Entitlement, error) {
	if a.node.ID.Role() != identity.RoleNode {
		return Entitlement{}, denied(ReasonNotEntitled, "no attested node asks for a credential")
	}
	return Entitlement{id: a.node.ID, role: identity.RoleNode, node: a.node.ID}, nil
}

// ServerSelf entitles the process that holds the authority to the identity of
// a server of that trust domain.
func ServerSelf(td identity.TrustDomain, name string) (Entitlement, error) {
	id, err := identity.ServerID(td, name)
	if err != nil {
		return Entitlement{}, invalid(ReasonNotEntitled, "server identity: %w", err)
	}
	if id.Role() != identity.RoleServer {
		return Entitlement{}, denied(ReasonNotEntitled, "%s is not a server", id)
	}
	return Entitlement{id: id, role: identity.RoleServer}, nil
}
