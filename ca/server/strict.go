// This file holds the question whether workloads can take mTLS alone: which
// of their recorded clients would break, and whether the record suffices.

package server

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/policy"
	"github.com/aval-id/aval/identity/wire"
)

// defaultStrictWindow is how long a workload must have been clean where the
// question does not say.
const defaultStrictWindow = 24 * time.Hour

// ExplainStrict judges the registrations that the target names.
func (s adminService) ExplainStrict(_ context.Context, req *wire.ExplainStrictRequest) (*wire.ExplainStrictResponse, error) {
	now := time.Now()
	window := time.Duration(req.GetWindow()) * time.Millisecond
	switch {
	case window == 0:
		window = defaultStrictWindow
	case window < 0 || req.GetWindow() > int64(10*365*24*time.Hour/time.Millisecond):
		return nil, status.Errorf(codes.InvalidArgument, "window of %d ms: more than nothing and at most ten years", req.GetWindow())
	}
	q := s.inquire(now, window)
	targets := q.chosen(req.GetTarget())
	if len(targets) == 0 && req.GetTarget() != "" {
		return nil, status.Errorf(codes.NotFound, "no registration, SPIFFE ID or namespace is named %q", clip(req.GetTarget(), 512))
	}
	out := &wire.ExplainStrictResponse{Clock: now.UnixMilli(), Window: window.Milliseconds()}
	out.Reading, out.Fault, out.Overflow = s.ledger.state()
	q.reading, q.fault, q.overflow = out.Reading, out.Fault, out.Overflow
	callers := len(targets)*len(q.regs) <= maxCoverage
	for _, reg := range targets {
		out.Workloads = append(out.Workloads, q.judge(reg, callers))
	}
	return out, nil
}

// inquiry is what judgements of one question stand on.
type inquiry struct {
	ledger   *ledger
	nodes    *nodes
	settings policy.Settings
	regs     []identity.Registration
	pas      []policy.PeerAuthentication
	aps      []policy.AuthorizationPolicy
	except   []policy.PlaintextException
	reported map[string][]string // nodes by the identity that they reported for
	now      time.Time
	window   time.Duration

	reading  bool
	fault    string
	overflow uint64
}

func (s *Server) inquire(now time.Time, window time.Duration) *inquiry {
	q := &inquiry{ledger: s.ledger, nodes: s.nodes, settings: s.documents.parser.settings, reported: s.ledger.nodesOf(), now: now, window: window}
	var policies []document.Document
	for _, h := range s.documents.now.Load().sorted(func(document.Key) bool { return true }) {
		if h.key.Kind == document.Registration {
			q.regs = append(q.regs, h.registration)
		} else {
			policies = append(policies, h.doc)
		}
	}
	q.pas, q.aps, _ = policy.Load(policies, q.settings) // what cannot be read denies, there as here
	q.except, _, _ = policy.LoadExceptions(policies, q.settings)
	return q
}

// chosen returns the registrations that a target names: namespace/name, a
// SPIFFE ID, a namespace, or all.
func (q *inquiry) chosen(target string) []identity.Registration {
	return slices.DeleteFunc(slices.Clone(q.regs), func(r identity.Registration) bool {
		switch {
		case target == "":
			return false
		case strings.Contains(target, "://"):
			return r.ID.String() != target
		case strings.Contains(target, "/"):
			return r.Path() != target
		}
		return r.Namespace != target
	})
}

// entitled reports whether a node, named as records name it, may hold the
// registration's identity.
func (q *inquiry) entitled(reg identity.Registration, node string) bool {
	id, err := identity.ParseID(node)
	if err != nil {
		return false
	}
	n, ok := q.nodes.byID(id)
	return ok && !n.Evicted && reg.Node.Matches(n.Attributes)
}

// judge judges one registration.
func (q *inquiry) judge(reg identity.Registration, callers bool) *wire.StrictWorkload {
	id := reg.ID.String()
	view := q.ledger.view(id, q.reported[id], func(node string) bool { return q.entitled(reg, node) })
	w := policy.Workload{Namespace: reg.Namespace, Labels: reg.Labels}
	set := policy.Compile(q.settings, w, q.pas, q.aps, 0)
	exempt := policy.CompileExemptions(q.settings, w, q.except, q.aps, 0)
	out := &wire.StrictWorkload{
		Registration: reg.Path(), SpiffeId: id, Nodes: view.nodes, Untrusted: view.untrusted,
		ObservedSince: milli(view.all.first), LastSeen: milli(view.all.last), Connections: view.all.count,
		CleanSince: milli(view.all.first),
	}
	since := q.now.Add(-q.window)
	breaking := 0
	for _, number := range slices.Sorted(maps.Keys(view.ports)) {
		port, broken := q.judgePort(reg, set, exempt, number, view, since)
		breaking += broken
		out.Ports = append(out.Ports, port)
		out.CleanSince = max(out.CleanSince, port.GetCleanSince())
	}
	for _, x := range q.except {
		if x.AppliesTo(w) {
			out.Exceptions = append(out.Exceptions, &wire.StrictException{Name: x.Key().Path(), Reason: x.Reason(),
				Until: milli(x.Until()), Holds: x.Holds(q.now)})
		}
	}
	if view.lost.last.After(since) {
		out.Lost = view.lost.count
	}
	out.Missing = q.missing(view, since, breaking)
	out.Ready = len(out.Missing) == 0
	if callers {
		out.NeverObserved = q.neverObserved(reg, set, view, since)
	}
	return out
}

// missing words what stands in the way of strict.
func (q *inquiry) missing(view ledgerView, since time.Time, breaking int) []string {
	var out []string
	if breaking > 0 {
		out = append(out, fmt.Sprintf("clients that came without identity within %s and would be refused: %d", q.window, breaking))
	}
	switch {
	case view.all.count == 0:
		out = append(out, "no connection to it was ever recorded: there is no proxy before it, or nobody called")
	case view.all.last.Before(since):
		out = append(out, fmt.Sprintf("no connection was recorded within %s; the last is of %s", q.window, view.all.last.UTC().Format(time.RFC3339)))
	case view.all.first.After(since):
		out = append(out, fmt.Sprintf("it is observed since %s, for less than %s", view.all.first.UTC().Format(time.RFC3339), q.window))
	}
	if view.lost.last.After(since) {
		out = append(out, fmt.Sprintf("its nodes lost records, the last at %s: who came is not known whole", view.lost.last.UTC().Format(time.RFC3339)))
	}
	if q.reading {
		out = append(out, "the record of before the server's start is still being read")
	}
	if q.fault != "" {
		out = append(out, "the record of before the server's start could not be read: "+q.fault)
	}
	if q.overflow > 0 {
		out = append(out, fmt.Sprintf("%d records are beyond what the ledger holds", q.overflow))
	}
	return out
}

// judgePort lists the clients of a port and returns how many would break. A
// client that an exception covers does not, as long as that holds.
func (q *inquiry) judgePort(reg identity.Registration, set *policy.Set, exempt *policy.Exemptions, number uint16, view ledgerView, since time.Time) (*wire.StrictPort, int) {
	from := view.ports[number]
	mode, source := set.Mode(number)
	out := &wire.StrictPort{Port: uint32(number), Mode: mode.String(), ModeSource: source,
		CleanSince: milli(from.all.first), Connections: from.all.count}
	breaking := 0
	for _, v := range from.visitors {
		c := &wire.StrictClient{
			Cause: v.cause, Admitted: v.admitted, SpiffeId: v.id, Protocol: v.protocol, Unnamed: v.unnamed,
			FirstSeen: milli(v.first), LastSeen: milli(v.last), Count: v.count,
		}
		if v.source.IsValid() {
			c.Source = v.source.String()
		}
		if v.cause == causePlaintext || v.cause == causeForeignTLS {
			c.Exception = exempt.Covering(v.source, number, q.now)
			asked := from.asked[v.source]
			c.Requests, c.RequestCount = asked.targets.most(), asked.count
		}
		if v.admitted && v.cause != causeMTLS && c.Exception == "" {
			out.CleanSince = max(out.CleanSince, c.LastSeen)
			if c.Breaks = !v.last.Before(since); c.Breaks {
				breaking++
			}
		}
		for _, process := range from.processes[v.visitor].most() {
			c.Processes = append(c.Processes, fmt.Sprintf("%s (%d times)", process, from.processes[v.visitor][process]))
		}
		c.Known, c.Fix = q.advise(reg, view, v)
		out.Clients = append(out.Clients, c)
	}
	slices.SortFunc(out.Clients, compareClients)
	out.Ready = breaking == 0
	return out, breaking
}

// compareClients puts those that would break first, then the others without
// identity, then failures, then the rest; each the latest first.
func compareClients(a, b *wire.StrictClient) int {
	rank := func(c *wire.StrictClient) int {
		switch {
		case c.GetBreaks():
			return 0
		case c.GetCause() == causePlaintext || c.GetCause() == causeForeignTLS:
			return 1
		case c.GetCause() != causeMTLS:
			return 2
		}
		return 3
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(b.GetLastSeen(), a.GetLastSeen()),
		strings.Compare(a.GetSource(), b.GetSource()), strings.Compare(a.GetSpiffeId(), b.GetSpiffeId()),
		strings.Compare(a.GetProtocol(), b.GetProtocol()))
}

// neverObserved returns the registered identities that a policy lets in by
// name of the policy, and that did not come within the window.
func (q *inquiry) neverObserved(reg identity.Registration, set *policy.Set, view ledgerView, since time.Time) []string {
	came := map[string]bool{}
	for _, port := range view.ports {
		for _, v := range port.visitors {
			if v.cause == causeMTLS && !v.last.Before(since) {
				came[v.id] = true
			}
		}
	}
	ports := slices.Sorted(maps.Keys(view.ports))
	if len(ports) == 0 {
		ports = []uint16{0}
	}
	var out []string
	for _, r := range q.regs {
		id := r.ID.String()
		if r.ID == reg.ID || came[id] {
			continue
		}
		came[id] = true
		if slices.ContainsFunc(ports, func(port uint16) bool {
			d := set.Decide(policy.Connection{Peer: r.ID, Port: port})
			return d.Allowed && d.Policy != ""
		}) {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

func milli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}
