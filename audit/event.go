// This file holds Event, the one typed record, and its validation.

package audit

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// MaxEventBytes bounds an event's JSON. A longer one is refused.
const MaxEventBytes = 64 << 10

// Event is one thing that happened. It is a flat JSON object in which zero
// fields are absent; which fields a kind fills is up to who reports it.
// Strings that are not UTF-8 are stored with U+FFFD in place of the bad
// bytes. The published schema is Schema.
type Event struct {
	Time    time.Time `json:"time"`              // when it happened, stored in UTC; set by the caller
	Kind    Kind      `json:"kind"`              // what happened
	Verdict Verdict   `json:"verdict,omitempty"` // how it ended
	Reason  string    `json:"reason,omitempty"`  // why; for a connection, one of Reasons

	ClientID string `json:"client_id,omitempty"` // SPIFFE ID of the peer that dialled
	ServerID string `json:"server_id,omitempty"` // SPIFFE ID of the peer that accepted
	SPIFFEID string `json:"spiffe_id,omitempty"` // the identity that the event is about
	Serial   string `json:"serial,omitempty"`    // certificate serial, lower-case hex
	Node     string `json:"node,omitempty"`      // SPIFFE ID or name of the node concerned
	Policy   string `json:"policy,omitempty"`    // ns/name of the policy that decided
	Mode     string `json:"mode,omitempty"`      // DISABLE, PERMISSIVE or STRICT

	// Issuance and authorities.
	NotBefore    time.Time `json:"not_before,omitzero"`
	NotAfter     time.Time `json:"not_after,omitzero"`
	LeafSHA256   string    `json:"leaf_sha256,omitempty"`  // hex SHA-256 of the certificate's DER
	Issuer       string    `json:"issuer_ski,omitempty"`   // hex subject key identifier of the issuer
	KeySHA256    string    `json:"key_sha256,omitempty"`   // hex SHA-256 of the public key's PKIX DER
	Registration string    `json:"registration,omitempty"` // ns/name
	DNSNames     []string  `json:"dns_names,omitempty"`
	Role         string    `json:"role,omitempty"` // workload, node or server

	// Administration.
	Actor          string `json:"actor,omitempty"`           // who asked: "uid=0 pid=4242"
	Document       string `json:"document,omitempty"`        // "Kind ns/name"
	DocumentSHA256 string `json:"document_sha256,omitempty"` // hex SHA-256 of the stored document
	Revision       uint64 `json:"revision,omitempty"`        // store revision of the change; of an issuance, that of its registration
	Epoch          uint64 `json:"epoch,omitempty"`           // store epoch of the change
	Rollover       string `json:"rollover,omitempty"`        // the state that a rotation's step led to, as JSON text
	Detail         string `json:"detail,omitempty"`          // one line for a person; never a secret

	// Connections.
	Direction     string    `json:"direction,omitempty"` // inbound or outbound
	Transport     string    `json:"transport,omitempty"` // mtls, plaintext or tls_passthrough
	ClientSerial  string    `json:"client_serial,omitempty"`
	ServerSerial  string    `json:"server_serial,omitempty"`
	TLSVersion    string    `json:"tls_version,omitempty"` // "1.3"
	Group         string    `json:"group,omitempty"`       // key-exchange group, "X25519MLKEM768"
	Resumed       bool      `json:"resumed,omitempty"`
	ALPN          string    `json:"alpn,omitempty"`
	SNI           string    `json:"sni,omitempty"`
	Protocol      string    `json:"protocol,omitempty"`       // what a client without identity spoke, by its first bytes
	Source        string    `json:"source,omitempty"`         // ip:port of the dialling side
	Destination   string    `json:"destination,omitempty"`    // ip:port that was dialled or served
	Remote        string    `json:"remote,omitempty"`         // ip:port for which a trusted load balancer dialled
	Port          uint16    `json:"port,omitempty"`           // the port that policies match
	Rule          *int      `json:"rule,omitempty"`           // position in Policy of the rule that decided, from 0
	ModeSource    string    `json:"mode_source,omitempty"`    // ns/name of the document that set Mode
	Exception     string    `json:"exception,omitempty"`      // ns/name of the PlaintextException that let plaintext in
	AuditPolicy   string    `json:"audit_policy,omitempty"`   // ns/name of the first AUDIT policy that matched
	DryRun        Verdict   `json:"dry_run,omitempty"`        // allowed or denied: the verdict if policies on dry run were enforced; absent without any
	DryRunReason  string    `json:"dry_run_reason,omitempty"` // of that verdict, one of Reasons
	DryRunPolicy  string    `json:"dry_run_policy,omitempty"` // ns/name of the policy that would decide
	DryRunRule    *int      `json:"dry_run_rule,omitempty"`   // position in DryRunPolicy of the rule that would decide, from 0
	ByRequest     bool      `json:"by_request,omitempty"`     // of a connection: its requests are judged, and recorded, by themselves
	ClientProcess string    `json:"client_process,omitempty"` // of a client without identity on the reporter's machine: "uid=1000 unit=x.service exe=/usr/bin/x"
	Policies      []string  `json:"policies,omitempty"`       // ns/name of each policy consulted
	Generation    uint64    `json:"generation,omitempty"`     // of the policy set
	BytesIn       uint64    `json:"bytes_in,omitempty"`       // of the application, from the dialling side; of all Count together
	BytesOut      uint64    `json:"bytes_out,omitempty"`      // of the application, to the dialling side; of all Count together
	DurationMS    int64     `json:"duration_ms,omitempty"`    // from the verdict to the end, in milliseconds; of all Count together
	Method        string    `json:"method,omitempty"`         // of a request
	Host          string    `json:"host,omitempty"`           // of a request, canonical, without port
	Path          string    `json:"path,omitempty"`           // of a request, canonical, never with its query
	Folded        []string  `json:"folded,omitempty"`         // what is not told of the requests counted here: path, host, client
	Reporter      string    `json:"reporter,omitempty"`       // SPIFFE ID of the reporting proxy, stamped by its agent
	Workload      string    `json:"workload,omitempty"`       // name of the registration or process behind the reporter
	Count         uint64    `json:"count,omitempty"`          // how many alike this record stands for; absent means one
	FirstTime     time.Time `json:"first_time,omitzero"`      // when the first of Count happened
	Lost          uint64    `json:"lost,omitempty"`           // records dropped
	KeptFrom      uint64    `json:"kept_from,omitempty"`      // entries of this log below this index were dropped for the quota
}

// Validate reports the first field that is outside its closed list, or a
// missing time. It does not judge whether the fields fit the kind.
func (e Event) Validate() error {
	switch {
	case e.Time.IsZero():
		return errors.New("event: time is missing")
	case !storable(e.Time, e.NotBefore, e.NotAfter, e.FirstTime):
		return errors.New("event: a time does not fit RFC 3339 in UTC")
	case e.Kind == "":
		return errors.New("event: kind is missing")
	case !oneOf(e.Kind, Kinds()...):
		return fmt.Errorf("event: kind %q is not known", e.Kind)
	case !oneOf(e.Verdict, Verdicts()...):
		return closedList("verdict", string(e.Verdict), Verdicts())
	case !oneOf(e.Direction, DirectionInbound, DirectionOutbound):
		return closedList("direction", e.Direction, []string{DirectionInbound, DirectionOutbound})
	case !oneOf(e.Transport, TransportMTLS, TransportPlaintext, TransportTLSPassthrough):
		return closedList("transport", e.Transport, []string{TransportMTLS, TransportPlaintext, TransportTLSPassthrough})
	case !oneOf(e.Role, RoleWorkload, RoleNode, RoleServer):
		return closedList("role", e.Role, []string{RoleWorkload, RoleNode, RoleServer})
	case !oneOf(e.Mode, Modes()...):
		return closedList("mode", e.Mode, Modes())
	case e.Kind == KindConnection && !slices.Contains(Reasons(), e.Reason):
		return fmt.Errorf("event: reason %q of a connection is not in the closed list", e.Reason)
	case e.Kind == KindConnectionClosed && !slices.Contains(Endings(), e.Reason):
		return fmt.Errorf("event: reason %q of a connection's end is not in the closed list", e.Reason)
	case e.Kind == KindRequest && !slices.Contains(Reasons(), e.Reason):
		return fmt.Errorf("event: reason %q of a request is not in the closed list", e.Reason)
	case !oneOf(e.Protocol, Protocols()...):
		return closedList("protocol", e.Protocol, Protocols())
	case !oneOf(e.DryRun, VerdictAllowed, VerdictDenied):
		return closedList("dry_run", string(e.DryRun), []Verdict{VerdictAllowed, VerdictDenied})
	case e.DryRun != "" && !slices.Contains(Reasons(), e.DryRunReason):
		return fmt.Errorf("event: dry_run_reason %q is not in the closed list of reasons", e.DryRunReason)
	case strings.Contains(e.Path, "?"):
		return errors.New("event: path has a query, which is never recorded")
	}
	for _, f := range e.Folded {
		if !slices.Contains(Foldings(), f) {
			return closedList("folded", f, Foldings())
		}
	}
	return nil
}

// storable reports whether each time is zero or can be read again once it is
// written in UTC. The year in its own zone says too little: at -01:00 the last
// hour of the year 9999 is in the year 10000.
func storable(times ...time.Time) bool {
	for _, t := range times {
		if year := t.UTC().Year(); !t.IsZero() && (year < 1 || year > 9999) {
			return false
		}
	}
	return true
}

// closedList words the refusal of a value outside its list.
func closedList[T ~string](field, found string, allowed []T) error {
	names := make([]string, len(allowed))
	for i, a := range allowed {
		names[i] = string(a)
	}
	return fmt.Errorf("event: %s %q is none of %s", field, found, strings.Join(names, ", "))
}

// Entry is an event with its place in the log. Its JSON is one flat object
// with the index first.
type Entry struct {
	Index int64 `json:"index"`
	Event
}
