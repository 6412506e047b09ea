// This file holds what a server says of itself to operators.

package server

import (
	"cmp"
	"context"
	"encoding/hex"
	"slices"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/policy"
	"github.com/aval-id/aval/identity/wire"
)

// maxCoverage bounds the registrations times policies that one status call
// evaluates.
const maxCoverage = 4 << 20

// ServerStatus says what the server holds and how it fares.
func (s adminService) ServerStatus(context.Context, *wire.ServerStatusRequest) (*wire.ServerStatusResponse, error) {
	now := time.Now()
	snap := s.documents.now.Load()
	out := &wire.ServerStatusResponse{
		TrustDomain: s.cfg.TrustDomain.String(), ServerId: s.Credentials().SVID.ID.String(), Version: s.cfg.Version,
		Position: toPosition(snap.position), Clock: now.UnixMilli(), Nodes: uint32(len(s.nodes.all())),
		Connected: uint32(s.sessions.count()), Documents: uint32(len(snap.docs)), Listen: s.Addr().String(),
		DataDir: s.cfg.DataDir, DefaultDeny: s.cfg.DefaultDeny, Revocations: uint32(len(snap.revoked)), RootNamespace: s.cfg.RootNamespace, Uptime: now.Sub(s.started).Milliseconds(),
	}
	for _, c := range s.certificates() {
		st := authorityState(c)
		if c.role != roleServer {
			st.State = "issuing"
		}
		out.Authorities = append(out.Authorities, st)
	}
	t := s.trust.Load()
	for _, root := range t.bundle.Roots() {
		if !root.Equal(t.rootCert) {
			st := authorityState(certificate{roleRoot, root})
			st.State = "trusted"
			out.Authorities = append(out.Authorities, st)
		}
	}
	logs := s.logs()
	for _, name := range []string{AuthorityLog, ConnectionsLog} {
		st := logs[name].Stats()
		state := &wire.LogState{Name: name, Entries: logs[name].Size(), CheckpointSize: st.CheckpointSize,
			VerifierKey: logs[name].VerifierKey(), Bytes: uint64(st.Bytes)}
		if st.Full {
			state.Error = "the disk of the log is full"
		}
		out.Logs = append(out.Logs, state)
	}
	out.Upstream = s.upstreamFacts()
	s.addPolicyFacts(out, snap)
	s.addEndpointFacts(out)
	out.KeySets = s.keySets.states()
	return out, nil
}

func authorityState(c certificate) *wire.AuthorityState {
	st := &wire.AuthorityState{
		Role: c.role, Serial: identity.Serial(c.cert), Ski: hex.EncodeToString(c.cert.SubjectKeyId),
		NotBefore: c.cert.NotBefore.UnixMilli(), NotAfter: c.cert.NotAfter.UnixMilli(), Hash: identity.CertificateHash(c.cert),
		Subject: c.cert.Subject.String(), Issuer: c.cert.Issuer.String(),
	}
	if kind, err := identity.KeyTypeOf(c.cert.PublicKey); err == nil {
		st.KeyType = kind.String()
	}
	if len(c.cert.URIs) == 1 {
		st.SpiffeId = c.cert.URIs[0].String()
	}
	return st
}

// upstreamFacts says who signs the intermediates, and how it went.
func (s *Server) upstreamFacts() *wire.UpstreamState {
	u := &s.upstream
	u.mu.Lock()
	defer u.mu.Unlock()
	out := &wire.UpstreamState{Name: s.upstreamName(), Error: u.err, Failures: uint32(u.failures), ByHand: u.byHand}
	if _, offline := s.cfg.Upstream.(Offline); offline {
		out.ByHand = true
	}
	if !u.signed.IsZero() {
		out.Signed = u.signed.UnixMilli()
	}
	if !u.next.IsZero() {
		out.Next = u.next.UnixMilli()
	}
	return out
}

// addPolicyFacts lists registrations that are open to every node, workloads
// that no ALLOW policy covers, and documents that are ignored for another.
func (s *Server) addPolicyFacts(out *wire.ServerStatusResponse, snap *snapshot) {
	settings := s.documents.parser.settings
	var regs []identity.Registration
	var policies []document.Document
	docs := map[document.Key]document.Document{}
	for k, h := range snap.docs {
		switch k.Kind {
		case document.Registration:
			regs = append(regs, h.registration)
			if len(h.registration.Node) == 0 {
				out.OpenRegistrations = append(out.OpenRegistrations, h.registration.Path())
			}
		case document.PeerAuthentication:
			docs[k] = h.doc
		case document.AuthorizationPolicy:
			policies = append(policies, h.doc)
		}
	}
	if _, aps, err := policy.Load(policies, settings); err == nil && len(regs)*max(1, len(aps)) <= maxCoverage {
		for _, r := range regs {
			if !policy.HasAllow(settings, policy.Workload{Namespace: r.Namespace, Labels: r.Labels}, aps) {
				out.WorkloadsWithoutAllow = append(out.WorkloadsWithoutAllow, r.Path())
			}
		}
	}
	for loser, winner := range conflicts(docs, settings) {
		out.Conflicts = append(out.Conflicts, loser.String()+" is ignored for "+winner.String())
	}
	for _, list := range []*[]string{&out.OpenRegistrations, &out.WorkloadsWithoutAllow, &out.Conflicts} {
		slices.SortFunc(*list, cmp.Compare[string])
	}
}
