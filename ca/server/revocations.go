// This file holds revocations: what the store keeps of each, and what they
// deny together.

package server

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/identity"
)

// The kinds of a revocation, by what Target names.
const (
	revokedSerial = "serial" // a certificate
	revokedID     = "id"     // a SPIFFE ID
	revokedNode   = "node"   // a node: the serials that it held
	revokedIssuer = "issuer" // an authority's SKI
)

const (
	// maxDenied bounds what all nodes and proxies hold.
	maxDenied = 50000
	// pruneSkew is how long after its end a certificate stays denied: a clock
	// behind ours would take it.
	pruneSkew = 5 * time.Minute
)

// revocation is one act of revoking, with what it denies. It is a value; what
// it refers to is never changed.
type revocation struct {
	Kind    string    `json:"kind"`
	Target  string    `json:"target"`
	At      time.Time `json:"at"`
	Ends    time.Time `json:"ends,omitzero"` // the end of all that it denies; zero is never
	Actor   string    `json:"actor,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	Serials []string  `json:"serials,omitempty"` // of a certificate or a node
	// Lifted is since when an ID may be issued again. What was issued before
	// At stays denied.
	Lifted time.Time `json:"lifted,omitzero"`

	over bool // it has ended, and leaves the store
}

// key is what tells revocations apart, and where the store keeps this one.
func (r revocation) key() string {
	sum := sha256.Sum256([]byte(r.Target))
	return prefixRevoked + r.Kind + "/" + hex.EncodeToString(sum[:])
}

// document names the revocation in the log.
func (r revocation) document() string { return "Revocation " + r.Kind + "/" + r.Target }

// before is the NotBefore from which certificates of a lifted ID are spared.
// Nothing was issued of it from At to Lifted.
func (r revocation) before() time.Time {
	return r.At.Add(-ca.Backdate).Truncate(time.Second).Add(time.Second)
}

// size is how many entries it adds to what is denied.
func (r revocation) size() int { return max(1, len(r.Serials)) }

func (r revocation) ended(now time.Time) bool {
	return !r.Ends.IsZero() && now.After(r.Ends.Add(pruneSkew))
}

// event is what the log keeps of it.
func (r revocation) event(now time.Time, actor, action string, trust identity.TrustDomain) audit.Event {
	e := audit.Event{Time: now, Kind: audit.KindRevocation, Verdict: audit.VerdictDone, Reason: action, Actor: actor,
		Document: r.document(), NotAfter: r.Ends, Detail: clip(r.Reason, 1024)}
	switch r.Kind {
	case revokedSerial:
		e.Serial = r.Target
	case revokedID:
		e.SPIFFEID = r.Target
	case revokedNode:
		if id, err := identity.NodeID(trust, r.Target); err == nil {
			e.Node = id.String()
		}
	case revokedIssuer:
		e.Issuer = r.Target
	}
	return e
}

func parseRevocation(raw []byte) (revocation, error) {
	var r revocation
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, err
	}
	switch r.Kind {
	case revokedSerial, revokedNode, revokedIssuer:
	case revokedID:
		if _, err := identity.ParseID(r.Target); err != nil {
			return r, err
		}
	default:
		return r, fmt.Errorf("the kind %q is not known to this version", clip(r.Kind, 40))
	}
	if r.Target == "" || r.At.IsZero() {
		return r, fmt.Errorf("target or time is missing")
	}
	return r, nil
}

// readRevocations reads what the store holds.
func (d *documents) readRevocations() ([]revocation, error) {
	entries, _, err := d.store.Scan(prefixRevoked, 0)
	if err != nil {
		return nil, err
	}
	var out []revocation
	for _, e := range entries {
		r, err := parseRevocation(e.Value)
		if err != nil {
			return nil, fmt.Errorf("stored revocation %s: %w", e.Key, err)
		}
		out = append(out, r)
	}
	return out, nil
}

// denials returns what is revoked now.
func (d *documents) denials() *identity.Denials {
	if now := d.now.Load(); now != nil {
		return now.denials
	}
	return nil
}

// revoking returns the snapshot with revocations that came, changed or ended.
func (s *snapshot) revoking(list []revocation) *snapshot {
	if len(list) == 0 {
		return s
	}
	next := *s
	if next.revoked = maps.Clone(s.revoked); next.revoked == nil {
		next.revoked = map[string]revocation{}
	}
	for _, r := range list {
		if r.over {
			delete(next.revoked, r.key())
		} else {
			next.revoked[r.key()] = r
		}
	}
	var serials, issuers []string
	ids := map[identity.ID]time.Time{}
	for _, r := range next.revoked {
		switch r.Kind {
		case revokedSerial, revokedNode:
			serials = append(serials, r.Serials...)
		case revokedIssuer:
			issuers = append(issuers, r.Target)
		case revokedID:
			id, err := identity.ParseID(r.Target)
			if err != nil {
				continue // parseRevocation has seen it
			}
			ids[id] = time.Time{}
			if !r.Lifted.IsZero() {
				ids[id] = r.before()
			}
		}
	}
	next.denials = identity.NewDenials(serials, ids, issuers)
	return &next
}

// sortedRevocations returns them, the newest first.
func (s *snapshot) sortedRevocations() []revocation {
	return slices.SortedFunc(maps.Values(s.revoked), func(a, b revocation) int { return b.At.Compare(a.At) })
}
