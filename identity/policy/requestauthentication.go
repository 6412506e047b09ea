// This file holds RequestAuthentication: whose tokens the requests to some
// workloads may carry, and where.

package policy

import (
	"errors"
	"fmt"
	"time"

	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/jwt"
)

// authenticationVersion is the EvaluatorVersion that knows
// RequestAuthentication. An older proxy denies where one may apply.
const authenticationVersion = 3

// RequestAuthentication says which tokens are valid in requests to some
// workloads. A request without a token passes it, one with a token that no
// rule takes does not. It is immutable; the zero value is invalid.
type RequestAuthentication struct {
	key      document.Key
	path     string // "ns/name"
	selector selector
	rules    []TokenRule
}

// TokenRule is one of the jwtRules of a RequestAuthentication. It must not be
// changed.
type TokenRule struct {
	Policy    string   // "ns/name" of the document
	Issuer    string   // exactly what the token's iss has to be
	Audiences []string // of which the token's aud has to have one; none means any
	// Keys are those that the document has. Where it has none they are those
	// that are found at KeysURI, and nil until they were found.
	Keys    *jwt.Keys
	KeysURI string
	// Timeout bounds one fetch from KeysURI.
	Timeout time.Duration
	// Headers, Params and Cookies are where the token may be.
	Headers []TokenHeader
	Params  []string
	Cookies []string
	// Forward leaves the token in the request.
	Forward bool
	// PayloadHeader gets the token's claims as the token has them, in
	// base64url; "" means none.
	PayloadHeader string
	// ClaimHeaders get single claims.
	ClaimHeaders []ClaimHeader
}

// TokenHeader is a header that may hold a token after a prefix.
type TokenHeader struct {
	Name   string // canonical
	Prefix string
}

// ClaimHeader is a header that gets a claim.
type ClaimHeader struct {
	Header string // canonical
	Claim  string // a name, or names joined with '.' for a claim within others
}

// Where a token is looked for by a rule that says nothing of it, and how long
// a fetch may take.
const (
	defaultTokenHeader = "Authorization"
	bearerPrefix       = "Bearer "
	defaultTokenParam  = "access_token"
	// DefaultKeysTimeout bounds a fetch of keys where the rule doesn't.
	DefaultKeysTimeout = 5 * time.Second
)

// IsBearer reports whether the header holds tokens as RFC 6750 §2.1 has it:
// the case of its scheme doesn't matter.
func (h TokenHeader) IsBearer() bool {
	return h.Name == defaultTokenHeader && h.Prefix == bearerPrefix
}

// Key returns which document this is.
func (p RequestAuthentication) Key() document.Key { return p.key }

// Needs returns the EvaluatorVersion that understands the document.
func (p RequestAuthentication) Needs() int { return authenticationVersion }

// Rules returns the rules in their order. The caller must not change them.
func (p RequestAuthentication) Rules() []TokenRule { return p.rules }

// AppliesTo reports whether the document is attached to w: by its selector in
// its own namespace, and in the root namespace everywhere.
func (p RequestAuthentication) AppliesTo(s Settings, w Workload) bool {
	return (p.key.Namespace == w.Namespace || p.key.Namespace == s.root()) && p.selector.matches(w.Labels)
}

// LoadRequestAuthentications parses those among docs and leaves other kinds
// out. One that cannot be read is returned as a policy that denies, like any
// other document that cannot be read; the error says why.
func LoadRequestAuthentications(docs []document.Document, s Settings) ([]RequestAuthentication, []AuthorizationPolicy, error) {
	var all []RequestAuthentication
	var unreadable []AuthorizationPolicy
	var errs []error
	for _, d := range docs {
		if d.Kind() != document.RequestAuthentication {
			continue
		}
		p, _, err := ParseRequestAuthentication(d, s)
		if err != nil {
			unreadable = append(unreadable, Unreadable(d.Key(), EvaluatorVersion+1))
			errs = append(errs, fmt.Errorf("%s: %w", d.Key(), err))
			continue
		}
		all = append(all, p)
	}
	return all, unreadable, errors.Join(errs...)
}
