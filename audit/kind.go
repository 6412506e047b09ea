// This file holds the closed lists an event draws from: kinds, verdicts,
// directions, transports, roles and the reasons of a connection.

package audit

import "slices"

// Kind says what happened. The list is closed: an event of another kind is
// refused by Event.Validate.
type Kind string

// The kinds of the authority log, then those of the connections log, then
// the one that both may hold.
const (
	KindIssuance         Kind = "issuance"          // a certificate was signed
	KindNodeAttested     Kind = "node_attested"     // a node proved itself for the first time or anew
	KindNodeRenewed      Kind = "node_renewed"      // a node's credential was renewed
	KindNodeEvicted      Kind = "node_evicted"      // a node was shut out by an operator
	KindTokenCreated     Kind = "token_created"     // a join token was made
	KindDocumentApplied  Kind = "document_applied"  // a document was created or changed
	KindDocumentDeleted  Kind = "document_deleted"  // a document was removed
	KindAuthorityCreated Kind = "authority_created" // a root or an intermediate came into being
	KindAuthorityRenewed Kind = "authority_renewed" // an intermediate was replaced in time
	KindRotation         Kind = "rotation"          // a rotation went one step, or was forced
	KindRevocation       Kind = "revocation"        // certificates were revoked, or a revocation was lifted or ended
	KindRefused          Kind = "refused"           // the authority said no: bad token, bad CSR, ID not allowed
	KindServerStarted    Kind = "server_started"    // a server opened its log
	KindStoreRestored    Kind = "store_restored"    // the store was replaced by a backup
	KindBackup           Kind = "backup"            // a backup was taken
	KindSession          Kind = "session"           // a second stream of one node appeared
	KindIssuerKeys       Kind = "issuer_keys"       // the keys of an issuer of tokens were replaced

	KindConnection       Kind = "connection"        // a handshake, a plaintext connection, or a refusal before either
	KindConnectionClosed Kind = "connection_closed" // a connection that was let in has ended: its bytes and its duration
	KindRequest          Kind = "request"           // requests that policies judged by themselves, and that were alike

	KindLoss Kind = "loss" // records were dropped; Lost counts them
)

// Kinds returns the closed list of kinds in a fixed order.
func Kinds() []Kind {
	return []Kind{
		KindIssuance, KindNodeAttested, KindNodeRenewed, KindNodeEvicted, KindTokenCreated,
		KindDocumentApplied, KindDocumentDeleted, KindAuthorityCreated, KindAuthorityRenewed,
		KindRotation, KindRevocation, KindRefused, KindServerStarted, KindStoreRestored, KindBackup, KindSession, KindIssuerKeys,
		KindConnection, KindConnectionClosed, KindRequest, KindLoss,
	}
}

// Reported reports whether a proxy may report events of the kind, and a node
// pass them on.
func (k Kind) Reported() bool {
	switch k {
	case KindConnection, KindConnectionClosed, KindRequest, KindLoss:
		return true
	default:
		return false
	}
}

// administrative reports whether the kind may still be written from the
// reserve once the disk is full: acts that an operator needs in order to
// get out of trouble, and the account of losses. Issuance and attestation
// are not among them.
func (k Kind) administrative() bool {
	switch k {
	case KindNodeEvicted, KindTokenCreated, KindDocumentApplied, KindDocumentDeleted,
		KindAuthorityCreated, KindAuthorityRenewed, KindRotation, KindRevocation, KindServerStarted, KindStoreRestored,
		KindBackup, KindLoss:
		return true
	default:
		return false
	}
}

// Verdict says how it ended.
type Verdict string

// The verdicts. Allowed and denied answer a request; done and failed close
// an act of the system's own.
const (
	VerdictAllowed Verdict = "allowed"
	VerdictDenied  Verdict = "denied"
	VerdictDone    Verdict = "done"
	VerdictFailed  Verdict = "failed"
)

// Verdicts returns the closed list of verdicts.
func Verdicts() []Verdict {
	return []Verdict{VerdictAllowed, VerdictDenied, VerdictDone, VerdictFailed}
}

// Values of Event.Direction.
const (
	DirectionInbound  = "inbound"  // the reporter accepted the connection for its workload
	DirectionOutbound = "outbound" // the reporter dialled for its workload
)

// Values of Event.Transport.
const (
	TransportMTLS           = "mtls"            // terminated as mutual TLS
	TransportPlaintext      = "plaintext"       // no TLS at all
	TransportTLSPassthrough = "tls_passthrough" // the application's own TLS, peer unknown
)

// Values of Event.Role.
const (
	RoleWorkload = "workload"
	RoleNode     = "node"
	RoleServer   = "server"
)

// Reason is why a connection ended as its verdict says. It is an alias, as
// other kinds of event carry free text in the same field.
type Reason = string

// The closed list of reasons of a connection.
const (
	ReasonAllowed             Reason = "allowed"               // authenticated and authorised
	ReasonPlaintextAllowed    Reason = "plaintext_allowed"     // plaintext, and the mode and the policies let it
	ReasonNoClientCertificate Reason = "no_client_certificate" // the peer offered no certificate
	ReasonUnknownAuthority    Reason = "unknown_authority"     // the chain leads to no root of the bundle
	ReasonExpired             Reason = "expired"               // past NotAfter
	ReasonNotYetValid         Reason = "not_yet_valid"         // before NotBefore
	ReasonRevoked             Reason = "revoked"               // on a deny list
	ReasonWrongTrustDomain    Reason = "wrong_trust_domain"    // a trust domain that is not admitted here
	ReasonIDMismatch          Reason = "id_mismatch"           // authenticated, and not the ID that is required
	ReasonNotAnSVID           Reason = "not_an_svid"           // a certificate, but no X.509-SVID leaf
	ReasonPolicyDenied        Reason = "policy_denied"         // authenticated, and the policies say no
	ReasonPlaintextRefused    Reason = "plaintext_refused"     // plaintext where the mode is strict
	ReasonTLSVersion          Reason = "tls_version"           // below TLS 1.3
	ReasonHandshakeTimeout    Reason = "handshake_timeout"     // the handshake's deadline passed
	ReasonSNIOrALPN           Reason = "sni_or_alpn"           // a name or protocol that is not served
	ReasonLimit               Reason = "limit"                 // over a limit of connections, handshakes, memory or time
	ReasonReset               Reason = "reset"                 // the peer went away
	ReasonUpstreamUnreachable Reason = "upstream_unreachable"  // the far end took no connection
	ReasonPolicyChanged       Reason = "policy_changed"        // was allowed, and no longer is
	ReasonNoSnapshot          Reason = "no_snapshot"           // no complete snapshot of bundle and policies yet
	ReasonHandshakeFailed     Reason = "handshake_failed"      // TLS failed in another way
	ReasonShuttingDown        Reason = "shutting_down"         // the proxy is draining
	ReasonIdentityWithdrawn   Reason = "identity_withdrawn"    // the agent no longer grants the proxy its own identity
	ReasonProxyProtocol       Reason = "proxy_protocol"        // a PROXY protocol header is missing, wrong, or not this source's to send
	ReasonLoop                Reason = "loop"                  // handed to a proxy that is its own destination
	ReasonTokenInvalid        Reason = "token_invalid"         // a request whose token no RequestAuthentication takes
)

// Reasons returns the closed list of reasons of a connection.
func Reasons() []Reason {
	return []Reason{
		ReasonAllowed, ReasonPlaintextAllowed, ReasonNoClientCertificate, ReasonUnknownAuthority,
		ReasonExpired, ReasonNotYetValid, ReasonRevoked, ReasonWrongTrustDomain, ReasonIDMismatch,
		ReasonNotAnSVID, ReasonPolicyDenied, ReasonPlaintextRefused, ReasonTLSVersion,
		ReasonHandshakeTimeout, ReasonSNIOrALPN, ReasonLimit, ReasonReset,
		ReasonUpstreamUnreachable, ReasonPolicyChanged, ReasonNoSnapshot, ReasonHandshakeFailed,
		ReasonShuttingDown, ReasonIdentityWithdrawn, ReasonProxyProtocol, ReasonLoop,
		ReasonTokenInvalid,
	}
}

// ReasonClosed ends a connection in order: both sides had said all.
const ReasonClosed Reason = "closed"

// Endings returns the closed list of reasons of a connection's end: closed,
// or what cut it off.
func Endings() []Reason {
	return []Reason{
		ReasonClosed, ReasonReset, ReasonPolicyChanged, ReasonShuttingDown, ReasonExpired,
		ReasonRevoked, ReasonLimit, ReasonIdentityWithdrawn,
	}
}

// Values of Event.Protocol.
const (
	ProtocolHTTP   = "http"         // a request of HTTP/1.x, or the preface of HTTP/2
	ProtocolProbe  = "health_probe" // HTTP as load balancers and kubelets ask for health
	ProtocolTLS    = "tls"          // the client's own TLS
	ProtocolOther  = "other"        // bytes of another kind
	ProtocolSilent = "silent"       // the client sent nothing
)

// Protocols returns the closed list of Event.Protocol.
func Protocols() []string {
	return []string{ProtocolHTTP, ProtocolProbe, ProtocolTLS, ProtocolOther, ProtocolSilent}
}

// Values of Event.Folded: what is not told of the requests that a record
// counts, because they differed in more of it than is told apart.
const (
	FoldedPath   = "path"   // not the path
	FoldedHost   = "host"   // neither method nor host
	FoldedClient = "client" // not the client
)

// Foldings returns the closed list of Event.Folded.
func Foldings() []string { return []string{FoldedPath, FoldedHost, FoldedClient} }

// Modes returns the closed list of Event.Mode.
func Modes() []string { return []string{"DISABLE", "PERMISSIVE", "STRICT"} }

// oneOf reports whether v is empty or in the list.
func oneOf[T ~string](v T, list ...T) bool { return v == "" || slices.Contains(list, v) }
