// This file holds the node API's admission: Attest and Renew, and the check
// that every call of a node begins with.

package server

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/wire"
)

// maxSkew is the difference of clocks from which on it is reported.
const maxSkew = 30 * time.Second

// nodeService answers nodes.
type nodeService struct {
	wire.UnimplementedNodeServer
	*Server
}

// Attest admits a node by join token, or a known node by its recorded key.
func (s nodeService) Attest(ctx context.Context, req *wire.AttestRequest) (*wire.AttestResponse, error) {
	now := time.Now()
	resp, node, err := s.attest(ctx, now, req)
	if err != nil {
		s.refuseStranger(ctx, now, node, err)
		return nil, err
	}
	s.log.Info("node attested", slog.String("node", node), slog.Bool("token", req.GetToken() != ""))
	return resp, nil
}

func (s *Server) attest(ctx context.Context, now time.Time, req *wire.AttestRequest) (resp *wire.AttestResponse, name string, err error) {
	var node ca.Node
	var key ca.ProvenKey
	var how string
	var invited time.Time // when the join token was made, zero without one
	if req.GetToken() != "" {
		how = joinedByToken
		node, key, invited, err = s.redeem(ctx, now, req)
	} else {
		how = "recorded key"
		node, key, err = s.recognise(req)
	}
	if err != nil {
		return nil, node.Name, err
	}
	attested, err := node.Attest(key)
	if err != nil {
		return nil, node.Name, err
	}
	entitled, err := attested.Self()
	if err != nil {
		return nil, node.Name, err
	}
	event := audit.Event{Time: now, Kind: audit.KindNodeAttested, Verdict: audit.VerdictAllowed, SPIFFEID: node.ID.String(),
		Node: node.ID.String(), KeySHA256: key.Hash(), Source: sourceOf(ctx), Detail: how}
	cert, err := s.issueNode(ctx, now, entitled, key, event)
	if err != nil {
		return nil, node.Name, err
	}
	node, err = s.nodes.update(ctx, node.Name, func(current ca.Node, known bool) (ca.Node, bool, error) {
		return admit(current, known, node, key, invited, cert.Leaf.NotAfter)
	})
	if err != nil {
		return nil, node.Name, err
	}
	if req.GetToken() != "" {
		s.dropOtherKeys(node)
	}
	return &wire.AttestResponse{
		NodeId: node.ID.String(), Chain: cert.Chain,
		Bundle:     wire.FromBundle(s.trust.Load().bundle),
		Attributes: wire.FromAttributes(node.Attributes),
	}, node.Name, nil
}

// joinedByToken is the detail of the event of a node that joined by token.
const joinedByToken = "join token"

// admit is the node's next stored state after an attestation. What was
// checked before the certificate was signed is checked again: the node may
// have been evicted meanwhile.
func admit(current ca.Node, known bool, node ca.Node, key ca.ProvenKey, invited, notAfter time.Time) (ca.Node, bool, error) {
	if invited.IsZero() {
		if _, err := current.Attest(key); err != nil {
			return current, false, err
		}
		node, _ = current.KeyUsed(key)
	} else if known {
		if err := readmit(current, invited); err != nil {
			return current, false, err
		}
	}
	if node.NotAfter.Before(notAfter) {
		node.NotAfter = notAfter
	}
	return node, false, nil
}

// readmit checks that a joining node may take the place of the one of the
// same name: a token made before an eviction does not undo it, whenever it is
// used.
func readmit(current ca.Node, invited time.Time) error {
	if current.Evicted && !invited.After(current.EvictedAt) {
		return &ca.Refusal{Cause: ca.CauseDenied, Reason: ca.ReasonEvicted, Err: status.Errorf(codes.PermissionDenied, "node %s was evicted after its token was made", current.Name)}
	}
	return nil
}

// redeem admits the bearer of a join token, and says when the token was made.
func (s *Server) redeem(ctx context.Context, now time.Time, req *wire.AttestRequest) (node ca.Node, key ca.ProvenKey, invited time.Time, err error) {
	token, err := ca.ParseToken(req.GetToken())
	if err != nil {
		return node, key, invited, err
	}
	if key, err = ca.ProveCSR(req.GetCsr()); err != nil {
		return node, key, invited, err
	}
	grant, err := s.nodes.bind(ctx, token, key, now)
	stranger := ca.Node{Name: grant.Node}
	if err != nil {
		return stranger, key, invited, err
	}
	if node, err = grant.Admit(s.cfg.TrustDomain, key, now); err != nil {
		return stranger, key, invited, err
	}
	if current, ok := s.nodes.get(node.Name); ok {
		if err := readmit(current, grant.Created); err != nil {
			return stranger, key, invited, err
		}
	}
	return node, key, grant.Created, nil
}

// recognise takes a known node by a key that is recorded for it.
func (s *Server) recognise(req *wire.AttestRequest) (ca.Node, ca.ProvenKey, error) {
	refuse := func(reason, text string) (ca.Node, ca.ProvenKey, error) {
		return ca.Node{}, ca.ProvenKey{}, &ca.Refusal{Cause: ca.CauseDenied, Reason: reason, Err: status.Error(codes.PermissionDenied, text)}
	}
	if req.GetNodeId() == "" {
		return refuse(ca.ReasonBadToken, "neither a join token nor a node ID was given")
	}
	id, err := identity.ParseID(req.GetNodeId())
	if err != nil || id.Role() != identity.RoleNode {
		return refuse(ca.ReasonUnknownNode, "the node ID is not one of a node")
	}
	key, err := ca.ProveCSR(req.GetCsr())
	if err != nil {
		return ca.Node{}, ca.ProvenKey{}, err
	}
	node, ok := s.nodes.byID(id)
	if !ok {
		return refuse(ca.ReasonUnknownNode, "the node is not known: it needs a join token")
	}
	return node, key, nil
}

// issueNode issues a node's own credential with the event that explains it.
func (s *Server) issueNode(ctx context.Context, now time.Time, entitled ca.Entitlement, key ca.ProvenKey, event audit.Event) (ca.Certificate, error) {
	if _, err := s.paces.certificates(event.Node, 1, now); err != nil {
		return ca.Certificate{}, err
	}
	authority := s.trust.Load().intermediate
	if err := s.marks.reach(ctx, authority, now, s.cfg.NodeTTL); err != nil {
		return ca.Certificate{}, err
	}
	draft, err := authority.Draft(now, entitled, key)
	if err != nil {
		return ca.Certificate{}, err
	}
	certs, err := s.issuer.Release(ctx, authority, []*ca.Draft{draft}, event)
	if err != nil {
		return ca.Certificate{}, err
	}
	s.metrics.issued.WithLabelValues(audit.RoleNode).Inc()
	return certs[0], nil
}

// dropOtherKeys ends a session that another key of the same node holds.
func (s *Server) dropOtherKeys(node ca.Node) {
	s.sessions.mu.Lock()
	open := s.sessions.open[node.Name]
	s.sessions.mu.Unlock()
	if open != nil && !slices.Contains(node.Keys, open.key.Hash()) {
		open.close(&wire.Goodbye{Reason: "the node joined again with another key"})
	}
}

// Renew gives the calling node a credential for a new key.
func (s nodeService) Renew(ctx context.Context, req *wire.RenewRequest) (*wire.RenewResponse, error) {
	now := time.Now()
	attested, held, err := s.authenticate(ctx, now)
	if err != nil {
		return nil, err
	}
	resp, err := s.renew(ctx, now, attested, held, req)
	if err != nil {
		s.refuseNode(now, attested, identity.ID{}, "", err)
	}
	return resp, err
}

// renewedBy begins the detail of a renewal's event; the hash of the key that
// asked for it follows.
const renewedBy = "asked with the key "

// renew gives a node that proved the key held a credential for the key of its
// request. Held must count to the end: a node that joined anew meanwhile does
// not get a key of the one it replaced.
func (s *Server) renew(ctx context.Context, now time.Time, attested ca.AttestedNode, held ca.ProvenKey, req *wire.RenewRequest) (*wire.RenewResponse, error) {
	key, err := ca.ProveCSR(req.GetCsr())
	if err != nil {
		return nil, err
	}
	entitled, err := attested.Self()
	if err != nil {
		return nil, err
	}
	event := audit.Event{Time: now, Kind: audit.KindNodeRenewed, Verdict: audit.VerdictAllowed,
		SPIFFEID: attested.ID().String(), Node: attested.ID().String(), KeySHA256: key.Hash(), Detail: renewedBy + held.Hash()}
	cert, err := s.issueNode(ctx, now, entitled, key, event)
	if err != nil {
		return nil, err
	}
	_, err = s.nodes.update(ctx, attested.Name(), func(current ca.Node, _ bool) (ca.Node, bool, error) {
		if _, err := current.Attest(held); err != nil {
			return current, false, err
		}
		next := current.WithKey(key)
		if next.NotAfter.Before(cert.Leaf.NotAfter) {
			next.NotAfter = cert.Leaf.NotAfter
		}
		return next, false, nil
	})
	if err != nil {
		return nil, err
	}
	return &wire.RenewResponse{Chain: cert.Chain}, nil
}

// authenticate takes the calling node from its handshake: an SVID with the
// role of a node, known, not evicted, with a key that is recorded for it. A
// key that is used makes the ones before it void.
func (s *Server) authenticate(ctx context.Context, now time.Time) (ca.AttestedNode, ca.ProvenKey, error) {
	attested, key, id, err := s.authenticated(ctx)
	if err != nil {
		if id.IsZero() {
			s.refuseStranger(ctx, now, "", err)
		} else {
			s.refusals.note(AuthorityLog, id.String(), audit.Event{Time: now, Kind: audit.KindRefused, Verdict: audit.VerdictDenied,
				Reason: reasonOf(err), SPIFFEID: id.String(), Node: id.String(), Source: sourceOf(ctx), Detail: err.Error()})
		}
		return ca.AttestedNode{}, ca.ProvenKey{}, err
	}
	_, err = s.nodes.update(ctx, attested.Name(), func(current ca.Node, _ bool) (ca.Node, bool, error) {
		next, changed := current.KeyUsed(key)
		return next, !changed, nil
	})
	return attested, key, err
}

func (s *Server) authenticated(ctx context.Context) (ca.AttestedNode, ca.ProvenKey, identity.ID, error) {
	fail := func(err error, id identity.ID) (ca.AttestedNode, ca.ProvenKey, identity.ID, error) {
		return ca.AttestedNode{}, ca.ProvenKey{}, id, err
	}
	p, _ := peer.FromContext(ctx)
	state, ok := p.AuthInfo.(tlsPeer)
	if !ok || len(state.state.PeerCertificates) == 0 {
		return fail(&ca.Refusal{Cause: ca.CauseDenied, Reason: ca.ReasonNoCertificate,
			Err: status.Error(codes.Unauthenticated, "this call needs the node's certificate")}, identity.ID{})
	}
	key, err := ca.ProveHandshake(state.state)
	if err != nil {
		return fail(err, identity.ID{})
	}
	// The handshake verified the chain; its end may have come since.
	leaf := state.state.PeerCertificates[0]
	id, err := identity.LeafID(leaf)
	if err != nil {
		return fail(err, identity.ID{})
	}
	if !time.Now().Before(leaf.NotAfter) {
		return fail(&ca.Refusal{Cause: ca.CauseDenied, Reason: audit.ReasonExpired,
			Err: status.Error(codes.Unauthenticated, "the node's certificate has expired")}, id)
	}
	node, ok := s.nodes.byID(id)
	if !ok {
		return fail(&ca.Refusal{Cause: ca.CauseDenied, Reason: ca.ReasonUnknownNode,
			Err: status.Errorf(codes.PermissionDenied, "%s is not a known node", id)}, id)
	}
	attested, err := node.Attest(key)
	if err != nil {
		return fail(err, id)
	}
	return attested, key, id, nil
}

// refuseStranger records a refusal that anyone who reaches the port can
// cause. It goes to the connections log, so that no stranger can fill the
// authority's.
func (s *Server) refuseStranger(ctx context.Context, now time.Time, node string, err error) {
	source := sourceOf(ctx)
	s.refusals.note(ConnectionsLog, hostOf(source)+" "+node, audit.Event{Time: now, Kind: audit.KindRefused,
		Verdict: audit.VerdictDenied, Reason: reasonOf(err), Node: node, Source: source, Detail: clip(err.Error(), 512)})
}

// refuseNode records what an authenticated node asked for in vain.
func (s *Server) refuseNode(now time.Time, node ca.AttestedNode, asked identity.ID, registration string, err error) {
	s.refusals.note(AuthorityLog, node.Name()+" "+registration, audit.Event{Time: now, Kind: audit.KindRefused,
		Verdict: audit.VerdictDenied, Reason: reasonOf(err), Node: node.ID().String(), SPIFFEID: asked.String(),
		Registration: registration, Detail: clip(err.Error(), 512)})
}

func sourceOf(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}
