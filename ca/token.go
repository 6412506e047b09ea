// This file holds join tokens: the secret that a person carries to a node,
// and the grant that the server keeps of it.

package ca

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/aval-id/aval/identity"
)

const (
	tokenPrefix = "avt_"
	tokenBytes  = 32
)

// MaxTokenTTL is the longest life of a join token.
const MaxTokenTTL = 7 * 24 * time.Hour

// Token is a join token's secret of 256 random bits. It prints redacted; only
// Reveal gives the secret.
type Token struct{ secret [tokenBytes]byte }

// NewToken makes a token.
func NewToken() Token {
	var t Token
	rand.Read(t.secret[:]) // never fails
	return t
}

// ParseToken parses what Reveal returned.
func ParseToken(s string) (Token, error) {
	body, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok || len(body) != base64.RawURLEncoding.EncodedLen(tokenBytes) {
		return Token{}, denied(ReasonBadToken, "join token is malformed")
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil || len(raw) != tokenBytes {
		return Token{}, denied(ReasonBadToken, "join token is malformed")
	}
	return Token{secret: [tokenBytes]byte(raw)}, nil
}

// Reveal returns the secret's text for the person who carries it.
func (t Token) Reveal() string {
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(t.secret[:])
}

// Hash returns the hex SHA-256 under which the grant is kept.
func (t Token) Hash() string {
	sum := sha256.Sum256(t.secret[:])
	return hex.EncodeToString(sum[:])
}

// String prints the token redacted.
func (t Token) String() string { return tokenPrefix + "REDACTED" }

// GoString prints the token redacted.
func (t Token) GoString() string { return t.String() }

// LogValue redacts the token in logs.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// Grant is what a token gives, kept under the token's hash.
type Grant struct {
	Hash       string              `json:"hash"`
	Node       string              `json:"node"` // the node's name
	Attributes identity.Attributes `json:"attributes,omitempty"`
	Created    time.Time           `json:"created"`
	Expires    time.Time           `json:"expires"`
	// BoundKey is the hash of the first key that used the token, or "".
	BoundKey string `json:"bound_key,omitempty"`
}

// Bind checks that the token is this grant's and still good at now, and binds
// it to key: the first key that uses a token may retry until it expires,
// any other is refused.
func (g Grant) Bind(t Token, key ProvenKey, now time.Time) (Grant, error) {
	switch {
	case subtle.ConstantTimeCompare([]byte(g.Hash), []byte(t.Hash())) != 1:
		return Grant{}, denied(ReasonBadToken, "join token is not known")
	case !now.Before(g.Expires):
		return Grant{}, denied(ReasonTokenExpired, "join token for node %s expired at %s", g.Node, g.Expires.UTC().Format(time.RFC3339))
	case key.IsZero():
		return Grant{}, denied(ReasonBadCSR, "join token for node %s: no key is proven", g.Node)
	case g.BoundKey != "" && g.BoundKey != key.Hash():
		return Grant{}, denied(ReasonTokenReused, "join token for node %s was used by another key", g.Node)
	}
	g.BoundKey = key.Hash()
	return g, nil
}

// Admit makes the node that a bound grant stands for.
func (g Grant) Admit(td identity.TrustDomain, key ProvenKey, now time.Time) (Node, error) {
	if g.BoundKey == "" || g.BoundKey != key.Hash() {
		return Node{}, denied(ReasonTokenReused, "join token for node %s is not bound to this key", g.Node)
	}
	id, err := identity.NodeID(td, g.Node)
	if err != nil {
		return Node{}, fmt.Errorf("node %s: %w", g.Node, err)
	}
	return Node{
		ID:          id,
		Name:        g.Node,
		Attributes:  g.Attributes.With("node.name", g.Node),
		Keys:        []string{key.Hash()},
		Attestation: "join_token",
		Attested:    now,
	}, nil
}
