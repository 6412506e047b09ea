// This file holds the records of requests: which of them become one, and what
// it says.

package proxy

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/policy"
	"github.com/aval-id/aval/proxy/request"
)

// RequestRecords says which requests become records.
type RequestRecords string

// The values of Records.Requests.
const (
	// RequestsAll takes every request that policies judged.
	RequestsAll RequestRecords = "all"
	// RequestsNotable takes those that were refused, that an AUDIT policy
	// marks, or that the dry run judges otherwise.
	RequestsNotable RequestRecords = "notable"
	// RequestsOff takes none: nothing says later what was asked for.
	RequestsOff RequestRecords = "off"
)

// DefaultRecordsEvery is the documented default of Records.Every.
const DefaultRecordsEvery = 10 * time.Second

// Records says what of requests goes into the connections log.
type Records struct {
	// Requests is all, notable or off; empty means all.
	Requests RequestRecords `json:"requests"`
	// Every is the window in which alike requests are one record, from a second
	// to ten minutes. Zero means DefaultRecordsEvery.
	Every time.Duration `json:"every"`
}

func (r Records) withDefaults() (Records, error) {
	orDefault(&r.Requests, RequestsAll)
	orDefault(&r.Every, DefaultRecordsEvery)
	switch r.Requests {
	case RequestsAll, RequestsNotable, RequestsOff:
	default:
		return Records{}, fmt.Errorf("requests: %q is none of %s, %s, %s", r.Requests, RequestsAll, RequestsNotable, RequestsOff)
	}
	if r.Every < time.Second || r.Every > 10*time.Minute {
		return Records{}, fmt.Errorf("every: %s is not from 1s to 10m", r.Every)
	}
	return r, nil
}

// Refused records a request that the policies refused. Alike ones are counted
// in one record.
func (h house) Refused(r request.Refusal) {
	if h.p.cfg.Records.Requests == RequestsOff {
		return
	}
	reason := r.Decision.Reason
	if r.Late {
		reason = audit.ReasonPolicyChanged
	}
	e := h.p.requestEvent(time.Now(), &r.Peer, &r.Decision, audit.VerdictDenied, reason)
	e.ClientSerial = r.Peer.Serial
	e.Method, e.Host, e.Path = r.Method, r.Host, r.Path
	switch {
	case len(e.Host) > maxHost || len(e.Method) > maxMethod:
		e.Method, e.Host, e.Path, e.Folded = "", "", "", foldHost.names()
	case len(e.Path) > maxPath:
		e.Path, e.Folded = "", foldPath.names()
	}
	// Substrings would keep whole headers.
	e.Method, e.Host, e.Path = strings.Clone(e.Method), strings.Clone(e.Host), strings.Clone(e.Path)
	if r.Token != nil {
		e.Detail = brief(r.Token.Error())
	}
	h.p.reporter.add(e, r.Peer.Connection.Source)
}

// Allowed counts a request that the policies let through.
func (h house) Allowed(peer *request.Peer, r *policy.HTTP, d *policy.Decision) {
	switch h.p.cfg.Records.Requests {
	case RequestsOff:
		return
	case RequestsNotable:
		if d.Audit == "" && (!d.Trial.Ran || d.Trial.Allowed) {
			return
		}
	}
	c, now := &peer.Connection, time.Now()
	key := alike{kind: audit.KindRequest, verdict: audit.VerdictAllowed, reason: d.Reason, direction: audit.DirectionInbound,
		transport: transportOf(peer), client: peer.ID, server: peer.Server, source: c.Source, port: c.Port,
		generation: d.Generation, policy: d.Policy, audit: d.Audit, rule: d.Rule,
		asked: asked{method: r.Method, host: r.Host, path: r.Path, sni: c.SNI, destination: c.Destination, remote: remoteOf(c)}}
	if d.Trial.Ran {
		key.trial = trial{verdictOf(d.Trial.Allowed), d.Trial.Policy}
	}
	h.p.reporter.count(key, now, func() *audit.Event {
		return h.p.requestEvent(now, peer, d, audit.VerdictAllowed, d.Reason)
	})
}

// requestEvent is the record of a request but for what was asked.
func (p *Proxy) requestEvent(now time.Time, peer *request.Peer, d *policy.Decision, verdict audit.Verdict, reason string) *audit.Event {
	c := &peer.Connection
	e := &audit.Event{Time: now, Kind: audit.KindRequest, Verdict: verdict, Reason: reason, Direction: audit.DirectionInbound,
		Transport: transportOf(peer), ClientID: peer.ID, ServerID: peer.Server,
		Source: c.Source.String(), Destination: addressText(c.Destination), Remote: addressText(remoteOf(c)),
		Port: c.Port, SNI: brief(c.SNI)}
	decided(e, *d)
	return e
}

func transportOf(peer *request.Peer) string {
	if peer.ID == "" {
		return audit.TransportPlaintext
	}
	return audit.TransportMTLS
}

// remoteOf is the client's address where another than the direct peer's.
func remoteOf(c *policy.Connection) netip.Addr {
	if c.Remote == c.Source {
		return netip.Addr{}
	}
	return c.Remote
}

func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
