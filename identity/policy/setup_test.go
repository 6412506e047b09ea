// This file holds what the tests of this package share: documents from YAML,
// and connections.

package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
)

var (
	own      = mustDomain("example.org")
	settings = Settings{TrustDomain: own}
	requests = Settings{TrustDomain: own, Requests: true}
	api      = Workload{Namespace: "shop", Labels: map[string]string{"app": "api", "tier": "back"}}
)

func mustDomain(s string) identity.TrustDomain {
	d, err := identity.ParseTrustDomain(s)
	if err != nil {
		panic(err)
	}
	return d
}

// doc makes a document of path "ns/name" whose spec is YAML.
func doc(t testing.TB, kind document.Kind, path, spec string, annotations ...string) document.Document {
	t.Helper()
	namespace, name, _ := strings.Cut(path, "/")
	text := fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: %s, namespace: %s, annotations: {%s}}\nspec:\n  %s\n",
		document.APIVersion, kind, name, namespace, strings.Join(annotations, ","), strings.ReplaceAll(strings.TrimSpace(spec), "\n", "\n  "))
	docs, err := document.Parse("p.yaml", []byte(text))
	if err != nil || len(docs) != 1 {
		t.Fatalf("%v in\n%s", err, text)
	}
	return docs[0]
}

func ap(t testing.TB, path, spec string) AuthorizationPolicy {
	t.Helper()
	return apOf(t, doc(t, document.AuthorizationPolicy, path, spec))
}

// apOf parses as Load does, so that what contradicts itself passes.
func apOf(t fataler, d document.Document) AuthorizationPolicy {
	p, _, err := parseAuthorization(d, requests)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return p
}

func pa(t testing.TB, path string, created int, spec string) PeerAuthentication {
	t.Helper()
	d := doc(t, document.PeerAuthentication, path, spec)
	if created > 0 {
		d = d.WithCreationTimestamp(time.Unix(int64(created), 0))
	}
	p, _, err := ParsePeerAuthentication(d, settings)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// from is a connection to port 8080 from 10.0.0.7 by "example.org/path", or
// in plaintext for "".
func from(t fataler, peer string) Connection {
	c := Connection{
		Source:      netip.MustParseAddr("10.0.0.7"),
		Destination: netip.MustParseAddr("10.0.0.9"),
		Port:        8080,
	}
	if peer != "" {
		id, err := identity.ParseID("spiffe://" + peer)
		if err != nil {
			t.Fatalf("%v", err)
		}
		c.Peer = id
	}
	return c
}

func compile(aps ...AuthorizationPolicy) *Set { return Compile(settings, api, nil, aps, 7) }

const (
	web      = "example.org/ns/shop/sa/web"
	intruder = "example.org/ns/dark/sa/intruder"
	foreign  = "partner.org/ns/shop/sa/web"
)
