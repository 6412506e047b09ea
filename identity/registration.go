// This file holds Registration: which processes on which nodes get which
// SPIFFE ID.

package identity

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aval-id/aval/identity/document"
)

// KindRegistration is the document kind of a Registration.
const KindRegistration = "Registration"

// NodeName is the node attribute that holds the node's name.
const NodeName = "node.name"

// workloadAttributes are what workload attestation can find out.
var workloadAttributes = []string{"unix.gid", "unix.path", "unix.sha256", "unix.supplementary_gid", "unix.uid"}

const (
	maxDNSNames   = 64
	maxHintBytes  = 128
	maxValueBytes = 4096
)

// Registration gives an ID to the processes that its Workload selector
// matches, on the nodes that its Node selector matches. The zero value is
// invalid. It is immutable.
type Registration struct {
	Namespace string
	Name      string
	Labels    map[string]string // what policies select workloads by

	ID       ID
	Node     Selector      // empty matches any node
	Workload Selector      // never empty
	TTL      time.Duration // zero means the server's default
	DNSNames []string      // DNS SANs of the SVID
	Hint     string        // Workload API hint
}

// Path returns namespace/name, by which nodes and records name it.
func (r Registration) Path() string { return r.Namespace + "/" + r.Name }

// IsZero reports whether r is the invalid zero value.
func (r Registration) IsZero() bool { return r.ID.IsZero() }

type registrationSpec struct {
	ID       string                     `json:"id"`
	Node     map[string]document.Values `json:"node"`
	Workload map[string]document.Values `json:"workload"`
	TTL      time.Duration              `json:"ttl"`
	DNSNames []string                   `json:"dnsNames"`
	Hint     string                     `json:"hint"`
}

// ParseRegistration reads a Registration document for a trust domain. Its
// error is a document.Errors with file, line and field of every fault. TTL
// bounds are the server's and are not checked here.
func ParseRegistration(d document.Document, td TrustDomain) (Registration, error) {
	if d.Kind() != KindRegistration {
		return Registration{}, d.Errorf("kind", d.Kind(), KindRegistration, "wrong kind")
	}
	var spec registrationSpec
	if err := d.DecodeSpec(&spec); err != nil {
		return Registration{}, err
	}
	var faults []error
	fault := func(field, found, allowed, format string, args ...any) {
		faults = append(faults, d.Errorf(field, found, allowed, format, args...))
	}
	r := Registration{
		Namespace: d.Metadata().Namespace, Name: d.Metadata().Name, Labels: maps.Clone(d.Metadata().Labels),
		Node: toSelector(spec.Node), Workload: toSelector(spec.Workload),
		TTL: spec.TTL, DNSNames: slices.Clone(spec.DNSNames), Hint: spec.Hint,
	}
	const idForm = "a path under the server's trust domain, such as /ns/shop/sa/web"
	id, err := parseRegistrationID(spec.ID, td)
	switch {
	case err != nil:
		fault("spec.id", spec.ID, idForm, "%w", err)
	case id.Role() != RoleWorkload:
		fault("spec.id", spec.ID, idForm, "paths under %s/ belong to Aval itself", ReservedPath)
	}
	r.ID = id
	faults = append(faults, checkSelectors(d, r)...)
	if spec.TTL < 0 {
		fault("spec.ttl", spec.TTL.String(), "a positive duration such as 4h", "wrong value")
	}
	if len(r.DNSNames) > maxDNSNames {
		fault("spec.dnsNames", fmt.Sprint(len(r.DNSNames)), fmt.Sprintf("at most %d names", maxDNSNames), "too many names")
	}
	for i, name := range r.DNSNames {
		if !validDNSName(name) {
			fault(fmt.Sprintf("spec.dnsNames[%d]", i), name, "a lower-case DNS name such as web.shop, or *.web.shop", "wrong value")
		}
	}
	if len(r.Hint) > maxHintBytes {
		fault("spec.hint", "", fmt.Sprintf("at most %d bytes", maxHintBytes), "too long")
	}
	if err := document.Collect(faults...); err != nil {
		return Registration{}, err
	}
	return r, nil
}

// checkSelectors returns the faults of both selectors, in order.
func checkSelectors(d document.Document, r Registration) []error {
	var faults []error
	if len(r.Workload) == 0 {
		faults = append(faults, d.Errorf("spec.workload", "", "at least one of "+strings.Join(workloadAttributes, ", "),
			"a registration without a workload selector would match every process"))
	}
	for _, name := range slices.Sorted(maps.Keys(r.Workload)) {
		field := "spec.workload." + name
		if !slices.Contains(workloadAttributes, name) {
			err := d.Errorf(field, name, strings.Join(workloadAttributes, ", "), "unknown attribute")
			if near := document.Nearest(name, workloadAttributes); near != "" {
				err.Hint = "did you mean " + near + "?"
			}
			faults = append(faults, err)
			continue
		}
		for _, v := range r.Workload[name] {
			if allowed := checkWorkloadValue(name, v); allowed != "" {
				faults = append(faults, d.Errorf(field, v, allowed, "wrong value"))
			}
		}
	}
	faults = append(faults, checkValues(d, "spec.node", r.Node)...)
	return append(faults, checkValues(d, "spec.workload", r.Workload)...)
}

// checkValues refuses empty lists, which never match, and empty or overlong
// values.
func checkValues(d document.Document, field string, s Selector) []error {
	var faults []error
	for _, name := range slices.Sorted(maps.Keys(s)) {
		if len(s[name]) == 0 {
			faults = append(faults, d.Errorf(field+"."+name, "[]", "a value or a list of values", "an empty list never matches"))
		}
		for _, v := range s[name] {
			if v == "" || len(v) > maxValueBytes {
				faults = append(faults, d.Errorf(field+"."+name, v, fmt.Sprintf("1 to %d bytes", maxValueBytes), "wrong value"))
			}
		}
	}
	return faults
}

// parseRegistrationID takes a path, or a whole SPIFFE ID of td.
func parseRegistrationID(s string, td TrustDomain) (ID, error) {
	if !strings.Contains(s, "://") {
		return td.NewID(s)
	}
	id, err := ParseID(s)
	if err != nil {
		return ID{}, err
	}
	if id.TrustDomain() != td {
		return ID{}, fmt.Errorf("trust domain %s is not the server's, %s", id.TrustDomain(), td)
	}
	if id.Path() == "" {
		return ID{}, fmt.Errorf("path is empty")
	}
	return id, nil
}

func toSelector(m map[string]document.Values) Selector {
	s := make(Selector, len(m))
	for name, values := range m {
		s[name] = slices.Clone([]string(values))
	}
	return s
}

// checkWorkloadValue returns what is allowed where v is not.
func checkWorkloadValue(name, v string) string {
	switch name {
	case "unix.uid", "unix.gid", "unix.supplementary_gid":
		if !isDecimal(v) {
			return "a number without sign or leading zeros"
		}
	case "unix.path":
		if !strings.HasPrefix(v, "/") {
			return "an absolute path"
		}
	case "unix.sha256":
		if len(v) != 64 || strings.Trim(v, "0123456789abcdef") != "" {
			return "64 lower-case hex digits"
		}
	}
	return ""
}

func isDecimal(v string) bool {
	return v != "" && len(v) <= 10 && strings.Trim(v, "0123456789") == "" && (v == "0" || v[0] != '0')
}

func validDNSName(name string) bool {
	name = strings.TrimPrefix(name, "*.")
	if name == "" || len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}
