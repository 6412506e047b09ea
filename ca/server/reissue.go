// This file holds rotations without phases: a new intermediate under the same
// root, and the leaves of one workload, node or namespace. Bundles don't
// change for them, so they are orders, and done once nobody live serves what
// was to be replaced.

package server

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/wire"
)

// reissue is one rotation without phases. It is kept in memory: what it asked
// for is recorded, and a node that was away when the server restarted renews
// in its time.
type reissue struct {
	target, name string
	at           time.Time
	actor        string
	ids          []string        // of workloads
	node         string          // name of the one node, "" for all
	issuers      map[string]bool // SKIs whose leaves are replaced
}

func (r reissue) key() string { return r.target + " " + r.name }

// startReissue orders leaves anew, recorded first.
func (s *Server) startReissue(ctx context.Context, actor string, req *wire.RotateRequest) error {
	r := reissue{target: req.GetTarget(), name: req.GetName(), at: time.Now(), actor: actor}
	if err := s.scope(&r); err != nil {
		return err
	}
	detail := "leaves of " + r.name
	if r.target == targetIntermediate {
		detail = "the intermediate, and the leaves of those before it"
	}
	if reason := clip(req.GetReason(), 512); reason != "" {
		detail += "; " + reason
	}
	_, err := s.recorder.RecordAll(ctx, []audit.Event{{Time: r.at, Kind: audit.KindRotation, Verdict: audit.VerdictDone,
		Reason: "reissue", Actor: actor, Detail: clip(detail, 4096)}})
	if err != nil {
		return notRecorded("rotation of "+r.key(), err)
	}
	ctx = context.WithoutCancel(ctx)
	if r.target == targetIntermediate {
		if r.issuers, err = s.replaceIntermediate(ctx, r.at); err != nil {
			return err
		}
	}
	s.reissues.put(r)
	s.orderLeaves(r)
	s.rollover.stir()
	return nil
}

// scope works out whose leaves a rotation is about.
func (s *Server) scope(r *reissue) error {
	if r.target == targetIntermediate {
		if r.name != "" {
			return status.Error(codes.InvalidArgument, "intermediate: it takes no name; this server has one")
		}
		return nil
	}
	if r.name == "" {
		return status.Error(codes.InvalidArgument, "leaves: name a workload (namespace/name), a node (node/NAME) or a namespace")
	}
	snap := s.documents.now.Load()
	if node, ok := strings.CutPrefix(r.name, "node/"); ok {
		if _, known := s.nodes.get(node); !known {
			return status.Errorf(codes.NotFound, "node %s is not known", clip(node, 80))
		}
		r.node = node
		return nil
	}
	ns, name, one := strings.Cut(r.name, "/")
	for k, h := range snap.docs {
		if k.Kind == document.Registration && k.Namespace == ns && (!one || k.Name == name) {
			r.ids = append(r.ids, h.registration.ID.String())
		}
	}
	if len(r.ids) == 0 {
		return status.Errorf(codes.NotFound, "leaves: %q is neither a registration (namespace/name), a node (node/NAME) nor a namespace with registrations", clip(r.name, 200))
	}
	slices.Sort(r.ids)
	return nil
}

// replaceIntermediate puts a new intermediate in force, with a new SVID of
// the server's own, and returns the authorities that it follows.
func (s *Server) replaceIntermediate(ctx context.Context, now time.Time) (map[string]bool, error) {
	s.trusting.Lock()
	defer s.trusting.Unlock()
	t := *s.trust.Load()
	before, _ := s.marks.below(hex.EncodeToString(t.rootCert.SubjectKeyId))
	before[t.intermediate.SKI()] = true
	a, err := s.makeIntermediate(ctx, &t, now, true)
	if err != nil {
		return nil, err
	}
	t.setIntermediate(a, now)
	next, err := s.withServerSVID(ctx, &t, now)
	if err != nil {
		return nil, err
	}
	s.trust.Store(next)
	return before, nil
}

// orderLeaves sends the order of a rotation.
func (s *Server) orderLeaves(r reissue) {
	m := &wire.Reissue{Issuers: slices.Sorted(maps.Keys(r.issuers)), SpiffeIds: r.ids}
	if r.issuers == nil {
		m.Before = r.at.UnixMilli()
	}
	o := order{key: r.at.UTC().Format(time.RFC3339Nano)}
	n := len(s.nodes.all()) + s.live.count(r.at)
	if r.node != "" {
		node, _ := s.nodes.get(r.node)
		o.concerns = func(name string) bool { return name == r.node }
		live := s.live.of(node.ID, r.at)
		n = 1 + len(live)
		m.SpiffeIds = []string{node.ID.String()}
		for _, v := range live {
			m.SpiffeIds = append(m.SpiffeIds, v.id)
		}
	}
	m.Spread = s.orders.spread(n).Milliseconds()
	o.message = m
	s.orders.put(r.key(), o)
	s.sessions.notifyAll()
}

// reissueState says how far a rotation without phases is: of the live nodes
// that hold leaves it is about, how many have replaced all of them.
func (s *Server) reissueState(target, name string, now time.Time) (*wire.RotationState, error) {
	r, ok := s.reissues.of(target + " " + name)
	out := &wire.RotationState{Target: target, Name: name, Phase: "idle", Clock: now.UnixMilli()}
	if !ok {
		return out, nil
	}
	out.Phase, out.Since, out.StartedBy = "reissuing", r.at.UnixMilli(), r.actor
	for _, node := range s.nodes.all() {
		if node.Evicted || r.node != "" && node.Name != r.node {
			continue
		}
		old, fresh := s.replaced(r, node.ID, now)
		p := s.sessions.of(node.Name)
		if target == targetIntermediate {
			old = 0
			for _, ski := range p.held.issuers {
				if r.issuers[ski] {
					old++
				}
			}
			fresh = 1
		}
		if until, _ := s.exposure(node, now); old+fresh == 0 || !p.connected && now.After(until) {
			continue
		}
		out.Live++
		if old == 0 && (target != targetIntermediate || p.held.known) {
			out.Acked++
			continue
		}
		lacks := fmt.Sprintf("%d of its leaves are not replaced yet", old)
		if !p.held.known {
			lacks = "has not acknowledged yet"
		}
		until, _ := s.exposure(node, now)
		out.Holders = append(out.Holders, holderState(holder{node: node, presence: p, lacks: lacks, since: r.at, until: until}))
	}
	out.Gate = fmt.Sprintf("%d of %d nodes have replaced theirs", out.GetAcked(), out.GetLive())
	if len(out.GetHolders()) == 0 {
		out.Phase = "done"
	}
	return out, nil
}

// replaced counts the identities of a node that a rotation is about: those
// whose newest leaf is older than it, and those that have a newer one.
func (s *Server) replaced(r reissue, node identity.ID, now time.Time) (old, fresh int) {
	newest := map[string]time.Time{}
	for _, v := range s.live.of(node, now) {
		if r.ids != nil && !slices.Contains(r.ids, v.id) {
			continue
		}
		if v.issued.After(newest[v.id]) {
			newest[v.id] = v.issued
		}
	}
	for _, at := range newest {
		if at.Before(r.at) {
			old++
		} else {
			fresh++
		}
	}
	return old, fresh
}
