// This file holds the tests of remembered issuers: they save work, and change
// no verdict.

package mtls

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net/url"
	"testing"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/identitytest"
)

func verdictOf(err error) string {
	if r, ok := errors.AsType[*Rejection](err); ok {
		return r.Reason
	}
	return ""
}

func TestARememberedIssuerChangesNoVerdict(t *testing.T) {
	d, impostor := identitytest.New(t, "example.org"), identitytest.New(t, "example.org")
	creds := identity.NewCredentials(identity.SVID{}, 1, d.Bundle)
	others := identity.NewCredentials(identity.SVID{}, 2, impostor.Bundle)
	key := identitytest.Key(t)
	now := time.Now()
	leaf := func(opts ...identitytest.Option) []*x509.Certificate {
		return []*x509.Certificate{d.Leaf(t, "/web", key.Public(), opts...), d.Intermediate}
	}
	under := func(opts ...identitytest.Option) []*x509.Certificate {
		return []*x509.Certificate{impostor.Leaf(t, "/web", key.Public(), opts...), d.Intermediate}
	}
	usage := func(usages ...x509.ExtKeyUsage) identitytest.Option {
		return func(c *x509.Certificate) { c.ExtKeyUsage = usages }
	}
	// An issuer that calls itself as the good one does, with another key.
	namesake, own := *d, *d.Intermediate
	own.PublicKey, namesake.Key, namesake.Intermediate = impostor.Key.Public(), impostor.Key, &own
	for _, tt := range []struct {
		name    string
		chain   []*x509.Certificate
		creds   *identity.Credentials
		purpose Purpose
		at      time.Time
		want    string
	}{
		{"another leaf", leaf(), creds, PurposeClient, now, ""},
		{"another purpose", leaf(), creds, PurposeServer, now, ""},
		{"expired", leaf(identitytest.Lifetime(now.Add(-time.Hour), now.Add(-time.Minute))), creds, PurposeClient, now, ReasonExpired},
		{"not yet valid", leaf(identitytest.Lifetime(now.Add(time.Minute), now.Add(time.Hour))), creds, PurposeClient, now, ReasonNotYetValid},
		{"no client", leaf(usage(x509.ExtKeyUsageServerAuth)), creds, PurposeClient, now, ReasonNotAnSVID},
		{"another issuer's leaf", under(), creds, PurposeClient, now, ReasonUnknownAuthority},
		{"a leaf in the issuer's name", []*x509.Certificate{namesake.Leaf(t, "/web", key.Public()), d.Intermediate}, creds, PurposeClient, now, ReasonUnknownAuthority},
		{"another bundle", leaf(), others, PurposeClient, now, ReasonUnknownAuthority},
		{"an authority's end", leaf(identitytest.Lifetime(now, now.Add(12*365*24*time.Hour))), creds, PurposeClient, d.Intermediate.NotAfter.Add(time.Hour), ReasonExpired},
		{"an authority as a leaf", []*x509.Certificate{d.Intermediate, d.Intermediate}, creds, PurposeClient, now, ReasonNotAnSVID},
	} {
		t.Run(tt.name, func(t *testing.T) {
			warm := NewVerifier(0)
			if _, err := warm.Verify(leaf(), creds, PurposeClient, now); err != nil {
				t.Fatal(err)
			}
			if len(warm.issuers) != 1 {
				t.Fatalf("%d issuers are remembered", len(warm.issuers))
			}
			peer, err := warm.Verify(tt.chain, tt.creds, tt.purpose, tt.at)
			cold, coldErr := new(Verifier).Verify(tt.chain, tt.creds, tt.purpose, tt.at)
			if peer != cold || verdictOf(err) != verdictOf(coldErr) {
				t.Errorf("%v %v with a remembered issuer, %v %v without", peer, err, cold, coldErr)
			}
			if got := verdictOf(coldErr); got != tt.want {
				t.Errorf("verdict %q, not %q", got, tt.want)
			}
		})
	}
}

func TestALeafOfARememberedIssuerIsNotVerifiedFromTheRoots(t *testing.T) {
	d, other, v := identitytest.New(t, "example.org"), identitytest.New(t, "example.org"), NewVerifier(0)
	creds := identity.NewCredentials(identity.SVID{}, 1, d.Bundle)
	if _, err := v.Verify(d.SVID(t, "/web").Chain, creds, PurposeClient, time.Now()); err != nil {
		t.Fatal(err)
	}
	// Only where the path to the roots is not gone again does another issuer
	// in the place of the remembered one make a difference.
	for key, i := range v.issuers {
		i.pool = x509.NewCertPool()
		i.pool.AddCert(other.Intermediate)
		v.issuers[key] = i
	}
	chain := []*x509.Certificate{other.SVID(t, "/web").Leaf(), d.Intermediate}
	if _, err := v.Verify(chain, creds, PurposeClient, time.Now()); err != nil {
		t.Errorf("the remembered issuer plays no part: %v", err)
	}
}

func TestAnIssuerBelowNameConstraintsIsNotRemembered(t *testing.T) {
	d, v := identitytest.New(t, "example.org"), NewVerifier(0)
	creds := identity.NewCredentials(identity.SVID{}, 1, d.Bundle)
	constrained := *d.Intermediate
	constrained.Raw, constrained.SerialNumber = nil, nil
	constrained.URIs = []*url.URL{d.Name.ID().URI()}
	constrained.PermittedURIDomains = []string{"example.org"}
	inner := *d
	inner.Intermediate = identitytest.Sign(t, &constrained, d.Root, d.Key.Public(), d.RootKey)
	chain := []*x509.Certificate{inner.Leaf(t, "/web", identitytest.Key(t).Public()), inner.Intermediate}
	if _, err := v.Verify(chain, creds, PurposeClient, time.Now()); err != nil {
		t.Fatal(err)
	}
	if len(v.issuers) != 0 {
		t.Error("an issuer that constrains names is remembered")
	}
}

func TestAnIssuerThatDemandsPoliciesIsAskedForEachLeaf(t *testing.T) {
	d, v := identitytest.New(t, "example.org"), NewVerifier(0)
	creds := identity.NewCredentials(identity.SVID{}, 1, d.Bundle)
	oid, err := x509.OIDFromInts([]uint64{1, 3, 6, 1, 4, 1, 99999, 1})
	if err != nil {
		t.Fatal(err)
	}
	demanding := *d.Intermediate
	demanding.Raw, demanding.SerialNumber, demanding.Policies = nil, nil, []x509.OID{oid}
	demanding.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 36}, Critical: true, Value: []byte{0x30, 3, 0x80, 1, 0}}} // requireExplicitPolicy 0
	inner := *d
	inner.Intermediate = identitytest.Sign(t, &demanding, d.Root, d.Key.Public(), d.RootKey)
	key := identitytest.Key(t)
	named := inner.Leaf(t, "/web", key.Public(), func(c *x509.Certificate) { c.Policies = []x509.OID{oid} })
	if _, err := v.Verify([]*x509.Certificate{named, inner.Intermediate}, creds, PurposeClient, time.Now()); err != nil {
		t.Fatal(err)
	}
	bare := []*x509.Certificate{inner.Leaf(t, "/web", key.Public()), inner.Intermediate}
	_, cold := new(Verifier).Verify(bare, creds, PurposeClient, time.Now())
	if _, err := v.Verify(bare, creds, PurposeClient, time.Now()); cold == nil || verdictOf(err) != verdictOf(cold) {
		t.Errorf("a leaf without the policy that its issuer demands: %v after another leaf, %v before", err, cold)
	}
}

func TestIssuersAreBounded(t *testing.T) {
	d, v := identitytest.New(t, "example.org"), NewVerifier(0)
	creds := identity.NewCredentials(identity.SVID{}, 1, d.Bundle)
	s := d.SVID(t, "/web")
	// What is presented besides the path to the root is the peer's to choose.
	for range 2 * maxIssuers {
		chain := append(s.Chain[:2:2], d.Leaf(t, "/junk", identitytest.Key(t).Public()))
		if _, err := v.Verify(chain, creds, PurposeClient, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if len(v.issuers) > maxIssuers {
		t.Errorf("%d issuers are remembered", len(v.issuers))
	}
}
