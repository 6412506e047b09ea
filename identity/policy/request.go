// This file holds what is judged, a Connection or a Request on it, and the
// Decision about it.

package policy

import (
	"net/netip"

	"github.com/aval-id/aval/identity"
)

// The reasons of a Decision. Records carry them, so they do not change.
const (
	ReasonAllowed          = "allowed"            // an authenticated peer that the policies let in
	ReasonPlaintextAllowed = "plaintext_allowed"  // a peer without identity that mode and policies let in
	ReasonPolicyDenied     = "policy_denied"      // a DENY matched, or no ALLOW did
	ReasonPlaintextRefused = "plaintext_refused"  // the mode demands mTLS
	ReasonWrongTrustDomain = "wrong_trust_domain" // a foreign peer that no ALLOW rule admits by its domain
	ReasonTokenInvalid     = "token_invalid"      // a token that no RequestAuthentication takes
)

// Connection is what is known of a connection to the workload. Missing
// addresses fail closed where a policy asks for them.
type Connection struct {
	Peer        identity.ID // authenticated by mTLS; zero in plaintext
	Source      netip.Addr  // of the direct peer
	Destination netip.Addr  // the workload's own address
	Port        uint16      // the workload's own port
	SNI         string      // server name of the ClientHello, or ""
	// Remote is the client's address where the direct peer only forwards for
	// it: from PROXY protocol, or from an X-Forwarded-For header of a trusted
	// hop. The zero value means that the direct peer is the client.
	Remote netip.Addr
}

// Request is what is known of one request, or of a connection that carries
// none that the proxy understands. The caller must not change it while it is
// judged; a Decision keeps nothing of it.
type Request struct {
	Connection
	// HTTP is nil where the connection is not HTTP, or not known to be. Fields
	// of policies that only HTTP has are then dropped: in ALLOW with the whole
	// rule, in DENY and AUDIT alone.
	HTTP *HTTP
	// JWT is nil where the request has no token. A token that is not valid must
	// have ended the request before.
	JWT *JWT
}

// HTTP is the part of a request that policies look at, in the canonical form
// that is forwarded: see CanonicalHost and CanonicalPath.
type HTTP struct {
	Method string // as sent; methods have case (RFC 9110 §9.1)
	Host   string // without port
	Path   string // without query
	// Header returns the value of a header whatever the case of its name,
	// values of repeated ones joined with ",". It is called once for each
	// header name that a policy asks for, and must not keep state between
	// calls. Nil means no headers.
	Header func(name string) (value string, ok bool)
}

// JWT is a token that was verified (RFC 7519).
type JWT struct {
	Issuer    string   // iss
	Subject   string   // sub
	Audiences []string // aud
	Presenter string   // azp
	// Claims holds all claims as encoding/json decodes them into any. Texts
	// and lists of texts are matched, objects are walked into; anything else
	// matches nothing.
	Claims map[string]any
}

// Decision is the verdict about a connection and how it came about. It holds
// no reference to the connection.
type Decision struct {
	Allowed bool
	// Reason is one of the Reason constants.
	Reason string
	// Policy is the "ns/name" of the AuthorizationPolicy that decided, "" where
	// none did: the mode refused, no ALLOW policy matched or none is there.
	Policy string
	// Rule is the index of the rule that decided, -1 where none did.
	Rule int
	// Mode is the mode in force on the port, and ModeSource the "ns/name" of
	// the PeerAuthentication that set it, "" for the default.
	Mode       Mode
	ModeSource string
	// Consulted is the "ns/name" of every AuthorizationPolicy that applies to
	// the workload, DENY before ALLOW before AUDIT. It is shared: the caller
	// must not change it.
	Consulted []string
	// Audit is the "ns/name" of the first AUDIT policy that matched, or "".
	Audit string
	// Trial is what the policies would say together with those on dry run.
	Trial Trial
	// Generation is that of the Set.
	Generation uint64
}

// Trial is the combined verdict of the enforced policies and of those on dry
// run. It is recorded and never enforced.
type Trial struct {
	// Ran reports whether a policy on dry run applies to the workload. Without
	// one the other fields are zero.
	Ran     bool
	Allowed bool
	Reason  string // as in Decision
	Policy  string // as in Decision
	Rule    int    // as in Decision
	// Mode is the mode that would be in force, set by ModeSource.
	Mode       Mode
	ModeSource string
}
