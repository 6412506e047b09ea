// This file holds the aggregation of records: what is alike within a window of
// time is counted in one record beyond a number, and nothing is dropped for
// it.

package proxy

import (
	"net/netip"

	"github.com/aval-id/aval/audit"
)

const (
	// refusalsPerSecond is how many alike refusals are recorded one by one
	// before the rest of the second is counted in one record; the ends of
	// connections have the same number.
	refusalsPerSecond = 20
	// allowedPerSecond is the same of connections that were let in.
	allowedPerSecond = 200
	// tallyKeys bounds the groups told apart within a second. Beyond it
	// records are counted by kind, verdict, reason, direction and transport.
	tallyKeys = 4096
)

// alike is what records have in common that are counted together. The
// dialling side's port is not part of it.
type alike struct {
	kind                 audit.Kind
	verdict              audit.Verdict
	reason               audit.Reason
	direction, transport string
	client, server       string
	protocol             string
	source               netip.Addr
	port                 uint16
	generation           uint64
	policy, audit        string
	rule                 int // -1 where none decided
	trial                trial
	asked                asked // of a request
}

// trial is the verdict of the policies on dry run.
type trial struct {
	verdict audit.Verdict
	policy  string
}

// alikeOf returns what e may have in common with others.
func alikeOf(e *audit.Event, source netip.Addr) alike {
	key := alike{kind: e.Kind, verdict: e.Verdict, reason: e.Reason, direction: e.Direction, transport: e.Transport,
		client: e.ClientID, server: e.ServerID, protocol: e.Protocol, source: source, port: e.Port, generation: e.Generation,
		policy: e.Policy, audit: e.AuditPolicy, rule: -1, trial: trial{e.DryRun, e.DryRunPolicy}}
	if e.Rule != nil {
		key.rule = *e.Rule
	}
	return key
}

// coarse is what is left of a key where too many are told apart.
func (a alike) coarse() alike {
	return alike{kind: a.kind, verdict: a.verdict, reason: a.reason, direction: a.direction, transport: a.transport}
}

// tally counts the records of one group within the running window.
type tally struct {
	seen   int
	merged *audit.Event // stands for those beyond the number
}

// oneByOne is how many alike records of a second are not counted together.
func oneByOne(e *audit.Event) int {
	if e.Kind == audit.KindConnection && e.Verdict != audit.VerdictDenied {
		return allowedPerSecond
	}
	return refusalsPerSecond
}

// merge counts e in with its like and reports whether it is thereby recorded.
// The caller holds mu.
func (r *reporter) merge(e *audit.Event, source netip.Addr) bool {
	if s := e.Time.Unix(); s != r.second {
		r.settle()
		r.second = s
	}
	key := alikeOf(e, source)
	t := r.tallies[key]
	if t == nil {
		if len(r.tallies) >= tallyKeys {
			key = key.coarse()
			t = r.tallies[key]
		}
		if t == nil {
			t = new(tally)
			r.tallies[key] = t
		}
	}
	t.seen++
	switch {
	case t.seen <= oneByOne(e):
		return false
	case e.Kind == audit.KindRequest:
		r.requests.merge(e, source)
	case t.merged == nil:
		t.merged = e
		e.Count, e.FirstTime = max(1, e.Count), e.Time
		e.Source = ""
		if key.source.IsValid() {
			e.Source = key.source.String()
		}
	default:
		join(t.merged, e)
	}
	return true
}

// join counts e in with m: times, counts, bytes and durations add up, and
// what is not the same in both is absent.
func join(m, e *audit.Event) {
	m.Time = e.Time
	m.Count += max(1, e.Count)
	m.BytesIn, m.BytesOut, m.DurationMS = m.BytesIn+e.BytesIn, m.BytesOut+e.BytesOut, m.DurationMS+e.DurationMS
	for _, field := range [...]struct {
		into *string
		from string
	}{
		{&m.Direction, e.Direction}, {&m.Transport, e.Transport}, {&m.ClientID, e.ClientID}, {&m.ServerID, e.ServerID},
		{&m.ClientSerial, e.ClientSerial}, {&m.ServerSerial, e.ServerSerial}, {&m.TLSVersion, e.TLSVersion},
		{&m.Group, e.Group}, {&m.ALPN, e.ALPN}, {&m.SNI, e.SNI}, {&m.Protocol, e.Protocol}, {&m.Destination, e.Destination},
		{&m.Policy, e.Policy}, {&m.Mode, e.Mode}, {&m.ModeSource, e.ModeSource}, {&m.Exception, e.Exception}, {&m.Detail, e.Detail},
		{&m.AuditPolicy, e.AuditPolicy}, {&m.ClientProcess, e.ClientProcess},
	} {
		if *field.into != field.from {
			*field.into = ""
		}
	}
	if m.Port != e.Port {
		m.Port = 0
	}
	if m.Generation != e.Generation {
		m.Generation, m.Policies = 0, nil
	}
	m.Resumed, m.ByRequest = m.Resumed && e.Resumed, m.ByRequest && e.ByRequest
	m.Rule = common(m.Rule, e.Rule)
	if m.DryRun != e.DryRun || m.DryRunReason != e.DryRunReason || m.DryRunPolicy != e.DryRunPolicy {
		m.DryRun, m.DryRunReason, m.DryRunPolicy = "", "", ""
	}
	m.DryRunRule = common(m.DryRunRule, e.DryRunRule)
}

// common returns the rule that both name, or nil.
func common(a, b *int) *int {
	if a == nil || b == nil || *a != *b {
		return nil
	}
	return a
}
