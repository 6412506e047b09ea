// This file holds the nodes and join tokens: what the store keeps of them,
// in memory and durable.

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/ca/store"
	"github.com/aval-id/aval/identity"
)

// maxNodes and maxTokens bound what operators may create.
const (
	maxNodes  = 100000
	maxTokens = 10000
)

// nodes are the nodes that were ever admitted. Changes are durable before
// they count.
type nodes struct {
	store store.Store

	mu     sync.Mutex              // one change at a time; guards what follows
	byName map[string]storedNode   // by node name
	grants map[string]*storedGrant // by token hash
}

type storedNode struct {
	ca.Node
	modified uint64
}

type storedGrant struct {
	ca.Grant
	modified uint64
}

func (n *nodes) load() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.byName, n.grants = map[string]storedNode{}, map[string]*storedGrant{}
	entries, _, err := n.store.Scan(prefixNode, 0)
	if err != nil {
		return err
	}
	for _, e := range entries {
		var node ca.Node
		if err := json.Unmarshal(e.Value, &node); err != nil {
			return fmt.Errorf("stored node %s: %w", e.Key, err)
		}
		n.byName[node.Name] = storedNode{node, e.Modified}
	}
	if entries, _, err = n.store.Scan(prefixToken, 0); err != nil {
		return err
	}
	for _, e := range entries {
		var g ca.Grant
		if err := json.Unmarshal(e.Value, &g); err != nil {
			return fmt.Errorf("stored token: %w", err)
		}
		n.grants[g.Hash] = &storedGrant{g, e.Modified}
	}
	return nil
}

// get returns a node by name.
func (n *nodes) get(name string) (ca.Node, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	node, ok := n.byName[name]
	return node.Node, ok
}

// byID returns a node by its SPIFFE ID.
func (n *nodes) byID(id identity.ID) (ca.Node, bool) {
	if id.Role() != identity.RoleNode {
		return ca.Node{}, false
	}
	node, ok := n.get(id.Path()[strings.LastIndexByte(id.Path(), '/')+1:])
	return node, ok && node.ID == id
}

// all returns every node, by name.
func (n *nodes) all() []ca.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]ca.Node, 0, len(n.byName))
	for _, node := range n.byName {
		out = append(out, node.Node)
	}
	slices.SortFunc(out, func(a, b ca.Node) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// update changes a node durably: change sees the node of the moment (and
// whether there is one) and returns its next state, or keep=true for no
// change.
func (n *nodes) update(ctx context.Context, name string, change func(ca.Node, bool) (next ca.Node, keep bool, err error)) (ca.Node, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	current, ok := n.byName[name]
	next, keep, err := change(current.Node, ok)
	if err != nil || keep {
		return current.Node, err
	}
	if !ok && len(n.byName) >= maxNodes {
		return ca.Node{}, fmt.Errorf("node %s: there are %d nodes already", name, len(n.byName))
	}
	raw, err := json.Marshal(next)
	if err != nil {
		return ca.Node{}, fmt.Errorf("node %s: %w", name, err)
	}
	key := prefixNode + name
	position, err := n.store.Txn(ctx, []store.Condition{{Key: key, Modified: current.modified}}, []store.Op{store.Put(key, raw)})
	if err != nil {
		return ca.Node{}, fmt.Errorf("node %s: %w", name, err)
	}
	n.byName[name] = storedNode{next, position.Revision}
	return next, nil
}

// addGrant stores a new token's grant, and forgets those that expired a while
// ago.
func (n *nodes) addGrant(ctx context.Context, g ca.Grant, now time.Time) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var ops []store.Op
	for hash, old := range n.grants {
		// A day longer, so that a late joiner is told that it expired.
		if now.Sub(old.Expires) > 24*time.Hour && len(ops) < store.MaxOps/2 {
			ops = append(ops, store.Delete(prefixToken+hash))
		}
	}
	if len(n.grants)-len(ops) >= maxTokens {
		return fmt.Errorf("token for node %s: there are %d tokens already", g.Node, len(n.grants))
	}
	raw, err := json.Marshal(g)
	if err != nil {
		return fmt.Errorf("token for node %s: %w", g.Node, err)
	}
	position, err := n.store.Txn(ctx, nil, append(ops, store.Put(prefixToken+g.Hash, raw)))
	if err != nil {
		return fmt.Errorf("token for node %s: %w", g.Node, err)
	}
	for _, op := range ops {
		delete(n.grants, strings.TrimPrefix(op.Key, prefixToken))
	}
	n.grants[g.Hash] = &storedGrant{g, position.Revision}
	return nil
}

// dropGrants voids every join token.
func (n *nodes) dropGrants(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for hashes := range slices.Chunk(slices.Collect(maps.Keys(n.grants)), store.MaxOps/2) {
		ops := make([]store.Op, 0, len(hashes))
		for _, hash := range hashes {
			ops = append(ops, store.Delete(prefixToken+hash))
		}
		if _, err := n.store.Txn(ctx, nil, ops); err != nil {
			return fmt.Errorf("join tokens: %w", err)
		}
		for _, hash := range hashes {
			delete(n.grants, hash)
		}
	}
	return nil
}

// bind binds a token to key durably, if it is good.
func (n *nodes) bind(ctx context.Context, t ca.Token, key ca.ProvenKey, now time.Time) (ca.Grant, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	stored, ok := n.grants[t.Hash()]
	if !ok {
		_, err := ca.Grant{}.Bind(t, key, now)
		return ca.Grant{}, err
	}
	bound, err := stored.Bind(t, key, now)
	if err != nil {
		return stored.Grant, err
	}
	if stored.BoundKey == bound.BoundKey {
		return bound, nil
	}
	raw, err := json.Marshal(bound)
	if err != nil {
		return ca.Grant{}, fmt.Errorf("token for node %s: %w", bound.Node, err)
	}
	storeKey := prefixToken + bound.Hash
	position, err := n.store.Txn(ctx, []store.Condition{{Key: storeKey, Modified: stored.modified}}, []store.Op{store.Put(storeKey, raw)})
	if err != nil {
		return ca.Grant{}, fmt.Errorf("token for node %s: %w", bound.Node, err)
	}
	n.grants[bound.Hash] = &storedGrant{bound, position.Revision}
	return bound, nil
}
