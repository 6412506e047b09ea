// This file holds the operators' API: documents, tokens, nodes, backup.

package server

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/ca/registry"
	"github.com/aval-id/aval/ca/store"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/wire"
)

// Bounds of a join token.
const (
	minTokenTTL       = time.Second
	defaultTokenTTL   = 10 * time.Minute
	maxNodeAttributes = 64
	maxAttributeBytes = 1024
)

// adminService answers operators.
type adminService struct {
	wire.UnimplementedAdminServer
	*Server
}

// Apply puts documents in force, all or none.
func (s adminService) Apply(ctx context.Context, req *wire.ApplyRequest) (*wire.ApplyResponse, error) {
	plan, position, err := s.documents.apply(ctx, time.Now(), s.actor(ctx), req.GetDocuments(), req.GetDryRun())
	if err != nil {
		return nil, err
	}
	return &wire.ApplyResponse{Changes: changes(plan), Position: toPosition(position), DryRun: req.GetDryRun()}, nil
}

// Delete ends documents, all or none.
func (s adminService) Delete(ctx context.Context, req *wire.DeleteRequest) (*wire.DeleteResponse, error) {
	var keys []document.Key
	for _, k := range req.GetKeys() {
		kind, ok := document.NormalizeKind(k.GetKind())
		if !ok {
			return nil, status.Errorf(codes.InvalidArgument, "%q is not a known kind", k.GetKind())
		}
		key := wire.ToKey(k)
		key.Kind = kind
		keys = append(keys, key)
	}
	plan, position, err := s.documents.remove(ctx, time.Now(), s.actor(ctx), keys, req.GetDryRun())
	if err != nil {
		return nil, err
	}
	return &wire.DeleteResponse{Changes: changes(plan), Position: toPosition(position)}, nil
}

// Get returns the documents in force.
func (s adminService) Get(_ context.Context, req *wire.GetRequest) (*wire.GetResponse, error) {
	kind := ""
	if req.GetKind() != "" {
		var ok bool
		if kind, ok = document.NormalizeKind(req.GetKind()); !ok {
			return nil, status.Errorf(codes.InvalidArgument, "%q is not a known kind", req.GetKind())
		}
	}
	snap := s.documents.now.Load()
	found := snap.sorted(func(k document.Key) bool {
		return (kind == "" || k.Kind == kind) && (req.GetNamespace() == "" || k.Namespace == req.GetNamespace()) &&
			(req.GetName() == "" || k.Name == req.GetName())
	})
	if req.GetName() != "" && len(found) == 0 {
		return nil, status.Errorf(codes.NotFound, "%s is not there", document.Key{Kind: kind, Namespace: req.GetNamespace(), Name: req.GetName()})
	}
	out := &wire.GetResponse{Position: toPosition(snap.position)}
	for _, h := range found {
		out.Documents = append(out.Documents, h.json)
	}
	return out, nil
}

func changes(plan []planned) []*wire.Change {
	out := make([]*wire.Change, 0, len(plan))
	for _, p := range plan {
		c := &wire.Change{Key: wire.FromKey(p.key), Action: p.action, Warnings: p.warnings}
		if p.before != nil {
			c.Before = p.before.json
		}
		if p.held != nil {
			c.After = p.held.json
		}
		out = append(out, c)
	}
	return out
}

func toPosition(p store.Position) *wire.Position {
	return &wire.Position{Epoch: p.Epoch, Revision: p.Revision}
}

// CreateToken makes a join token. Its secret is in the answer and nowhere
// else.
func (s adminService) CreateToken(ctx context.Context, req *wire.CreateTokenRequest) (*wire.CreateTokenResponse, error) {
	now := time.Now()
	ttl := time.Duration(req.GetTtl()) * time.Millisecond
	if req.GetTtl() == 0 {
		ttl = defaultTokenTTL
	}
	if req.GetTtl() < 0 || ttl < minTokenTTL || ttl > ca.MaxTokenTTL {
		return nil, status.Errorf(codes.InvalidArgument, "token lifetime %s is not between %s and %s", ttl, minTokenTTL, ca.MaxTokenTTL)
	}
	attributes := wire.ToAttributes(req.GetAttributes())
	if err := checkAttributes(attributes); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	token := ca.NewToken()
	name := req.GetNode()
	if name == "" {
		name = "node-" + token.Hash()[:12]
	}
	id, err := identity.NodeID(s.cfg.TrustDomain, name)
	if err != nil || len(name) > 63 {
		return nil, status.Errorf(codes.InvalidArgument, "node name %q: letters, digits, '.', '_' and '-' are allowed, up to 63", clip(name, 80))
	}
	grant := ca.Grant{Hash: token.Hash(), Node: name, Attributes: attributes, Created: now, Expires: now.Add(ttl)}
	_, err = s.recorder.RecordAll(ctx, []audit.Event{{Time: now, Kind: audit.KindTokenCreated, Verdict: audit.VerdictDone,
		Actor: s.actor(ctx), Node: id.String(), NotAfter: grant.Expires, Detail: clip(attributes.String(), 1024)}})
	if err != nil {
		return nil, notRecorded("token", err)
	}
	if err := s.nodes.addGrant(ctx, grant, now); err != nil {
		return nil, err
	}
	return &wire.CreateTokenResponse{
		Token: token.Reveal(), Server: s.Advertised(), BundleHash: identity.CertificateHash(s.trust.Load().rootCert),
		NodeId: id.String(), Expires: grant.Expires.UnixMilli(),
	}, nil
}

func checkAttributes(a identity.Attributes) error {
	if len(a) > maxNodeAttributes {
		return fmt.Errorf("%d attributes, more than %d", len(a), maxNodeAttributes)
	}
	for name, values := range a {
		if name == "" || len(name) > 128 {
			return fmt.Errorf("attribute name %q: 1 to 128 bytes are allowed", clip(name, 140))
		}
		if name == identity.NodeName {
			return fmt.Errorf("attribute %s is the node's own name and cannot be given", identity.NodeName)
		}
		if len(values) == 0 || len(values) > maxNodeAttributes {
			return fmt.Errorf("attribute %s has %d values: 1 to %d are allowed", name, len(values), maxNodeAttributes)
		}
		for _, v := range values {
			if v == "" || len(v) > maxAttributeBytes {
				return fmt.Errorf("attribute %s has a value of %d bytes: 1 to %d are allowed", name, len(v), maxAttributeBytes)
			}
			if name == registry.AddressAttribute {
				if _, err := registry.ParseBlock(v); err != nil {
					return fmt.Errorf("attribute %s: %w", name, err)
				}
			}
		}
	}
	return nil
}

func notRecorded(act string, err error) error {
	return &ca.Refusal{Cause: ca.CauseUnavailable, Reason: ca.ReasonNotRecorded, Err: fmt.Errorf("%s: no act without a record: %w", act, err)}
}

// ListNodes returns the nodes, or the one of a name, with their live SVIDs.
func (s adminService) ListNodes(_ context.Context, req *wire.ListNodesRequest) (*wire.ListNodesResponse, error) {
	now := time.Now()
	out := &wire.ListNodesResponse{}
	if req.GetName() != "" {
		node, ok := s.nodes.get(req.GetName())
		if !ok {
			return nil, status.Errorf(codes.NotFound, "node %s is not known", clip(req.GetName(), 80))
		}
		out.Nodes = append(out.Nodes, s.nodeState(node, now))
		return out, nil
	}
	for _, node := range s.nodes.all() {
		out.Nodes = append(out.Nodes, s.nodeState(node, now))
	}
	return out, nil
}

func (s *Server) nodeState(n ca.Node, now time.Time) *wire.NodeState {
	p := s.sessions.of(n.Name)
	st := &wire.NodeState{
		NodeId: n.ID.String(), Name: n.Name, Attributes: wire.FromAttributes(n.Attributes),
		Connected: p.connected, Acked: toPosition(p.acked), Attested: n.Attested.UnixMilli(),
		CredentialNotAfter: n.NotAfter.UnixMilli(), ClockSkew: p.skew.Milliseconds(),
		Evicted: n.Evicted, Version: p.version, Attestation: n.Attestation,
	}
	if !p.lastSeen.IsZero() {
		st.LastSeen = p.lastSeen.UnixMilli()
	}
	for _, v := range s.live.of(n.ID, now) {
		st.Svids = append(st.Svids, &wire.LiveSVID{SpiffeId: v.id, Serial: v.serial, NotAfter: v.notAfter.UnixMilli()})
	}
	return st
}

// EvictNode shuts a node out: recorded, stored, and its stream closed. The
// answer says which of its SVIDs live how long.
func (s adminService) EvictNode(ctx context.Context, req *wire.EvictNodeRequest) (*wire.EvictNodeResponse, error) {
	now := time.Now()
	node, ok := s.nodes.get(req.GetName())
	if !ok {
		return nil, status.Errorf(codes.NotFound, "node %s is not known", clip(req.GetName(), 80))
	}
	if !node.Evicted {
		_, err := s.recorder.RecordAll(ctx, []audit.Event{{Time: now, Kind: audit.KindNodeEvicted, Verdict: audit.VerdictDone,
			Actor: s.actor(ctx), SPIFFEID: node.ID.String(), Node: node.ID.String()}})
		if err != nil {
			return nil, notRecorded("eviction of node "+node.Name, err)
		}
		node, err = s.evict(context.WithoutCancel(ctx), node.Name, now)
		if err != nil {
			return nil, err
		}
		s.log.Info("node evicted", slog.String("node", node.Name))
	}
	s.registry.Drop(node.ID)
	s.sessions.closeNode(node.Name, &wire.Goodbye{Reason: "the node is evicted", Evicted: true})
	s.rollover.poke()
	// What it holds counts for nothing from now on, also where it was evicted
	// before and something was issued in the moment between.
	if _, err := s.revoker.revoke(ctx, now, s.actor(ctx), revocation{Kind: revokedNode, Target: node.Name, Reason: "the node is evicted"}, false); err != nil {
		return nil, err
	}
	return &wire.EvictNodeResponse{Node: s.nodeState(node, now)}, nil
}

func (s *Server) evict(ctx context.Context, name string, now time.Time) (ca.Node, error) {
	return s.nodes.update(ctx, name, func(current ca.Node, known bool) (ca.Node, bool, error) {
		if !known || current.Evicted {
			return current, true, nil
		}
		current.Evicted, current.EvictedAt, current.Keys = true, now, nil
		return current, false, nil
	})
}

// Backup streams a verified copy of the store. The act is recorded first.
func (s adminService) Backup(_ *wire.BackupRequest, stream wire.Admin_BackupServer) error {
	ctx := stream.Context()
	position := s.store.Position()
	_, err := s.recorder.RecordAll(ctx, []audit.Event{{Time: time.Now(), Kind: audit.KindBackup, Verdict: audit.VerdictDone,
		Actor: s.actor(ctx), Epoch: position.Epoch, Revision: position.Revision}})
	if err != nil {
		return notRecorded("backup", err)
	}
	return s.store.Backup(ctx, &chunkWriter{stream: stream})
}

// chunkWriter sends what is written in messages of a bounded size.
type chunkWriter struct{ stream wire.Admin_BackupServer }

// Write sends p, in several messages where it is large.
func (w *chunkWriter) Write(p []byte) (int, error) {
	for chunk := range slices.Chunk(p, 1<<20) {
		if err := w.stream.Send(&wire.BackupResponse{Data: chunk}); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}
