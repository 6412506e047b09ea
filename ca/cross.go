// This file holds the cross-certificate: a new root, signed by the one that it
// follows, so that a peer who holds only the old one verifies what the new one
// issues.

package ca

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
)

// crossPathLen is how many authorities must fit below a root that signs a
// cross-certificate: that one, an intermediate, and a nested server's.
const crossPathLen = 3

// CheckCrossRoom reports whether the path length of a root leaves room for a
// cross-certificate and what stands below it (RFC 5280 §4.2.1.9).
func CheckCrossRoom(root *x509.Certificate) error {
	if n, limited := pathLen(root); limited && n < crossPathLen {
		return fmt.Errorf("root %s allows a path of %d authorities below it, a cross-certificate needs %d: peers with an old bundle could not verify the new root's leaves",
			identity.CertificateHash(root), n, crossPathLen)
	}
	return nil
}

func pathLen(c *x509.Certificate) (int, bool) {
	return c.MaxPathLen, c.MaxPathLen > 0 || c.MaxPathLenZero
}

// DraftCross prepares a certificate for the key and the names of the root
// successor, signed by the root a. It ends with the earlier of the two. The
// caller says which of them is the new one; the other direction is never
// asked for.
func (a *Authority) DraftCross(now time.Time, successor *x509.Certificate) (*Draft, error) {
	switch {
	case !a.root:
		return nil, denied(ReasonNotEntitled, "draft of a cross-certificate: the authority %s is not a root", a.ski)
	case successor.Equal(a.cert):
		return nil, denied(ReasonNotEntitled, "draft of a cross-certificate: the root %s can't follow itself", a.ski)
	case successor.NotBefore.Before(a.cert.NotBefore):
		return nil, denied(ReasonNotEntitled, "draft of a cross-certificate: the root %x is older than its signer %s", successor.SubjectKeyId, a.ski)
	}
	if err := CheckCrossRoom(a.cert); err != nil {
		return nil, denied(ReasonNotEntitled, "draft of a cross-certificate: %w", err)
	}
	end := successor.NotAfter
	if a.cert.NotAfter.Before(end) {
		end = a.cert.NotAfter
	}
	if !now.Before(end) {
		return nil, unavailable(ReasonIssuerEnding, "draft of a cross-certificate: the root %s ended at %s", a.ski, a.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	template, _, err := authorityTemplate(a.td, "", successor.PublicKey, now, end)
	if err != nil {
		return nil, err
	}
	// The names and the key identifier are the successor's own: chains lead
	// through it by them (RFC 5280 §4.2.1.1). They are taken as they are.
	template.RawSubject, template.SubjectKeyId = successor.RawSubject, successor.SubjectKeyId
	if n, limited := pathLen(successor); limited {
		template.MaxPathLen, template.MaxPathLenZero = n, n == 0
	}
	hash := sha256.Sum256(successor.RawSubjectPublicKeyInfo)
	return draftAuthority(a, template, successor.PublicKey, hash, audit.KindAuthorityCreated, "cross-certificate for the root", now), nil
}
