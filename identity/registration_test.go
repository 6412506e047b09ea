// This file holds the tests of Registration documents.

package identity_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
)

const registrationHead = "apiVersion: aval.dev/v1alpha1\nkind: Registration\nmetadata: {name: web, namespace: shop, labels: {app: web}}\nspec:\n"

func parseRegistration(t testing.TB, text string) (identity.Registration, error) {
	t.Helper()
	td, err := identity.ParseTrustDomain("example.org")
	if err != nil {
		t.Fatal(err)
	}
	docs, err := document.Parse("web.yaml", []byte(text))
	if err != nil {
		return identity.Registration{}, err
	}
	if len(docs) != 1 {
		t.Fatalf("%d documents", len(docs))
	}
	return identity.ParseRegistration(docs[0], td)
}

func TestRegistrationFields(t *testing.T) {
	r, err := parseRegistration(t, registrationHead+`
  id: /ns/shop/sa/web
  node: {zone: [a, b]}
  workload: {unix.uid: 1000, unix.path: /usr/bin/web}
  ttl: 4h
  dnsNames: [web.shop]
  hint: main
`)
	if err != nil {
		t.Fatal(err)
	}
	if r.ID.String() != "spiffe://example.org/ns/shop/sa/web" || r.Path() != "shop/web" || r.Labels["app"] != "web" ||
		!slices.Equal(r.Node["zone"], []string{"a", "b"}) || !slices.Equal(r.Workload["unix.uid"], []string{"1000"}) ||
		r.TTL != 4*time.Hour || !slices.Equal(r.DNSNames, []string{"web.shop"}) || r.Hint != "main" {
		t.Fatalf("%+v", r)
	}
}

func TestRegistrationFaultsNameFileLineAndField(t *testing.T) {
	for name, c := range map[string]struct{ spec, want string }{
		"unknown field":        {"  id: /a\n  workload: {unix.uid: 1}\n  tll: 4h\n", "web.yaml:7: spec.tll"},
		"unknown attribute":    {"  id: /a\n  workload:\n    unix.uidd: 1\n", "did you mean unix.uid"},
		"no workload":          {"  id: /a\n", "spec.workload"},
		"reserved path":        {"  id: /aval/node/x\n  workload: {unix.uid: 1}\n", "web.yaml:5: spec.id"},
		"reserved root":        {"  id: /aval\n  workload: {unix.uid: 1}\n", "belong to Aval"},
		"other trust domain":   {"  id: spiffe://other.org/a\n  workload: {unix.uid: 1}\n", "not the server's"},
		"trust domain's ID":    {"  id: spiffe://example.org\n  workload: {unix.uid: 1}\n", "path is empty"},
		"template":             {"  id: /ns/{ns}\n  workload: {unix.uid: 1}\n", "spec.id"},
		"bad uid":              {"  id: /a\n  workload: {unix.uid: -1}\n", "spec.workload.unix.uid"},
		"relative path":        {"  id: /a\n  workload: {unix.path: bin/a}\n", "absolute path"},
		"bad hash":             {"  id: /a\n  workload: {unix.sha256: abc}\n", "hex"},
		"empty list":           {"  id: /a\n  node: {zone: []}\n  workload: {unix.uid: 1}\n", "never matches"},
		"bad DNS name":         {"  id: /a\n  workload: {unix.uid: 1}\n  dnsNames: [Web_.]\n", "spec.dnsNames[0]"},
		"negative ttl":         {"  id: /a\n  workload: {unix.uid: 1}\n  ttl: -4h\n", "spec.ttl"},
		"two faults in a file": {"  id: nope\n  workload: {unix.uid: x}\n", "web.yaml:6"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseRegistration(t, registrationHead+c.spec)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func FuzzParseRegistration(f *testing.F) {
	f.Add("  id: /ns/shop/sa/web\n  workload: {unix.uid: 1000}\n")
	f.Add("  id: /a\n  node: {a: [b, c]}\n  workload: {unix.path: /x}\n  ttl: 1h\n")
	f.Fuzz(func(t *testing.T, spec string) {
		docs, err := document.Parse("f", []byte(registrationHead+spec))
		if err != nil {
			return
		}
		td, _ := identity.ParseTrustDomain("example.org")
		for _, d := range docs {
			r, err := identity.ParseRegistration(d, td)
			if err != nil {
				continue
			}
			if r.ID.Role() != identity.RoleWorkload || r.ID.TrustDomain() != td || len(r.Workload) == 0 {
				t.Fatalf("a registration passed with %v %v", r.ID, r.Workload)
			}
		}
	})
}
