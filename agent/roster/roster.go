// Package roster holds what the server gave this node to hold: registrations,
// policies and bundles at one position, as immutable values, and the state
// that deltas build them from.
//
// It owns the meaning of deltas and the matching of processes to
// registrations. It leaves the stream that brings deltas to upstream and the
// SVIDs to keyring. It stands on the second floor, inside the agent's room.
package roster

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/aval-id/aval/agent/attest"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/wire"
)

// Position is a place in the server's history. Positions compare with ==.
type Position struct{ Epoch, Revision uint64 }

// PositionOf takes a position from the wire.
func PositionOf(p *wire.Position) Position {
	return Position{Epoch: p.GetEpoch(), Revision: p.GetRevision()}
}

// Wire returns the position's wire form.
func (p Position) Wire() *wire.Position {
	return &wire.Position{Epoch: p.Epoch, Revision: p.Revision}
}

// Before reports whether p lies before q.
func (p Position) Before(q Position) bool {
	if p.Epoch != q.Epoch {
		return p.Epoch < q.Epoch
	}
	return p.Revision < q.Revision
}

// String prints epoch and revision.
func (p Position) String() string { return fmt.Sprintf("%d.%d", p.Epoch, p.Revision) }

// Node is what a server says about the node that holds a roster.
type Node struct {
	ID         identity.ID
	Server     string              // the server's SPIFFE ID
	Attributes identity.Attributes // as the server attested them
	Settings   *wire.Settings      // of the trust domain; not to be changed
}

// Registration is a registration with the revision of its document.
type Registration struct {
	identity.Registration
	Revision uint64
}

// Policy is a policy document with its revision. What it says is the
// proxies' affair.
type Policy struct {
	Namespace string
	Resource  *wire.Resource // not to be changed
	KeySets   []string       // URIs of the keys that a RequestAuthentication needs
}

// Roster is complete and immutable.
type Roster struct {
	Node          Node
	Position      Position
	Bundle        identity.Bundle   // of the node's own trust domain
	Bundles       []identity.Bundle // all, the own one first
	Registrations []*Registration   // by namespace and name
	Policies      []Policy          // by namespace, name and kind
	Hashes        bool              // some registration asks for unix.sha256
	// KeySets are the keys of issuers of tokens by URI, as the server found
	// them; not to be changed.
	KeySets map[string]*wire.KeySet
	Denials *identity.Denials // what is revoked; nil denies nothing

	index map[string][]*Registration
}

// Match returns the registrations whose workload selector holds for a
// process, by namespace and name. A registration without a workload selector
// matches nothing. Of several with one SPIFFE ID the first is taken.
func (r *Roster) Match(a identity.Attributes) []*Registration {
	var out []*Registration
	for name, values := range a {
		for _, v := range values {
			for _, reg := range r.index[name+"="+v] {
				if reg.Workload.Matches(a) {
					out = append(out, reg)
				}
			}
		}
	}
	slices.SortFunc(out, compare)
	seen := make(map[identity.ID]bool, len(out))
	return slices.DeleteFunc(out, func(reg *Registration) bool {
		again := seen[reg.ID] // one of several, or found by several values
		seen[reg.ID] = true
		return again
	})
}

// PoliciesFor returns the policies that may concern workloads of a namespace:
// its own and those of the root namespace.
func (r *Roster) PoliciesFor(namespace string) []Policy {
	root := r.Node.Settings.GetRootNamespace()
	var out []Policy
	for _, p := range r.Policies {
		if p.Namespace == namespace || p.Namespace == root {
			out = append(out, p)
		}
	}
	return out
}

// KeySetsFor returns the key sets that some policies need, by URI. Those that
// the server has not found yet are missing.
func (r *Roster) KeySetsFor(policies []Policy) []*wire.KeySet {
	wanted := map[string]*wire.KeySet{}
	for _, p := range policies {
		for _, uri := range p.KeySets {
			if set := r.KeySets[uri]; set != nil {
				wanted[uri] = set
			}
		}
	}
	var out []*wire.KeySet
	for _, uri := range slices.Sorted(maps.Keys(wanted)) {
		out = append(out, wanted[uri])
	}
	return out
}

// rarest are the selector names in the order in which they narrow best.
var rarest = []string{attest.SHA256, attest.Path, attest.UID, attest.SupplementaryGID, attest.GID}

// newIndex lists each registration under the values of one of its selector's
// names, so that a process looks at few of them.
func newIndex(regs []*Registration) map[string][]*Registration {
	index := make(map[string][]*Registration, len(regs))
	for _, reg := range regs {
		for _, name := range rarest {
			values, ok := reg.Workload[name]
			if !ok {
				continue
			}
			for _, v := range values {
				index[name+"="+v] = append(index[name+"="+v], reg)
			}
			break
		}
	}
	return index
}

func compare(a, b *Registration) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}
