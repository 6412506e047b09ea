// This file fuzzes what policy test and imports read, and tries many cases.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/policy"
)

const wholeCase = `{"id":"a","policies":[{"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy","metadata":{"name":"a","namespace":"ns1"},"spec":{"action":"%s","rules":[{"from":[{"source":{"principals":["cluster.local/ns/ns1/sa/a"]}}],"to":[{"operation":{"methods":["GET"],"paths":["/x*"]}}]}]}}],"workload":{"namespace":"ns1","labels":{"app":"b"},"trust_domain":"example.org"},"request":{"peer":"spiffe://example.org/ns/ns1/sa/a","source_ip":"10.0.0.1","destination_port":8080,"http":{"method":"GET","host":"b","path":"/x","headers":{"k":["v","w"]}},"jwt":{"iss":"i","sub":"s","aud":"x"}},"want":"%s"}` + "\n"

func FuzzPolicyCases(f *testing.F) {
	f.Add([]byte(fmt.Sprintf(wholeCase, "ALLOW", "ALLOW")))
	f.Add([]byte("id: a\npolicies: [{kind: RequestAuthentication}]\nworkload: {namespace: b}\nrequest: {peer: ~}\nwant: DENY\n---\n- 1: 2\n"))
	f.Add([]byte(`[{"id":1}] {"kind":"List","items":[{}]}`))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		next := valuesIn(data)
		for range 100 {
			raw, err := next()
			if err != nil {
				return
			}
			for _, part := range raw.parts() {
				if o := try(part); o.failed() != (o.Error != "" || o.Got != nil) {
					t.Fatalf("%+v", o)
				}
			}
		}
	})
}

func FuzzImport(f *testing.F) {
	f.Add([]byte("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: istio-system}\nspec: {portLevelMtls: {80: {mode: STRICT}}}\n"))
	f.Add([]byte("kind: List\nitems: [{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: a}, spec: {rules: [{when: [{key: source.principal, values: [cluster.local/a]}]}]}}]"))
	domain, err := identity.ParseTrustDomain("example.org")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, _, err := importSources([]source{{"f", data}}, "default", policy.Settings{TrustDomain: domain})
		if err == nil {
			for _, d := range docs {
				if d.Metadata().Namespace == "" {
					t.Fatal("a document without a namespace")
				}
			}
		}
	})
}

func TestThousandsOfCasesInOneCall(t *testing.T) {
	const cases = 3000
	var in strings.Builder
	for i := range cases {
		want := "ALLOW"
		if i == 2500 {
			want = "DENY"
		}
		fmt.Fprintf(&in, wholeCase, "ALLOW", want)
	}
	var out, fail bytes.Buffer
	code := run(t.Context(), []string{"policy", "test", "-"}, streams{in: strings.NewReader(in.String()), out: &out, err: &fail})
	if code != exitNegative || fail.Len() > 0 || !strings.Contains(out.String(), "(line 2501): verdict is ALLOW, not DENY") ||
		!strings.HasSuffix(out.String(), fmt.Sprintf("%d cases, %d as wanted, 1 not\n", cases, cases-1)) {
		t.Errorf("%d %s %s", code, &out, &fail)
	}
}

func TestEndOfCasesIsTold(t *testing.T) {
	for _, text := range []string{"", "\n", "---\n---\n", "{}\n"} {
		next := valuesIn([]byte(text))
		var err error
		for range 3 {
			if _, err = next(); err != nil {
				break
			}
		}
		if !errors.Is(err, io.EOF) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
