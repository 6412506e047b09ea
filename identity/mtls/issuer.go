// This file holds what a Verifier remembers of issuers. A mesh has a few that
// sign all its leaves, and the path from an issuer to a root is the same for
// all of them: a leaf of a remembered issuer costs one check of a signature.

package mtls

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"time"

	"github.com/aval-id/aval/identity"
)

// maxIssuers bounds the remembered ones. A peer can vary what it presents
// above its leaf, but only below a path that was verified.
const maxIssuers = 64

// limiting are the extensions by which an authority may limit what is below
// it, and whose effect depends on the leaf: name constraints, policy mappings,
// policy constraints, inhibit anyPolicy (RFC 5280 §4.2.1.5, 10, 11, 14).
var limiting = []asn1.ObjectIdentifier{{2, 5, 29, 30}, {2, 5, 29, 33}, {2, 5, 29, 36}, {2, 5, 29, 54}}

// issuer is the authority that signed a verified leaf. All that the path from
// it to a root of the bundle depends on, but for its times, is in the key by
// which it is remembered, and none of it on the leaf: signatures, path
// lengths, usages, trust domain. Names and certificate policies would: an
// issuer is remembered only where nothing above the leaf constrains them.
type issuer struct {
	pool *x509.CertPool // of the issuer alone
	span span           // of it and all above
}

// options verify a leaf right below the issuer: its signature, its times, its
// usage, its critical extensions.
func (i issuer) options(purpose Purpose, now time.Time) x509.VerifyOptions {
	return options(i.pool, nil, purpose, now)
}

// issuerKey is the cache key of what was presented above the leaf, and zero
// where that is nothing.
func (v *Verifier) issuerKey(chain []*x509.Certificate, bundle identity.Bundle, purpose Purpose) [32]byte {
	if v.size <= 0 || len(chain) < 2 {
		return [32]byte{}
	}
	return cacheKey(chain[1:], bundle, purpose)
}

func (v *Verifier) issuer(key [32]byte) (issuer, bool) {
	if key == ([32]byte{}) {
		return issuer{}, false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	i, ok := v.issuers[key]
	return i, ok
}

// rememberIssuer keeps the issuer of a verified chain, leaf first, where
// another leaf of it would need no other check above.
func (v *Verifier) rememberIssuer(key [32]byte, verified []*x509.Certificate) {
	authorities := verified[1:]
	if key == ([32]byte{}) || len(authorities) < 2 {
		return // a root signed the leaf: there is nothing to save
	}
	if slices.ContainsFunc(authorities, limits) {
		return
	}
	i := issuer{pool: x509.NewCertPool(), span: spanOf(authorities)}
	i.pool.AddCert(authorities[0])
	v.mu.Lock()
	defer v.mu.Unlock()
	makeRoom(v.issuers, maxIssuers)
	v.issuers[key] = i
}

func limits(c *x509.Certificate) bool {
	return slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool {
		return slices.ContainsFunc(limiting, e.Id.Equal)
	})
}
