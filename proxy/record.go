// This file holds the making of records, and the table that turns a failure
// into its reason.

package proxy

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/mtls"
	"github.com/aval-id/aval/identity/policy"
)

// unproven marks an identity that was claimed by a certificate before the
// peer had proven that it holds the key.
const unproven = "possession not proven"

// maxConsulted bounds the policies that a record names, so that it stays
// below the log's limit. The one that decided is named apart.
const maxConsulted = 200

// event starts a record of a connection.
func (p *Proxy) event(now time.Time, direction string, verdict audit.Verdict, reason string) *audit.Event {
	e := &audit.Event{Time: now, Kind: audit.KindConnection, Verdict: verdict, Reason: reason, Direction: direction}
	if s := p.state.Load(); s != nil {
		if direction == audit.DirectionInbound {
			e.ServerID = s.id().String()
		} else {
			e.ClientID, e.ClientSerial = s.id().String(), s.serial()
		}
	}
	return e
}

// record counts the record and queues it, or has it wait for its client's
// process to be found.
func (p *Proxy) record(e *audit.Event, source netip.AddrPort) {
	p.metrics.connections.WithLabelValues(e.Direction, e.Transport, string(e.Verdict), e.Reason).Inc()
	destination, _ := netip.ParseAddrPort(e.Destination)
	if !p.callers.offer(e, source, destination) {
		p.reporter.add(e, source.Addr())
	}
}

// decided adds how the policies came to their decision.
func decided(e *audit.Event, d policy.Decision) {
	if d.Mode != policy.Unset {
		e.Mode, e.ModeSource = d.Mode.String(), d.ModeSource
	}
	e.Policy, e.Policies, e.Generation = d.Policy, d.Consulted[:min(len(d.Consulted), maxConsulted)], d.Generation
	e.Rule, e.AuditPolicy = position(d.Rule), d.Audit
	if t := d.Trial; t.Ran {
		e.DryRun, e.DryRunReason, e.DryRunPolicy, e.DryRunRule = verdictOf(t.Allowed), t.Reason, t.Policy, position(t.Rule)
	}
}

func verdictOf(allowed bool) audit.Verdict {
	if allowed {
		return audit.VerdictAllowed
	}
	return audit.VerdictDenied
}

// position is a rule's as records have it: nil where none decided.
func position(rule int) *int {
	if rule < 0 {
		return nil
	}
	return &rule
}

// negotiated adds what a completed handshake agreed on.
func negotiated(e *audit.Event, cs tls.ConnectionState) {
	e.Transport = audit.TransportMTLS
	e.TLSVersion, e.Group = mtls.VersionName(cs.Version), mtls.GroupName(cs.CurveID)
	e.ALPN, e.Resumed = cs.NegotiatedProtocol, cs.DidResume
}

// reasonOf names why a handshake failed.
func reasonOf(err error) string {
	var timeout net.Error
	switch text := err.Error(); {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return audit.ReasonHandshakeTimeout
	case isEnd(err), errors.Is(err, io.ErrUnexpectedEOF):
		return audit.ReasonReset
	case strings.Contains(text, "protocol version"), strings.Contains(text, "unsupported versions"):
		return audit.ReasonTLSVersion
	case strings.Contains(text, "application protocol"):
		return audit.ReasonSNIOrALPN
	}
	if r, ok := errors.AsType[*mtls.Rejection](err); ok && slices.Contains(audit.Reasons(), r.Reason) {
		return r.Reason
	}
	return audit.ReasonHandshakeFailed
}

// isEnd reports whether the connection is over, in whatever way.
func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || isReset(err)
}

// refusedByPeer reports whether err is an alert that the peer sent.
func refusedByPeer(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}

// brief shortens what a stranger may have written into an error or a name.
func brief(s string) string {
	const limit = 256
	if len(s) > limit {
		return s[:limit]
	}
	return s
}

// addrOf returns an address with IPv4 in IPv6 undone.
func addrOf(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
