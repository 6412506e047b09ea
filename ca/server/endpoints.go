// This file holds the server's part in the registry of endpoints: reports of
// nodes up, deltas down, and what operators see of it.

package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/peer"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/ca/registry"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/directory/protocol"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/rotation"
)

const (
	// settleTime is how long after its start a server waits for the reports of
	// its nodes before it takes anything away from those that hold more.
	settleTime = 10 * time.Second
	// reportPause is the least time between two reports of one node that are
	// taken; what comes meanwhile is superseded by the newest.
	reportPause = 100 * time.Millisecond
)

// newRegistry makes the registry; its readers are the sessions.
func (s *Server) newRegistry() *registry.Registry {
	return registry.New(registry.Config{
		Registration: func(path string) (identity.Registration, bool) {
			namespace, name, _ := strings.Cut(path, "/")
			h := s.documents.now.Load().docs[document.Key{Kind: document.Registration, Namespace: namespace, Name: name}]
			if h == nil {
				return identity.Registration{}, false
			}
			return h.registration, true
		},
		Changed:        s.sessions.notifyAll,
		AttributesOnly: s.cfg.EndpointsByAttribute,
	})
}

// documentsChanged is called when documents have changed.
func (s *Server) documentsChanged() {
	snap := s.documents.now.Load()
	keys, known := snap.since(s.reconsidered.Swap(snap.position.Revision))
	changed := map[string]bool{}
	for _, k := range keys {
		if k.Kind == document.Registration {
			changed[k.Namespace+"/"+k.Name] = true
		}
	}
	switch {
	case !known:
		s.registry.Reconsider(nil)
	case len(changed) > 0:
		s.registry.Reconsider(changed)
	}
	s.sessions.notifyAll()
	s.keySets.wake()
}

// joinRegistry opens a session's part in the registry and returns its end.
func (s *Server) joinRegistry(ctx context.Context, node ca.AttestedNode) (leave func()) {
	var from netip.Addr
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		if at, err := netip.ParseAddrPort(p.Addr.String()); err == nil {
			from = at.Addr().Unmap()
		}
	}
	left := s.registry.Join(node, from)
	return func() {
		left(time.Now())
		s.expiry.notify()
	}
}

// signal holds one wake-up.
type signal chan struct{}

func (s signal) notify() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// report keeps a node's newest report for takeReports.
func (s *session) report(r *wire.EndpointReport) {
	for {
		select {
		case s.reports <- r:
			return
		default:
		}
		select {
		case <-s.reports:
		default:
		}
	}
}

// takeReports takes a session's reports until ctx ends.
func (s *Server) takeReports(ctx context.Context, sess *session) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case r := <-sess.reports:
			s.takeReport(sess, r)
		}
		if !rotation.Pause(ctx, reportPause) {
			return ctx.Err()
		}
	}
}

func (s *Server) takeReport(sess *session, r *wire.EndpointReport) {
	now := time.Now()
	refused := s.registry.Report(sess.node.ID(), r, now)
	// Alike refusals are one record, which names the last: an address that is
	// another node's rather than nobody's.
	slices.SortStableFunc(refused, func(a, b registry.State) int {
		return strings.Compare(a.Other.String(), b.Other.String())
	})
	for i, st := range refused {
		if i == 0 {
			s.log.Warn("endpoints of a node do not count", slog.String("node", sess.node.Name()), slog.Int("endpoints", len(refused)),
				slog.String("first", st.Key.String()), slog.String("reason", st.Reason))
		}
		s.refusals.note(AuthorityLog, sess.node.Name()+" endpoint", audit.Event{Time: now, Kind: audit.KindRefused, Verdict: audit.VerdictDenied,
			Reason: ca.ReasonNotEntitled, Node: sess.node.ID().String(), SPIFFEID: st.ID.String(), Registration: st.Registration,
			Detail: clip(fmt.Sprintf("endpoint %s: %s", st.Address, st.Reason), 512)})
	}
	if r.GetSubscribe() && !sess.subscribed.Swap(true) {
		sess.notify()
	}
	if r.GetComplete() {
		s.settle(now)
	}
}

// pushEndpoints sends what a session that asked for it lacks of the registry.
func (s *Server) pushEndpoints(sess *session) error {
	if !sess.subscribed.Load() {
		return nil
	}
	for _, d := range s.registry.Read(&sess.endpoints, s.settled.Load()) {
		if err := sess.send(&wire.ServerFrame{Frame: &wire.ServerFrame_Endpoints{Endpoints: protocol.FromEndpointDelta(d)}}); err != nil {
			return err
		}
	}
	return nil
}

// settle notes that the registry is whole: every node that may come back has
// reported, or has had its time.
func (s *Server) settle(now time.Time) {
	if s.settled.Load() {
		return
	}
	missing := func(n ca.Node) bool { return !n.Evicted && now.Before(n.NotAfter) && !s.registry.Reported(n.ID) }
	if now.Sub(s.started) < settleTime && slices.ContainsFunc(s.nodes.all(), missing) {
		return
	}
	s.settled.Store(true)
	s.sessions.notifyAll()
}

// tendRegistry settles the registry after the start and lets claims expire,
// until ctx ends.
func (s *Server) tendRegistry(ctx context.Context) error {
	s.settle(time.Now())
	for {
		now := time.Now()
		wait := time.Hour
		if !s.settled.Load() {
			s.settle(now)
			wait = max(s.started.Add(settleTime).Sub(now), time.Millisecond)
		}
		if next := s.registry.Expire(now); !next.IsZero() {
			wait = min(wait, max(next.Sub(now), time.Millisecond))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-s.expiry:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// ListEndpoints shows the registry, with what does not count and why.
func (s adminService) ListEndpoints(context.Context, *wire.ListEndpointsRequest) (*wire.ListEndpointsResponse, error) {
	out := &wire.ListEndpointsResponse{Settling: !s.settled.Load()}
	for _, st := range s.registry.States() {
		e := &wire.EndpointState{State: st.State, Reason: st.Reason, Since: st.Since.UnixMilli(), Evidence: st.Evidence, Connected: st.Connected}
		if st.ID.IsZero() {
			e.Endpoint = &wire.Endpoint{Node: st.Node.String()}
		} else {
			e.Endpoint = protocol.FromEndpoint(st.Endpoint)
		}
		out.Endpoints = append(out.Endpoints, e)
	}
	return out, nil
}

// addEndpointFacts lists the conflicts, and the nodes none of whose endpoints
// count.
func (s *Server) addEndpointFacts(out *wire.ServerStatusResponse) {
	type node struct {
		claims, accepted int
		reason           string
	}
	nodes := map[identity.ID]*node{}
	for _, st := range s.registry.States() {
		n := nodes[st.Node]
		if n == nil {
			n = &node{}
			nodes[st.Node] = n
		}
		n.claims++
		switch {
		case st.State == registry.Accepted:
			n.accepted++
			out.Endpoints++
		case !st.Other.IsZero():
			out.EndpointFaults = append(out.EndpointFaults, fmt.Sprintf("node %s, %s: %s", nodeName(st.Node), st.Key, st.Reason))
		default:
			n.reason = st.Reason
		}
	}
	for id, n := range nodes {
		if n.accepted == 0 && n.reason != "" {
			out.EndpointFaults = append(out.EndpointFaults, fmt.Sprintf("node %s: none of its %d endpoints counts: %s", nodeName(id), n.claims, n.reason))
		}
	}
	slices.Sort(out.EndpointFaults)
}

func nodeName(id identity.ID) string { return id.Path()[strings.LastIndexByte(id.Path(), '/')+1:] }

// claimsMetric counts the claims that do not count.
func (s *Server) claimsMetric() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "aval_server_endpoints_refused", Help: "Endpoints that nodes report and that do not count."},
		func() float64 {
			n := 0
			for _, st := range s.registry.States() {
				if st.State != registry.Accepted {
					n++
				}
			}
			return float64(n)
		})
}
