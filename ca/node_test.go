// This file holds the tests of the proof values: who is entitled to what.

package ca

import (
	"testing"
	"time"

	"github.com/aval-id/aval/identity"
)

func TestEntitlementNeedsItsProof(t *testing.T) {
	now := time.Now()
	h := newHouse(t, now, 100*time.Hour)
	if _, err := h.Draft(now, Entitlement{}, proven(t, newKey(t))); err == nil {
		t.Error("nothing entitled to a leaf")
	}
	if _, err := h.Draft(now, workload(t, 0), ProvenKey{}); err == nil {
		t.Error("an unproven key was drafted")
	}
	if _, err := h.root.Draft(now, workload(t, 0), proven(t, newKey(t))); err == nil {
		t.Error("the root drafted a leaf")
	}
	if _, err := h.DraftIntermediate(now, newKey(t), time.Hour, false); err == nil {
		t.Error("an intermediate drafted another")
	}
	foreign := workload(t, 0)
	foreign.id, _ = other.NewID("/web")
	if _, err := h.Draft(now, foreign, proven(t, newKey(t))); err == nil {
		t.Error("an ID of another trust domain was drafted")
	}
	if r := h.issuer.Issue(t.Context(), now, h.Authority, []Request{{CSR: csrOf(t, newKey(t))}})[0]; r.Err == nil {
		t.Error("a request without entitlement was issued")
	}
}

func TestNoRoleIsIssuedByAnotherOnesProof(t *testing.T) {
	now := time.Now()
	h := newHouse(t, now, 100*time.Hour)
	for role, path := range map[identity.Role]string{
		identity.RoleWorkload: "/web", identity.RoleNode: "/aval/node/x", identity.RoleServer: "/aval/server/x",
		identity.RoleAdmin: "/aval/admin/x", identity.RoleReserved: "/aval/x",
	} {
		for claimed := range identity.RoleReserved + 2 {
			e := workload(t, 0)
			e.id, _ = domain.NewID(path)
			e.role = claimed
			_, err := h.Draft(now, e, proven(t, newKey(t)))
			may := claimed == role && (role == identity.RoleWorkload || role == identity.RoleNode || role == identity.RoleServer)
			if (err == nil) != may {
				t.Errorf("%s as %s: %v", path, claimed, err)
			}
		}
	}
}

func TestWorkloadEntitlementIsCheckedForEachNode(t *testing.T) {
	key := proven(t, newKey(t))
	id, _ := identity.NodeID(domain, "one")
	node := Node{ID: id, Name: "one", Keys: []string{key.Hash()}, Attributes: identity.Attributes{"zone": {"a"}}}
	attested, err := node.Attest(key)
	if err != nil {
		t.Fatal(err)
	}
	web, _ := domain.NewID("/web")
	api, _ := domain.NewID("/api")
	admin, _ := domain.NewID("/aval/admin/root")
	foreign, _ := other.NewID("/web")
	reg := func(id identity.ID, zone ...string) identity.Registration {
		r := identity.Registration{Namespace: "n", Name: "r", ID: id}
		if len(zone) > 0 {
			r.Node = identity.Selector{"zone": zone}
		}
		return r
	}
	for name, c := range map[string]struct {
		reg   identity.Registration
		asked identity.ID
		ok    bool
	}{
		"own": {reg(web), web, true}, "matching": {reg(web, "b", "a"), web, true}, "other zone": {reg(web, "b"), web, false},
		"other id": {reg(web), api, false}, "no id": {reg(web), identity.ID{}, false}, "reserved": {reg(admin), admin, false},
		"foreign": {reg(foreign), foreign, false}, "zero": {identity.Registration{}, identity.ID{}, false},
	} {
		if _, err := attested.Workload(c.reg, c.asked); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (AttestedNode{}).Workload(reg(web), web); err == nil {
		t.Error("nobody was entitled")
	}
	if _, err := (AttestedNode{}).Self(); err == nil {
		t.Error("nobody was entitled to itself")
	}
	node.Evicted = true
	if _, err := node.Attest(key); err == nil {
		t.Error("an evicted node was attested")
	}
}

func TestKeysOfANodeFollowEachOther(t *testing.T) {
	a, b, c := proven(t, newKey(t)), proven(t, newKey(t)), proven(t, newKey(t))
	n := Node{Keys: []string{a.Hash()}}.WithKey(b).WithKey(b)
	if len(n.Keys) != 2 {
		t.Fatalf("keys %v", n.Keys)
	}
	if n, changed := n.KeyUsed(a); changed || len(n.Keys) != 2 {
		t.Fatal("using the current key dropped the next")
	}
	n, changed := n.KeyUsed(b)
	if !changed || len(n.Keys) != 1 || n.Keys[0] != b.Hash() {
		t.Fatalf("keys %v", n.Keys)
	}
	if n = n.WithKey(a).WithKey(c); len(n.Keys) != 2 || n.Keys[1] != c.Hash() {
		t.Fatalf("keys %v", n.Keys)
	}
}
