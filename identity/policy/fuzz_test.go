// This file fuzzes the parsers of both kinds, and what they make of an ID.

package policy

import (
	"testing"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
)

func FuzzParsePolicies(f *testing.F) {
	head := `{"apiVersion":"aval.dev/v1alpha1","metadata":{"name":"p","namespace":"shop"},"kind":`
	f.Add([]byte(head + `"AuthorizationPolicy","spec":{"action":"DENY","rules":[{"from":[{"source":{"principals":["a/b","*","a/*","*/b"],"notNamespaces":["x"],"trustDomains":["a"],"ipBlocks":["10.0.0.0/8","::1"]}}],"to":[{"operation":{"ports":[80,"81"]}}],"when":[{"key":"connection.sni","values":["*.a"]}]}]}}`))
	f.Add([]byte(head + `"AuthorizationPolicy","spec":{"rules":[{"from":[{"source":{"serviceAccounts":["a/b","c"]}}]}]}}`))
	f.Add([]byte(head + `"PeerAuthentication","spec":{"selector":{"matchLabels":{"tier":"back"}},"mtls":{"mode":"STRICT"},"portLevelMtls":{"8080":{"mode":"DISABLE"}}}}`))
	f.Add([]byte(head + `"AuthorizationPolicy","spec":{"action":"AUDIT","rules":[{"from":[{"source":{"requestPrincipals":["a/b"],"remoteIpBlocks":["10.0.0.0/8"]}}],"to":[{"operation":{"hosts":["*.a"],"methods":["GET"],"paths":["/a/{*}/{**}","/b*","*c"]}}],"when":[{"key":"request.headers[x]","notValues":["*"]},{"key":"request.auth.claims[a][b]","values":["c"]}]}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := document.FromJSON(data)
		if err != nil {
			return
		}
		pas, aps, err := Load([]document.Document{d}, requests)
		set := Compile(requests, api, pas, aps, 1)
		for _, peer := range []string{"", web, foreign} {
			verdict := set.Decide(from(t, peer))
			if err != nil && verdict.Allowed && (d.Key().Namespace == api.Namespace || d.Key().Namespace == DefaultRootNamespace) {
				t.Fatalf("a policy that cannot be read allows %q", peer)
			}
		}
	})
}

// A principal that is written exactly matches itself and nothing near it.
func FuzzPrincipal(f *testing.F) {
	f.Add("example.org/ns/a/sa/b")
	f.Add("spiffe://a/b*")
	f.Add("*b")
	f.Fuzz(func(t *testing.T, value string) {
		p := parser{doc: document.Document{}}
		term := p.term(term{attribute: attrPrincipal}, []string{value}, "x")
		if len(p.errs) > 0 {
			return
		}
		id, err := identity.ParseID("spiffe://" + value)
		if err != nil {
			return
		}
		near, err := identity.ParseID(id.String() + "x")
		if err != nil {
			return
		}
		set := Set{domain: own}
		var x index
		x.add(place{}, &rule{from: []clause{{term}}})
		matches := func(id identity.ID) bool {
			f := set.facts(&Request{Connection: Connection{Peer: id}}, true)
			_, ok := x.first(&f)
			return ok
		}
		if !matches(id) {
			t.Fatalf("%s does not match itself", value)
		}
		if matches(near) {
			t.Fatalf("%s matches %s", value, near)
		}
	})
}
