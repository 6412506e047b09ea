// This file holds what is said of a client that is not mTLS: what it probably
// is, and what to do.

package server

import (
	"fmt"
	"strings"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
)

// advise says what is known of a visitor and what would mend it. Both are
// empty where nothing needs mending.
func (q *inquiry) advise(reg identity.Registration, view ledgerView, v seen) (known, fix string) {
	if v.cause == causeMTLS {
		return "", ""
	}
	where, ids := q.whereabouts(view, v)
	what := map[string]string{
		audit.ProtocolHTTP: "speaks HTTP", audit.ProtocolProbe: "asks for health as probes do",
		audit.ProtocolTLS: "speaks TLS of its own", audit.ProtocolSilent: "says nothing, as TCP health checks do",
	}[v.protocol]
	if v.unnamed {
		where = "several clients beyond what the ledger tells apart"
	}
	known = strings.Join(nonEmpty(where, what), "; ")
	if !v.admitted && (v.cause == causePlaintext || v.cause == causeForeignTLS) {
		return known, "it is refused already; " + plaintextFix(reg, v, ids)
	}
	switch v.cause {
	case causePlaintext, causeForeignTLS:
		return known, plaintextFix(reg, v, ids)
	}
	return known, failureFix(v)
}

// whereabouts says what is known of a visitor's address.
func (q *inquiry) whereabouts(view ledgerView, v seen) (string, []string) {
	switch {
	case !v.source.IsValid():
		return "", nil
	case v.source.IsLoopback() && len(view.nodes) == 1:
		return "a process on " + view.nodes[0], nil
	case v.source.IsLoopback():
		return "a process on the workload's own machine", nil
	}
	ids := q.ledger.at(v.source)
	if len(ids) == 0 {
		return "no identity was seen at this address", nil
	}
	return "at the address of " + strings.Join(ids, ", "), ids
}

func plaintextFix(reg identity.Registration, v seen, ids []string) string {
	switch {
	case v.protocol == audit.ProtocolProbe:
		return "let the probe ask a port of its own that stays PERMISSIVE (portLevelMtls), or the application on loopback"
	case v.cause == causeForeignTLS:
		return "let it call through an Aval proxy, or with its SVID and without a foreign server name: its own TLS is passed through and proves no identity"
	case len(ids) > 0:
		return fmt.Sprintf("what runs there has an identity: let it call an outbound listener of its proxy with id: %s", reg.ID)
	}
	return "register the process there and put a proxy before it, or let it use its SVID; else exempt the port (portLevelMtls)"
}

// failureFix says what to do about a handshake that fails in any mode.
func failureFix(v seen) string {
	switch v.cause {
	case audit.ReasonUnknownAuthority:
		return "its certificate is of another authority: give it an SVID of this trust domain"
	case audit.ReasonExpired:
		return "its certificate has ended: see why it is not renewed, with aval check on its machine"
	case audit.ReasonNotYetValid:
		return "its certificate is not valid yet: compare the clocks, with aval check on both machines"
	case audit.ReasonNoClientCertificate:
		return "it speaks TLS without a certificate: let it present its SVID"
	case audit.ReasonNotAnSVID:
		return "its certificate is no X.509-SVID: let it present its SVID"
	case audit.ReasonWrongTrustDomain:
		return "its trust domain is admitted by no ALLOW rule that writes it out"
	case audit.ReasonPolicyDenied:
		return "the policies refuse it: admit it, or leave it refused"
	case audit.ReasonTLSVersion:
		return "it speaks TLS below 1.3: update its TLS library"
	case audit.ReasonRevoked:
		return "its credential was revoked: leave it refused"
	}
	return ""
}

func nonEmpty(texts ...string) []string {
	var out []string
	for _, s := range texts {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}
