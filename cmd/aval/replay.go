// This file holds replay: recorded connections and requests judged anew by
// other policies. It is pure; what is read and printed is elsewhere.

package main

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/policy"
)

// The effects of other policies on a recorded connection or request.
const (
	effectBreaks    = "breaks" // it was let in and would be refused
	effectOpens     = "opens"  // it was refused and would be let in
	effectStays     = "stays"
	effectUndecided = "undecided" // it depends on what was not recorded
)

// maxReplayed bounds the clients and the changes told apart; what is beyond
// is counted together.
const maxReplayed = 50_000

// beyond names the clients that are counted together.
const beyond = "further clients"

// ruling is how a connection was or would be decided.
type ruling struct {
	Verdict    string `json:"verdict"`
	Reason     string `json:"reason"`
	Policy     string `json:"policy,omitempty"`
	Rule       *int   `json:"rule,omitempty"`
	Mode       string `json:"mode,omitempty"`
	ModeSource string `json:"mode_source,omitempty"`
}

// replayed is the connections, or the requests, of one client to one port on
// which other policies have one effect.
type replayed struct {
	Effect    string    `json:"effect"`
	Of        string    `json:"of"`       // connection or request
	Workload  string    `json:"workload"` // registration
	ServerID  string    `json:"server_id"`
	Port      uint16    `json:"port"`
	Client    string    `json:"client"` // SPIFFE ID, or the address of one without
	Transport string    `json:"transport"`
	Count     uint64    `json:"count"`
	First     time.Time `json:"first"`
	Last      time.Time `json:"last"`
	Was       ruling    `json:"was"`
	WouldBe   ruling    `json:"would_be"`
	// Requests are what was asked for most, as "METHOD host/path", with counts.
	Requests []asked `json:"requests,omitempty"`

	targets map[string]uint64
}

// effects counts connections, or requests, by effect.
type effects struct {
	Name      string `json:"name,omitempty"`
	Of        string `json:"of,omitempty"` // connection or request
	Breaks    uint64 `json:"breaks"`
	Opens     uint64 `json:"opens"`
	Stays     uint64 `json:"stays"`
	Undecided uint64 `json:"undecided"`
}

func (e *effects) add(effect string, n uint64) {
	switch effect {
	case effectBreaks:
		e.Breaks += n
	case effectOpens:
		e.Opens += n
	case effectUndecided:
		e.Undecided += n
	default:
		e.Stays += n
	}
}

// replay judges recorded connections by a set of documents.
type replay struct {
	settings policy.Settings
	byID     map[string][]identity.Registration
	byPath   map[string]identity.Registration
	pas      []policy.PeerAuthentication
	aps      []policy.AuthorizationPolicy
	except   []policy.PlaintextException
	now      time.Time              // decides which exceptions hold
	sets     map[string]*policy.Set // by registration
	exempt   map[string]*policy.Exemptions
	bounds   map[boundsKey]*policy.Bounds

	total    effects // of connections
	requests effects
	changes  map[changeKey]*replayed
	clients  map[effectKey]*effects
	policies map[effectKey]*effects
	// undecided counts what depends on something that was not recorded, by
	// what that is.
	undecided map[string]uint64
	// unjudged counts what no policy decided, by reason: the
	// handshake failed, or the workload is not registered any more.
	unjudged map[string]uint64
	lost     uint64
}

// effectKey names what effects are counted for.
type effectKey struct{ name, of string }

// changeKey tells one change from another.
type changeKey struct {
	effect, of, workload, client, transport string
	port                                    uint16
	wasReason, wasPolicy, reason, by        string
}

// newReplay takes all documents. They must be checked: what cannot be read
// denies. Exceptions count that hold now, whenever the connection was.
func newReplay(docs []document.Document, s policy.Settings, now time.Time) (*replay, error) {
	r := &replay{
		settings: s, byID: map[string][]identity.Registration{}, byPath: map[string]identity.Registration{},
		now: now, sets: map[string]*policy.Set{}, exempt: map[string]*policy.Exemptions{}, bounds: map[boundsKey]*policy.Bounds{},
		changes: map[changeKey]*replayed{}, clients: map[effectKey]*effects{}, policies: map[effectKey]*effects{},
		unjudged: map[string]uint64{}, undecided: map[string]uint64{},
	}
	for _, d := range docs {
		if d.Kind() != document.Registration {
			continue
		}
		reg, err := identity.ParseRegistration(d, s.TrustDomain)
		if err != nil {
			return nil, err
		}
		r.byPath[reg.Path()] = reg
		r.byID[reg.ID.String()] = append(r.byID[reg.ID.String()], reg)
	}
	for _, regs := range r.byID {
		slices.SortFunc(regs, func(a, b identity.Registration) int { return cmp.Compare(a.Path(), b.Path()) })
	}
	var err error
	if r.pas, r.aps, err = policy.Load(docs, s); err != nil {
		return nil, err
	}
	if r.except, _, err = policy.LoadExceptions(docs, s); err != nil {
		return nil, err
	}
	// Tokens are not recorded, so that no connection is judged by them; what
	// cannot be read would deny all the same.
	_, _, err = policy.LoadRequestAuthentications(docs, s)
	return r, err
}

// workload returns the registration that a record is about: the one that its
// agent named, else the first of that identity.
func (r *replay) workload(e *audit.Event) (identity.Registration, bool) {
	if reg, ok := r.byPath[e.Workload]; ok && reg.ID.String() == e.ServerID {
		return reg, true
	}
	if regs := r.byID[e.ServerID]; len(regs) > 0 {
		return regs[0], true
	}
	return identity.Registration{}, false
}

// set returns the policies of a workload.
func (r *replay) set(reg identity.Registration) *policy.Set {
	set := r.sets[reg.Path()]
	if set == nil {
		w := policy.Workload{Namespace: reg.Namespace, Labels: reg.Labels}
		set = policy.Compile(r.settings, w, r.pas, r.aps, 0)
		r.sets[reg.Path()] = set
		r.exempt[reg.Path()] = policy.CompileExemptions(r.settings, w, r.except, r.aps, 0)
	}
	return set
}

// decide judges a connection to a workload, exceptions included.
func (r *replay) decide(reg identity.Registration, c policy.Connection) policy.Decision {
	set := r.set(reg)
	d, _ := r.exempt[reg.Path()].Decide(set.Decide(c), c, r.now)
	return d
}

// add judges one record anew. Only the side that took the connection counts,
// so that nothing counts twice.
func (r *replay) add(e *audit.Event) {
	n := max(1, e.Count)
	switch {
	case e.Kind == audit.KindLoss:
		r.lost += e.Lost
		return
	case e.Kind != audit.KindConnection && e.Kind != audit.KindRequest, e.Direction != audit.DirectionInbound || e.Reporter != e.ServerID || e.ServerID == "",
		e.Reason == audit.ReasonPolicyChanged: // it has a record of its beginning
		return
	}
	if reason := notJudged(e); reason != "" {
		r.unjudged[reason] += n
		return
	}
	reg, ok := r.workload(e)
	if !ok {
		r.unjudged["not_registered"] += n
		return
	}
	d, open := r.judge(e, reg)
	if len(open) > 0 {
		for _, what := range open {
			r.undecided[what] += n
		}
		r.tally(e, effectUndecided, "", n)
		return
	}
	would := rulingOf(d)
	if e.Transport == audit.TransportMTLS && d.Mode == policy.Disable {
		// The proxy would offer no TLS, and its client would meet none.
		would = ruling{Verdict: string(audit.VerdictDenied), Reason: "tls_not_offered", Mode: d.Mode.String(), ModeSource: d.ModeSource}
	}
	r.count(e, reg, would, n)
}

// notJudged says why no policy decided about a recorded connection, or "".
func notJudged(e *audit.Event) string {
	if e.Verdict != audit.VerdictDenied {
		return ""
	}
	switch e.Reason {
	case audit.ReasonPolicyDenied, audit.ReasonWrongTrustDomain:
		return ""
	case audit.ReasonPlaintextRefused:
		if e.Mode == policy.Strict.String() {
			return ""
		}
		return "tls_only_port" // its listener takes TLS alone, whatever the mode
	}
	return e.Reason
}

func rulingOf(d policy.Decision) ruling {
	out := ruling{Verdict: string(audit.VerdictDenied), Reason: d.Reason, Policy: d.Policy, ModeSource: d.ModeSource}
	if d.Allowed {
		out.Verdict = string(audit.VerdictAllowed)
	}
	if d.Mode != policy.Unset {
		out.Mode = d.Mode.String()
	}
	if d.Rule >= 0 {
		rule := d.Rule
		out.Rule = &rule
	}
	return out
}

// decider names what decided: a policy, a mode, or that there was none.
func (r ruling) decider() string {
	switch {
	case r.Policy != "":
		return r.Policy
	case r.Reason == policy.ReasonPlaintextRefused || r.Reason == "tls_not_offered":
		if r.ModeSource == "" {
			return "mode " + r.Mode
		}
		return "mode " + r.Mode + " by " + r.ModeSource
	case r.Reason == policy.ReasonWrongTrustDomain:
		return "foreign trust domain"
	case r.Verdict == string(audit.VerdictAllowed):
		return "no ALLOW policy applies"
	}
	return "no ALLOW policy matched"
}

// count enters one judgement.
func (r *replay) count(e *audit.Event, reg identity.Registration, would ruling, n uint64) {
	was := ruling{Verdict: string(audit.VerdictAllowed), Reason: e.Reason, Policy: e.Policy, Rule: e.Rule, Mode: e.Mode, ModeSource: e.ModeSource}
	if e.Verdict == audit.VerdictDenied {
		was.Verdict = string(audit.VerdictDenied)
	}
	effect := effectStays
	switch {
	case was.Verdict != would.Verdict && was.Verdict == string(audit.VerdictAllowed):
		effect = effectBreaks
	case was.Verdict != would.Verdict:
		effect = effectOpens
	}
	client := r.tally(e, effect, would.decider(), n)
	if effect == effectStays {
		return
	}
	key := changeKey{effect, string(e.Kind), reg.Path(), client, e.Transport, e.Port, was.Reason, was.Policy, would.Reason, would.decider()}
	if r.changes[key] == nil && len(r.changes) >= maxReplayed {
		key = changeKey{effect: effect, of: key.of, workload: reg.Path(), client: beyond}
	}
	first := e.Time
	if !e.FirstTime.IsZero() {
		first = e.FirstTime
	}
	c := r.changes[key]
	if c == nil {
		c = &replayed{Effect: effect, Of: key.of, Workload: reg.Path(), ServerID: e.ServerID, Port: key.port, Client: key.client,
			Transport: key.transport, First: first, Last: e.Time, Was: was, WouldBe: would}
		r.changes[key] = c
	}
	c.Count += n
	c.ask(e, n)
	c.First = slices.MinFunc([]time.Time{c.First, first}, time.Time.Compare)
	c.Last = slices.MaxFunc([]time.Time{c.Last, e.Time}, time.Time.Compare)
}

// tally counts an effect for the client, whose name it returns, and for what
// would decide, where that is known.
func (r *replay) tally(e *audit.Event, effect, decider string, n uint64) (client string) {
	of := string(e.Kind)
	if client = e.ClientID; client == "" {
		client = e.Transport + " from " + addrText(e.Source)
	}
	if r.clients[effectKey{client, of}] == nil && len(r.clients) >= maxReplayed {
		client = beyond
	}
	total := &r.total
	if e.Kind == audit.KindRequest {
		total = &r.requests
	}
	total.add(effect, n)
	named(r.clients, effectKey{client, of}).add(effect, n)
	if decider != "" {
		named(r.policies, effectKey{decider, of}).add(effect, n)
	}
	return client
}

func named(m map[effectKey]*effects, key effectKey) *effects {
	e := m[key]
	if e == nil {
		e = &effects{Name: key.name, Of: key.of}
		m[key] = e
	}
	return e
}

// recordedAddr takes the address out of ip:port or ip; what is neither is
// unknown.
func recordedAddr(s string) netip.Addr {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap()
	}
	a, _ := netip.ParseAddr(s)
	return a.Unmap()
}

func addrText(s string) string {
	if a := recordedAddr(s); a.IsValid() {
		return a.String()
	}
	return "?"
}
