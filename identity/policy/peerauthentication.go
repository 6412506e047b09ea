// This file holds PeerAuthentication: parsing, and which of several wins.

package policy

import (
	"strconv"
	"strings"
	"time"

	"github.com/aval-id/aval/identity/document"
)

// PeerAuthentication says which connections to some workloads must be mTLS.
// It is immutable; the zero value is invalid.
type PeerAuthentication struct {
	key      document.Key
	path     string // "ns/name"
	created  time.Time
	selector selector
	mode     Mode
	ports    map[uint16]Mode
	dryRun   bool
}

// Key returns which document this is.
func (p PeerAuthentication) Key() document.Key { return p.key }

// DryRun reports whether the policy is only tried.
func (p PeerAuthentication) DryRun() bool { return p.dryRun }

// Needs returns the EvaluatorVersion that understands the policy.
func (p PeerAuthentication) Needs() int {
	if p.dryRun {
		return requestsVersion
	}
	return 1
}

// appliesTo reports whether the policy is about w, or about all that w is of.
func (p *PeerAuthentication) appliesTo(s Settings, w Workload) bool {
	if p.key.Namespace == s.root() && len(p.selector) == 0 {
		return true
	}
	return p.key.Namespace == w.Namespace && p.selector.matches(w.Labels)
}

// Mode returns the mode that is written for all ports, or Unset.
func (p PeerAuthentication) Mode() Mode { return p.mode }

type rawMTLS struct {
	Mode Mode `json:"mode"`
}

type rawPeerAuthentication struct {
	Selector      *rawSelector       `json:"selector"`
	MTLS          rawMTLS            `json:"mtls"`
	PortLevelMTLS map[string]rawMTLS `json:"portLevelMtls"`
}

// ParsePeerAuthentication parses a document of that kind. Refused, where
// Istio ignores them silently: a selector in the root namespace, and
// portLevelMtls without a selector. The error is a document.Errors with every
// fault.
func ParsePeerAuthentication(d document.Document, s Settings) (PeerAuthentication, []Warning, error) {
	dryRun, errs := checkEnvelope(d, document.PeerAuthentication, s)
	if len(errs) > 0 {
		return PeerAuthentication{}, nil, errs
	}
	var raw rawPeerAuthentication
	if err := d.DecodeSpec(&raw); err != nil {
		return PeerAuthentication{}, nil, err
	}
	sel, errs := raw.Selector.parse(d)
	p := PeerAuthentication{
		key:      d.Key(),
		path:     d.Key().Path(),
		created:  d.Metadata().CreationTimestamp,
		selector: sel,
		mode:     raw.MTLS.Mode,
		dryRun:   dryRun,
	}
	if len(sel) > 0 && p.key.Namespace == s.root() {
		errs = append(errs, d.Errorf("spec.selector", "", "", "a selector in the root namespace %s is not allowed: a policy there covers the whole trust domain; put it into the namespace of the workloads", s.root()))
	}
	if len(sel) == 0 && len(raw.PortLevelMTLS) > 0 {
		errs = append(errs, d.Errorf("spec.portLevelMtls", "", "", "ports need a selector: only a policy for chosen workloads sets modes of ports"))
	}
	if len(raw.PortLevelMTLS) > 0 {
		p.ports = make(map[uint16]Mode, len(raw.PortLevelMTLS))
	}
	for _, text := range sortedKeys(raw.PortLevelMTLS) {
		number, err := parsePort(text)
		if err != nil {
			errs = append(errs, d.Errorf("spec.portLevelMtls."+text, text, "a port from 1 to 65535", "%w", err))
			continue
		}
		p.ports[number] = raw.PortLevelMTLS[text].Mode
	}
	if err := document.Collect(errs); err != nil {
		return PeerAuthentication{}, nil, err
	}
	return p, nil, nil
}

// before reports whether p wins against q on one scope: the one created
// first, then the lower namespace and name. A policy that was never stored
// counts as the youngest.
func (p *PeerAuthentication) before(q *PeerAuthentication) bool {
	if p.created.IsZero() != q.created.IsZero() {
		return q.created.IsZero()
	}
	if c := p.created.Compare(q.created); c != 0 {
		return c < 0
	}
	return p.key.Compare(q.key) < 0
}

// Conflicts returns the policies that are ignored because another one has the
// same scope, each with the winner. Policies with selectors have the same
// scope if they are in one namespace and their selectors are equal; unequal
// selectors that meet on one workload are settled there by the same order.
// Policies on dry run hold no scope, but may find it held.
func Conflicts(pas []PeerAuthentication) map[document.Key]document.Key {
	winners := map[string]*PeerAuthentication{}
	for i := range pas {
		p := &pas[i]
		scope := p.scope()
		if w := winners[scope]; w == nil || w.dryRun && !p.dryRun || w.dryRun == p.dryRun && p.before(w) {
			winners[scope] = p
		}
	}
	ignored := map[document.Key]document.Key{}
	for i := range pas {
		if w := winners[pas[i].scope()]; w.key != pas[i].key && (!pas[i].dryRun || w.before(&pas[i])) {
			ignored[pas[i].key] = w.key
		}
	}
	return ignored
}

// scope is equal for policies that only one of can hold.
func (p *PeerAuthentication) scope() string {
	var b strings.Builder
	b.WriteString(p.key.Namespace)
	for _, key := range sortedKeys(p.selector) {
		b.WriteString("\n" + key + "=" + p.selector[key])
	}
	return b.String()
}

// resolved is a mode and the policy that set it.
type resolved struct {
	mode   Mode
	source string
}

// resolve merges the policies that apply to w: the narrowest scope that is
// set wins, and ports come only from the one policy that wins for the
// workload itself.
func resolve(s Settings, w Workload, pas []PeerAuthentication) (resolved, map[uint16]resolved) {
	var domain, namespace, workload *PeerAuthentication
	for i := range pas {
		p := &pas[i]
		scope := &namespace
		switch {
		case p.key.Namespace == s.root() && len(p.selector) == 0:
			scope = &domain
		case p.key.Namespace != w.Namespace:
			continue
		case len(p.selector) > 0:
			if !p.selector.matches(w.Labels) {
				continue
			}
			scope = &workload
		}
		if *scope == nil || p.before(*scope) {
			*scope = p
		}
	}
	whole := resolved{mode: Permissive}
	for _, p := range []*PeerAuthentication{domain, namespace, workload} {
		if p != nil && p.mode != Unset {
			whole = resolved{mode: p.mode, source: p.path}
		}
	}
	if workload == nil {
		return whole, nil
	}
	ports := make(map[uint16]resolved, len(workload.ports))
	for port, mode := range workload.ports {
		if mode != Unset {
			ports[port] = resolved{mode: mode, source: workload.path}
		}
	}
	return whole, ports
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s != strconv.FormatUint(n, 10) {
		return 0, errNoPort
	}
	return uint16(n), nil
}
