// This file holds one case of policy test: what is written, and what the
// evaluator says about it.

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/policy"
)

// policyCase is one case as written.
type policyCase struct {
	ID             string            `json:"id"`
	Comment        string            `json:"comment"` // for readers
	Policies       []json.RawMessage `json:"policies"`
	Workload       caseWorkload      `json:"workload"`
	TrustedDomains []string          `json:"trusted_domains"`
	Request        caseRequest       `json:"request"`
	Want           string            `json:"want"`
	WantPolicy     *string           `json:"want_policy"`
	WantMode       *string           `json:"want_mode"`
	WantDryRun     *string           `json:"want_dry_run"`
}

type caseWorkload struct {
	Namespace     string            `json:"namespace"`
	Labels        map[string]string `json:"labels"`
	TrustDomain   string            `json:"trust_domain"`
	RootNamespace string            `json:"root_namespace"`
	Default       string            `json:"authorization_default"`
}

type caseRequest struct {
	Peer            *string        `json:"peer"`
	SourceIP        string         `json:"source_ip"`
	RemoteIP        string         `json:"remote_ip"`
	DestinationIP   string         `json:"destination_ip"`
	DestinationPort uint16         `json:"destination_port"`
	SNI             string         `json:"sni"`
	HTTP            *caseHTTP      `json:"http"`
	JWT             map[string]any `json:"jwt"`
}

type caseHTTP struct {
	Method  string                `json:"method"`
	Host    string                `json:"host"`
	Path    string                `json:"path"`
	Headers map[string]caseValues `json:"headers"`
}

// caseValues is the value of a header, or several.
type caseValues string

func (v *caseValues) UnmarshalJSON(data []byte) error {
	var many []string
	if err := json.Unmarshal(data, &many); err == nil {
		*v = caseValues(strings.Join(many, ","))
		return nil
	}
	return json.Unmarshal(data, (*string)(v))
}

// verdict is what the evaluator says about a case.
type verdict struct {
	Verdict    string   `json:"verdict"`
	Reason     string   `json:"reason"`
	Policy     string   `json:"policy,omitempty"`
	Rule       *int     `json:"rule,omitempty"`
	Mode       string   `json:"mode"`
	ModeSource string   `json:"mode_source,omitempty"`
	DryRun     string   `json:"dry_run,omitempty"`
	DryRunBy   string   `json:"dry_run_policy,omitempty"`
	Audit      string   `json:"audit,omitempty"`
	also       []string // policies that would have decided the same
}

const (
	wordAllow = "ALLOW"
	wordDeny  = "DENY"
	// reasonUnknownAuthority and reasonBadRequest are those of a proxy that
	// ends a connection or a request before it asks the policies.
	reasonUnknownAuthority = "unknown_authority"
	reasonBadRequest       = "bad_request"
)

func word(allowed bool) string {
	if allowed {
		return wordAllow
	}
	return wordDeny
}

// parseCase reads one case strictly, save for further fields at its top,
// which other tools may want.
func parseCase(data []byte) (policyCase, error) {
	var pc policyCase
	var top map[string]json.RawMessage
	if err := json.Unmarshal(data, &top); err != nil {
		return pc, fmt.Errorf("case: %w", err)
	}
	_ = json.Unmarshal(top["id"], &pc.ID) // for messages; read again below
	known := []string{"id", "comment", "policies", "workload", "trusted_domains", "request", "want", "want_policy", "want_mode", "want_dry_run"}
	further := false
	for name := range top {
		if slices.Contains(known, name) {
			continue
		}
		if near := document.Nearest(name, known); near != "" || strings.HasPrefix(name, "want") {
			return pc, fmt.Errorf("case: unknown field %q; there are %s", name, strings.Join(known, ", "))
		}
		delete(top, name)
		further = true
	}
	if further {
		var err error
		if data, err = json.Marshal(top); err != nil {
			return pc, fmt.Errorf("case: %w", err)
		}
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&pc); err != nil {
		return pc, fmt.Errorf("case: %w", err)
	}
	return pc, pc.check()
}

func (pc *policyCase) check() error {
	verdictWord := func(s string) bool { return s == wordAllow || s == wordDeny }
	switch {
	case !verdictWord(pc.Want):
		return fmt.Errorf("want: %q is none of ALLOW, DENY", pc.Want)
	case pc.WantDryRun != nil && !verdictWord(*pc.WantDryRun):
		return fmt.Errorf("want_dry_run: %q is none of ALLOW, DENY", *pc.WantDryRun)
	case pc.Workload.Namespace == "":
		return errors.New("workload.namespace: is missing")
	}
	if pc.WantMode != nil {
		if _, err := policy.ParseMode(*pc.WantMode); err != nil {
			return fmt.Errorf("want_mode: %w", err)
		}
	}
	return nil
}

// settings returns what the case says of its trust domain.
func (pc *policyCase) settings() (policy.Settings, error) {
	s := policy.Settings{RootNamespace: pc.Workload.RootNamespace, Requests: true}
	name := pc.Workload.TrustDomain
	if name == "" {
		name = istioTrustDomain
	}
	var err error
	if s.TrustDomain, err = identity.ParseTrustDomain(name); err != nil {
		return s, fmt.Errorf("workload.trust_domain: %w", err)
	}
	switch pc.Workload.Default {
	case "", "allow":
	case "deny":
		s.DefaultDeny = true
	default:
		return s, fmt.Errorf("workload.authorization_default: %q is none of allow, deny", pc.Workload.Default)
	}
	return s, nil
}

// request returns what the case asks about. Bad says why a proxy refuses the
// request before any policy.
func (pc *policyCase) request() (r policy.Request, bad string, err error) {
	w := pc.Request
	if w.Peer != nil && *w.Peer != "" {
		if r.Peer, err = identity.ParseID(*w.Peer); err != nil {
			return r, "", fmt.Errorf("request.peer: %w", err)
		}
	}
	for _, a := range []struct {
		name, text string
		into       *netip.Addr
	}{{"source_ip", w.SourceIP, &r.Source}, {"remote_ip", w.RemoteIP, &r.Remote}, {"destination_ip", w.DestinationIP, &r.Destination}} {
		if a.text == "" {
			continue
		}
		if *a.into, err = netip.ParseAddr(a.text); err != nil {
			return r, "", fmt.Errorf("request.%s: %w", a.name, err)
		}
	}
	r.Port, r.SNI = w.DestinationPort, w.SNI
	if w.HTTP != nil {
		if r.HTTP, err = w.HTTP.request(); err != nil {
			bad = err.Error()
		}
	}
	if w.JWT != nil {
		r.JWT = policy.NewJWT(w.JWT)
	}
	return r, bad, nil
}

// request brings an HTTP request into the form that a proxy forwards.
func (h *caseHTTP) request() (*policy.HTTP, error) {
	out := &policy.HTTP{Method: h.Method, Host: h.Host, Path: h.Path}
	if out.Method == "" {
		out.Method = "GET"
	}
	if out.Path == "" {
		out.Path = "/"
	}
	headers := make(map[string]string, len(h.Headers))
	for name, value := range h.Headers {
		headers[strings.ToLower(name)] = string(value)
	}
	out.Header = func(name string) (string, bool) { v, ok := headers[name]; return v, ok }
	if host := headers["host"]; out.Host == "" {
		out.Host = host
	}
	var err error
	if out.Path, err = policy.CanonicalPath(out.Path); err != nil {
		return out, err
	}
	if out.Host != "" {
		out.Host, err = policy.CanonicalHost(out.Host)
	}
	return out, err
}

// judge decides a case as the proxy would. What admission refuses among its
// documents denies, as it would there; refused says so.
func (pc *policyCase) judge() (v verdict, refused []string, err error) {
	s, err := pc.settings()
	if err != nil {
		return v, nil, err
	}
	r, bad, err := pc.request()
	if err != nil {
		return v, nil, err
	}
	docs, refused, err := pc.documents(s)
	if err != nil {
		return v, nil, err
	}
	set := docs.compile(s, policy.Workload{Namespace: pc.Workload.Namespace, Labels: pc.Workload.Labels})
	// A case without any RequestAuthentication has its token from elsewhere.
	valid := !docs.authenticate || authenticate(set, &r)
	d := set.DecideRequest(&r)
	v = newVerdict(d)
	switch {
	case d.Mode != policy.Disable && !r.Peer.IsZero() && r.Peer.TrustDomain() != s.TrustDomain && !slices.Contains(pc.TrustedDomains, r.Peer.TrustDomain().String()):
		v.deny(reasonUnknownAuthority)
	case bad != "":
		v.deny(reasonBadRequest + ": " + bad)
	case !valid:
		v.deny(policy.ReasonTokenInvalid)
	default:
		action := policy.Deny
		if d.Allowed {
			action = policy.Allow
		}
		for _, m := range set.Matching(&r, false) {
			if m.Action == action && d.Policy != "" {
				v.also = append(v.also, m.Policy)
			}
		}
	}
	return v, refused, nil
}

// newVerdict words a decision.
func newVerdict(d policy.Decision) verdict {
	v := verdict{Verdict: word(d.Allowed), Reason: d.Reason, Policy: d.Policy, Mode: d.Mode.String(), ModeSource: d.ModeSource, Audit: d.Audit}
	if d.Rule >= 0 {
		v.Rule = &d.Rule
	}
	if d.Trial.Ran {
		v.DryRun, v.DryRunBy = word(d.Trial.Allowed), d.Trial.Policy
		if v.DryRunBy == "" && d.Trial.Reason == policy.ReasonPlaintextRefused {
			v.DryRunBy = d.Trial.ModeSource
		}
	}
	return v
}

// deny makes a verdict one that no policy decides.
func (v *verdict) deny(reason string) {
	v.Verdict, v.Reason, v.Policy, v.Rule, v.also = wordDeny, reason, "", nil, nil
	if v.DryRun != "" {
		v.DryRun, v.DryRunBy = wordDeny, ""
	}
}

// caseDocuments is the policies of a case, parsed.
type caseDocuments struct {
	modes        []policy.PeerAuthentication
	policies     []policy.AuthorizationPolicy
	tokens       []policy.RequestAuthentication
	authenticate bool // there is a RequestAuthentication, for this workload or another
}

func (c caseDocuments) compile(s policy.Settings, w policy.Workload) *policy.Set {
	return policy.Compile(s, w, c.modes, c.policies, 0).Authenticating(policy.CompileAuthentication(s, w, c.tokens, nil))
}

// documents parses the policies of a case, ours and Istio's.
func (pc *policyCase) documents(s policy.Settings) (out caseDocuments, refused []string, err error) {
	for i, raw := range pc.Policies {
		one, err := importDocument("", raw, pc.Workload.Namespace, s)
		if err != nil {
			return out, nil, fmt.Errorf("policies[%d]: %w", i, err)
		}
		if one.skipped {
			continue
		}
		d := one.doc
		var fault error
		switch d.Kind() {
		case document.PeerAuthentication:
			var p policy.PeerAuthentication
			if p, _, fault = policy.ParsePeerAuthentication(d, s); fault == nil {
				out.modes = append(out.modes, p)
			}
		case document.AuthorizationPolicy:
			var p policy.AuthorizationPolicy
			if p, _, fault = policy.ParseAuthorizationPolicy(d, s); fault == nil {
				out.policies = append(out.policies, p)
			}
		case document.RequestAuthentication:
			out.authenticate = true
			var p policy.RequestAuthentication
			if p, fault = parseTokens(d, one.istio, s); fault == nil {
				out.tokens = append(out.tokens, p)
			}
		}
		if fault != nil {
			refused = append(refused, faultsOf(fault)...)
			modes, policies, _ := policy.Load([]document.Document{d}, s)
			_, denying, _ := policy.LoadRequestAuthentications([]document.Document{d}, s)
			out.modes, out.policies = append(out.modes, modes...), slices.Concat(out.policies, policies, denying)
		}
	}
	return out, refused, nil
}

// faultsOf returns the faults of an error one by one.
func faultsOf(err error) []string {
	if many, ok := errors.AsType[document.Errors](err); ok {
		var out []string
		for _, e := range many {
			out = append(out, e.Error())
		}
		return out
	}
	return []string{err.Error()}
}

// mismatch says what of a verdict is not as wanted, or "".
func (pc *policyCase) mismatch(v verdict) string {
	var wrong []string
	differs := func(what, want, got string) {
		if want != got {
			wrong = append(wrong, fmt.Sprintf("%s is %s, not %s", what, orDash(got), orDash(want)))
		}
	}
	differs("verdict", pc.Want, v.Verdict)
	if pc.WantPolicy != nil && !slices.Contains(v.also, *pc.WantPolicy) {
		differs("policy", *pc.WantPolicy, v.Policy)
	}
	if pc.WantMode != nil {
		differs("mode", *pc.WantMode, v.Mode)
	}
	if pc.WantDryRun != nil {
		got := v.DryRun
		if got == "" {
			got = v.Verdict
		}
		differs("dry run", *pc.WantDryRun, got)
	}
	return strings.Join(wrong, "; ")
}
