// This file holds the checks of the X509-SVID standard that a single
// certificate can be held against, whoever made it.

package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"
)

var (
	oidKeyUsage = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidSAN      = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// LeafID checks that c is a valid leaf X.509-SVID and returns its SPIFFE ID:
// exactly one URI SAN (§2), a path (§4.1), not a CA, digitalSignature and
// neither keyCertSign nor cRLSign in a critical key usage (§4.3), and both
// serverAuth and clientAuth where an extended key usage is present (§4.4).
// It does not check signatures or times.
func LeafID(c *x509.Certificate) (ID, error) {
	if len(c.URIs) != 1 {
		return ID{}, fmt.Errorf("leaf has %d URI names, an X.509-SVID has exactly one", len(c.URIs))
	}
	id, err := IDFromURI(c.URIs[0])
	if err != nil {
		return ID{}, fmt.Errorf("leaf: %w", err)
	}
	switch {
	case id.Path() == "":
		return ID{}, fmt.Errorf("leaf %s: SPIFFE ID has no path", id)
	case c.IsCA:
		return ID{}, fmt.Errorf("leaf %s: is a CA certificate", id)
	case c.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return ID{}, fmt.Errorf("leaf %s: key usage lacks digitalSignature", id)
	case c.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return ID{}, fmt.Errorf("leaf %s: key usage has keyCertSign or cRLSign", id)
	case !critical(c, oidKeyUsage):
		return ID{}, fmt.Errorf("leaf %s: key usage is not critical", id)
	case emptySubject(c) && !critical(c, oidSAN):
		return ID{}, fmt.Errorf("leaf %s: subject is empty and the subject alternative name is not critical", id)
	}
	if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 &&
		!(slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth)) {
		return ID{}, fmt.Errorf("leaf %s: extended key usage lacks serverAuth or clientAuth", id)
	}
	return id, nil
}

// CheckAuthority checks that c may sign SVIDs of td: a CA with keyCertSign
// (§4.3), and, where it has a URI name, exactly td's own ID (§4.2).
func CheckAuthority(c *x509.Certificate, td TrustDomain) error {
	switch {
	case !c.IsCA || !c.BasicConstraintsValid:
		return fmt.Errorf("authority %s: is not a CA certificate", CertificateHash(c))
	case c.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("authority %s: key usage lacks keyCertSign", CertificateHash(c))
	case len(c.URIs) > 1:
		return fmt.Errorf("authority %s: has %d URI names", CertificateHash(c), len(c.URIs))
	}
	if len(c.URIs) == 1 {
		id, err := IDFromURI(c.URIs[0])
		if err != nil {
			return fmt.Errorf("authority %s: %w", CertificateHash(c), err)
		}
		if id != td.ID() {
			return fmt.Errorf("authority %s: is of %s, not of %s", CertificateHash(c), id, td.ID())
		}
	}
	return nil
}

func critical(c *x509.Certificate, oid asn1.ObjectIdentifier) bool {
	for _, e := range c.Extensions {
		if e.Id.Equal(oid) {
			return e.Critical
		}
	}
	return false
}

func emptySubject(c *x509.Certificate) bool {
	return len(c.RawSubject) == 0 || bytes.Equal(c.RawSubject, []byte{0x30, 0x00})
}
