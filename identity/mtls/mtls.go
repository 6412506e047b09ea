// Package mtls makes TLS 1.3 configurations from live credentials and decides
// whether a peer's certificate chain is an X.509-SVID that the bundle of its
// own trust domain vouches for.
//
// Verification and authorization run in VerifyConnection, which a resumed
// session cannot skip, and session tickets are off besides. Policies are the
// caller's: it hands in a function that sees the verified peer. The package
// stands on the ground floor.
package mtls

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aval-id/aval/identity"
)

// ALPN is the protocol name by which Aval's own clients mark a connection as
// meant for a proxy.
const ALPN = "aval/1"

// Source gives the credentials of the moment. It returns nil, or credentials
// without an SVID, while there are none. It is safe for concurrent use and
// never blocks.
type Source interface {
	Credentials() *identity.Credentials
}

// Fixed is a Source that never changes.
type Fixed struct{ C *identity.Credentials }

// Credentials returns the fixed credentials.
func (f Fixed) Credentials() *identity.Credentials { return f.C }

// Peer is a verified peer. In VerifyConnection the peer's possession of its
// key is not yet proven: crypto/tls checks CertificateVerify afterwards. Only
// a completed handshake proves it.
type Peer struct {
	ID        identity.ID
	Serial    string
	NotBefore time.Time // of the leaf
	NotAfter  time.Time // the earliest of its chain
	Issuers   string    // of the chain that was presented, as identity.Signers prints them
}

// Denied says why the peer's certificate is revoked, "" where it is not.
func (p Peer) Denied(d *identity.Denials) string {
	return d.Denies(p.ID, p.Serial, p.NotBefore, p.Issuers)
}

// Authorize decides whether a verified peer may connect. A Rejection it
// returns is passed on as it is; any other error becomes a policy_denied one.
// A nil Authorize lets every verified peer pass.
type Authorize func(Peer, tls.ConnectionState) error

// ServerConfig returns the configuration of a listener that presents src's
// SVID and admits only verified peers that authorize accepts. Now is time.Now
// except in tests; v must not be nil. The returned config refuses TLS below
// 1.3, keeps the standard library's key-exchange groups (the hybrid
// post-quantum one first), and issues no session tickets.
func ServerConfig(src Source, v *Verifier, authorize Authorize) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		// The peer's chain is verified in VerifyConnection, which also says
		// why a peer without a certificate is refused.
		ClientAuth: tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return present(src)
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			return check(src, v, PurposeClient, authorize, cs)
		},
	}
}

// OptionalServerConfig is ServerConfig for a listener that also takes peers
// without a certificate, which the caller must tell apart. A certificate that
// is presented is verified all the same, and a bad one ends the handshake.
func OptionalServerConfig(src Source, v *Verifier, authorize Authorize) *tls.Config {
	c := ServerConfig(src, v, authorize)
	verify := c.VerifyConnection
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		return verify(cs)
	}
	return c
}

// ClientConfig returns the configuration of a dialler that presents src's
// SVID and talks only to the server whose SPIFFE ID authorize accepts. Server
// names are not checked: the SPIFFE ID is the name.
func ClientConfig(src Source, v *Verifier, authorize Authorize) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		// The chain is verified in VerifyConnection against the bundle of the
		// peer's trust domain; the host name plays no part (X509-SVID §5.2).
		InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return present(src)
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			return check(src, v, PurposeServer, authorize, cs)
		},
	}
}

// ExactID accepts exactly one SPIFFE ID.
func ExactID(want identity.ID) Authorize {
	return func(p Peer, _ tls.ConnectionState) error {
		if p.ID != want {
			return &Rejection{Reason: ReasonIDMismatch, ID: p.ID, Serial: p.Serial,
				Err: fmt.Errorf("peer is %s, not %s", p.ID, want)}
		}
		return nil
	}
}

// AnyID accepts each of some SPIFFE IDs, and none where there are none.
func AnyID(want ...identity.ID) Authorize {
	return func(p Peer, _ tls.ConnectionState) error {
		if slices.Contains(want, p.ID) {
			return nil
		}
		return &Rejection{Reason: ReasonIDMismatch, ID: p.ID, Serial: p.Serial,
			Err: fmt.Errorf("peer is %s, not %s", p.ID, wanted(want))}
	}
}

// wanted words a list of IDs.
func wanted(ids []identity.ID) string {
	var text []string
	for _, id := range ids {
		text = append(text, id.String())
	}
	return strings.Join(text, " or ")
}

// HasRole accepts the IDs of one trust domain that have this role.
func HasRole(td identity.TrustDomain, role identity.Role) Authorize {
	return func(p Peer, _ tls.ConnectionState) error {
		if p.ID.TrustDomain() != td {
			return &Rejection{Reason: ReasonWrongTrustDomain, ID: p.ID, Serial: p.Serial,
				Err: fmt.Errorf("peer %s is not of %s", p.ID, td)}
		}
		if got := p.ID.Role(); got != role {
			return &Rejection{Reason: ReasonIDMismatch, ID: p.ID, Serial: p.Serial,
				Err: fmt.Errorf("peer %s has the role %s, not %s", p.ID, got, role)}
		}
		return nil
	}
}

// GroupName prints a negotiated key-exchange group as records show it.
func GroupName(g tls.CurveID) string {
	if g == 0 {
		return ""
	}
	return g.String()
}

// VersionName prints a TLS version as records show it: "1.3".
func VersionName(v uint16) string {
	switch v {
	case tls.VersionTLS13:
		return "1.3"
	case tls.VersionTLS12:
		return "1.2"
	case tls.VersionTLS11:
		return "1.1"
	case tls.VersionTLS10:
		return "1.0"
	}
	return ""
}

func present(src Source) (*tls.Certificate, error) {
	c := src.Credentials()
	if !c.HasSVID() {
		return nil, errors.New("no SVID to present yet")
	}
	return c.SVID.TLSCertificate(), nil
}

func check(src Source, v *Verifier, purpose Purpose, authorize Authorize, cs tls.ConnectionState) error {
	peer, err := v.Verify(cs.PeerCertificates, src.Credentials(), purpose, time.Now())
	if err != nil {
		return err
	}
	if authorize == nil {
		return nil
	}
	err = authorize(peer, cs)
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*Rejection](err); ok {
		return err
	}
	return &Rejection{Reason: ReasonPolicyDenied, ID: peer.ID, Serial: peer.Serial, Err: err}
}
