// This file holds PlaintextException: plaintext that a strict mode lets in
// for a reason, from somewhere, until a day.

package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/aval-id/aval/identity/document"
)

// maxExceptionBlocks bounds the sources of one exception.
const maxExceptionBlocks = 256

// maxReasonBytes bounds its reason.
const maxReasonBytes = 1024

// PlaintextException makes STRICT mean PERMISSIVE to clients from some
// addresses on some ports of some workloads until it ends: what they send in
// plaintext is then the AuthorizationPolicies' decision. It never opens what
// they refuse. It is immutable; the zero value is invalid.
type PlaintextException struct {
	key      document.Key
	selector selector
	ports    []uint16 // none means all
	from     []netip.Prefix
	reason   string
	until    time.Time
}

// Key returns which document this is.
func (x PlaintextException) Key() document.Key { return x.key }

// Needs returns the EvaluatorVersion that understands the exception.
func (x PlaintextException) Needs() int { return requestsVersion }

// Reason returns why it was made, in its author's words.
func (x PlaintextException) Reason() string { return x.reason }

// Until returns the first moment at which it does not hold any more.
func (x PlaintextException) Until() time.Time { return x.until }

// Holds reports whether it has not ended.
func (x PlaintextException) Holds(now time.Time) bool { return now.Before(x.until) }

// AppliesTo reports whether it is for a workload.
func (x PlaintextException) AppliesTo(w Workload) bool {
	return x.key.Namespace == w.Namespace && x.selector.matches(w.Labels)
}

// Covers reports whether it is for a client's address on a port.
func (x PlaintextException) Covers(source netip.Addr, port uint16) bool {
	source = source.Unmap().WithZone("")
	return (len(x.ports) == 0 || slices.Contains(x.ports, port)) &&
		slices.ContainsFunc(x.from, func(p netip.Prefix) bool { return p.Contains(source) })
}

type rawPlaintextException struct {
	Selector *rawSelector `json:"selector"`
	Ports    []uint16     `json:"ports"`
	From     []string     `json:"from"`
	Reason   string       `json:"reason"`
	Until    time.Time    `json:"until"`
}

// ParsePlaintextException parses a document of that kind. Sources, a reason
// and an end are demanded, and the root namespace is refused: an exception
// belongs to the workloads of one namespace. The error is a document.Errors
// with every fault.
func ParsePlaintextException(d document.Document, s Settings) (PlaintextException, []Warning, error) {
	if errs := checkUndecided(d, document.PlaintextException, "an exception holds or is not there: try it with a simulation"); len(errs) > 0 {
		return PlaintextException{}, nil, errs
	}
	var raw rawPlaintextException
	if err := d.DecodeSpec(&raw); err != nil {
		return PlaintextException{}, nil, err
	}
	sel, errs := raw.Selector.parse(d)
	x := PlaintextException{key: d.Key(), selector: sel, ports: slices.Clone(raw.Ports), reason: strings.TrimSpace(raw.Reason), until: raw.Until}
	if x.key.Namespace == s.root() {
		errs = append(errs, d.Errorf("metadata.namespace", s.root(), "the namespace of the workloads", "an exception is for the workloads of one namespace, never for the whole trust domain"))
	}
	if i := slices.Index(x.ports, 0); i >= 0 {
		errs = append(errs, d.Errorf(fmt.Sprintf("spec.ports[%d]", i), "0", "a port from 1 to 65535", "is no port"))
	}
	var warnings []Warning
	for i, text := range raw.From {
		field := fmt.Sprintf("spec.from[%d]", i)
		block, err := parseSource(text)
		if err != nil {
			errs = append(errs, d.Errorf(field, text, "an address or a CIDR such as 10.0.0.0/8", "%w", err))
			continue
		}
		if block.Bits() == 0 {
			warnings = append(warnings, warning(d, field, "%s is every address: the exception covers all clients", text))
		}
		x.from = append(x.from, block)
	}
	switch {
	case len(raw.From) == 0:
		errs = append(errs, d.Errorf("spec.from", "", "addresses or CIDRs", "is missing: say whom the exception is for"))
	case len(raw.From) > maxExceptionBlocks:
		errs = append(errs, d.Errorf("spec.from", fmt.Sprint(len(raw.From)), fmt.Sprintf("at most %d", maxExceptionBlocks), "has too many entries"))
	}
	switch {
	case x.reason == "":
		errs = append(errs, d.Errorf("spec.reason", "", "a text", "is missing: say why plaintext has to come in"))
	case len(x.reason) > maxReasonBytes:
		errs = append(errs, d.Errorf("spec.reason", "", fmt.Sprintf("at most %d bytes", maxReasonBytes), "is too long"))
	}
	if x.until.IsZero() {
		errs = append(errs, d.Errorf("spec.until", "", "a time such as 2030-01-31T00:00:00Z", "is missing: an exception ends"))
	}
	if err := document.Collect(errs); err != nil {
		return PlaintextException{}, nil, err
	}
	return x, warnings, nil
}

// checkUndecided checks the envelope of what has no dry run.
func checkUndecided(d document.Document, kind document.Kind, noDryRun string) document.Errors {
	var errs document.Errors
	if d.Kind() != kind {
		errs = append(errs, d.Errorf("kind", d.Kind(), kind, "is another kind"))
	}
	m := d.Metadata()
	if m.Namespace == "" {
		errs = append(errs, d.Errorf("metadata.namespace", "", "a DNS label", "is missing"))
	}
	if value, ok := m.Annotations[DryRunAnnotation]; ok && value != "false" {
		errs = append(errs, d.Errorf("metadata.annotations."+DryRunAnnotation, value, "false", "%s", noDryRun))
	}
	return errs
}

// parseSource takes a CIDR, or an address as the block that holds it alone.
func parseSource(text string) (netip.Prefix, error) {
	if !strings.Contains(text, "/") {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is no address", text)
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%q is no CIDR", text)
	case p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%q is an IPv4 block in IPv6: write it as IPv4", text)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%q has bits beyond its length; the block is %s", text, p.Masked())
	}
	return p, nil
}

// LoadExceptions parses the exceptions among docs and leaves other kinds out.
// One that cannot be read is returned as a policy that denies, like any other
// document that cannot be read; the error says why.
func LoadExceptions(docs []document.Document, s Settings) ([]PlaintextException, []AuthorizationPolicy, error) {
	var xs []PlaintextException
	var unreadable []AuthorizationPolicy
	var errs []error
	for _, d := range docs {
		if d.Kind() != document.PlaintextException {
			continue
		}
		x, _, err := ParsePlaintextException(d, s)
		if err != nil {
			unreadable = append(unreadable, Unreadable(d.Key(), EvaluatorVersion+1))
			errs = append(errs, fmt.Errorf("%s: %w", d.Key(), err))
			continue
		}
		xs = append(xs, x)
	}
	return xs, unreadable, errors.Join(errs...)
}

// Exemptions are the exceptions for one workload, compiled with its policies.
// It is immutable and safe for concurrent use; nil exempts nobody.
type Exemptions struct {
	list    []PlaintextException // the order of keys
	relaxed *Set                 // the workload's policies under PERMISSIVE
}

// CompileExemptions selects the exceptions for w. The policies are those that
// Compile was given. It returns nil where there are none.
func CompileExemptions(s Settings, w Workload, xs []PlaintextException, aps []AuthorizationPolicy, generation uint64) *Exemptions {
	var e Exemptions
	for _, x := range xs {
		if x.AppliesTo(w) {
			e.list = append(e.list, x)
		}
	}
	if len(e.list) == 0 {
		return nil
	}
	slices.SortFunc(e.list, func(a, b PlaintextException) int { return a.key.Compare(b.key) })
	e.relaxed = Compile(s, w, nil, aps, generation)
	return &e
}

// Covering returns the "ns/name" of the first exception that holds now for a
// client's address on a port, or "".
func (e *Exemptions) Covering(source netip.Addr, port uint16, now time.Time) string {
	if e == nil {
		return ""
	}
	for i := range e.list {
		if e.list[i].Holds(now) && e.list[i].Covers(source, port) {
			return e.list[i].key.Path()
		}
	}
	return ""
}

// Decide takes the Set's decision about a connection and returns it as it is,
// unless the mode alone refused plaintext and an exception holds: then the
// policies decide, and the exception's "ns/name" is returned where they let
// it in. Mode and its source stay those in force.
func (e *Exemptions) Decide(d Decision, c Connection, now time.Time) (Decision, string) {
	if e == nil || d.Allowed || d.Reason != ReasonPlaintextRefused {
		return d, ""
	}
	by := e.Covering(c.Source, c.Port, now)
	if by == "" {
		return d, ""
	}
	relaxed := e.relaxed.Decide(c)
	relaxed.Mode, relaxed.ModeSource = d.Mode, d.ModeSource
	if !relaxed.Allowed {
		by = ""
	}
	return relaxed, by
}

// EndedBetween reports whether an exception held at a moment and does not at
// a later one.
func (e *Exemptions) EndedBetween(from, to time.Time) bool {
	return e != nil && slices.ContainsFunc(e.list, func(x PlaintextException) bool { return x.Holds(from) && !x.Holds(to) })
}
