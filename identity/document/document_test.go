// This file tests the envelope: what is accepted, what is refused and where.

package document

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

const good = `apiVersion: aval.dev/v1alpha1
kind: Registration
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  id: /ns/shop/sa/web
  node: {}
  workload: {unix.uid: 1000}
  ttl: 4h
  dnsNames: [web.shop]
`

func parseOne(t *testing.T, text string) Document {
	t.Helper()
	docs, err := Parse("web.yaml", []byte(text))
	if err != nil || len(docs) != 1 {
		t.Fatalf("Parse: %d documents, %v", len(docs), err)
	}
	return docs[0]
}

// refused parses text and returns the error's text.
func refused(t *testing.T, text string) string {
	t.Helper()
	docs, err := Parse("f.yaml", []byte(text))
	if err == nil || docs != nil {
		t.Fatalf("accepted:\n%s", text)
	}
	var one *Error
	if !errors.As(err, &one) {
		t.Fatalf("errors.As finds no *Error in %T", err)
	}
	return err.Error()
}

func head(lines string) string {
	return "apiVersion: aval.dev/v1alpha1\nkind: Registration\n" + lines
}

func TestDocumentKeepsWhatWasWritten(t *testing.T) {
	d := parseOne(t, good)
	if want := (Key{Kind: Registration, Namespace: "shop", Name: "web"}); d.Key() != want {
		t.Errorf("key %v", d.Key())
	}
	if d.Metadata().Labels["app"] != "web" || d.File() != "web.yaml" {
		t.Errorf("metadata %v of %s", d.Metadata(), d.File())
	}
	d.Metadata().Labels["app"] = "changed"
	if d.Metadata().Labels["app"] != "web" {
		t.Error("a caller changed the document's labels")
	}
	for field, line := range map[string]int{
		"spec.id": 5, "spec.workload.unix.uid": 7, "spec.dnsNames[0]": 9, "spec.nothing": 4, "metadata.labels.app": 3, "": 1,
	} {
		if got := d.Line(field); got != line {
			t.Errorf("line of %q is %d, not %d", field, got, line)
		}
	}
}

func TestCanonicalFormIsTheSameForEveryWriting(t *testing.T) {
	const want = `{"apiVersion":"aval.dev/v1alpha1","kind":"Registration","metadata":{"labels":{"app":"web"},"name":"web","namespace":"shop"},"spec":{"dnsNames":["web.shop"],"id":"/ns/shop/sa/web","node":{},"ttl":"4h","workload":{"unix.uid":1000}}}`
	for _, text := range []string{
		good,
		want,
		"---\n# a comment\n---\n" + good + "---\n",
		strings.Replace(good, "labels: {app: web}", "labels: {app: web}, uid: x, resourceVersion: '7', generation: 3, managedFields: [{a: b}], selfLink: /x, creationTimestamp: null", 1) + "status: {anything: [1]}\n",
	} {
		j, err := parseOne(t, text).JSON()
		if err != nil || string(j) != want {
			t.Errorf("%v\n got %s\nwant %s", err, j, want)
		}
	}
}

func TestStreamHasManyDocuments(t *testing.T) {
	docs, err := Parse("all.yaml", []byte(good+"---\n"+strings.Replace(good, "name: web", "name: api", 1)))
	if err != nil || len(docs) != 2 || docs[1].Key().Name != "api" || docs[1].Line("spec.id") != 15 {
		t.Fatalf("%v %v", docs, err)
	}
	j, _ := docs[0].JSON()
	docs, err = Parse("all.json", append(append(j, '\n'), j...))
	if err != nil || len(docs) != 2 || docs[1].Line("spec") != 2 {
		t.Fatalf("%v %v", docs, err)
	}
	if docs, err = Parse("none.yaml", []byte("# nothing\n---\n")); err != nil || len(docs) != 0 {
		t.Errorf("%v %v", docs, err)
	}
}

func TestOneBadDocumentReturnsNone(t *testing.T) {
	if text := refused(t, good+"---\nkind: Registration\n"); !strings.Contains(text, "f.yaml:11: apiVersion: is missing") {
		t.Error(text)
	}
}

func TestRefusedDocumentsNameTheField(t *testing.T) {
	deep := strings.Repeat("[", 100) + strings.Repeat("]", 100)
	long := strings.Repeat("x", 64)
	for _, c := range []struct{ name, text, want string }{
		{"unknown field", head("metadata: {name: web, namspace: shop}"), "f.yaml:3: metadata.namspace: unknown field; allowed: name, namespace, labels, annotations, creationTimestamp; did you mean metadata.namespace?"},
		{"unknown top field", head("metadata: {name: web}\nspecs: {}"), "f.yaml:4: specs: unknown field; allowed: apiVersion, kind, metadata, spec; did you mean spec?"},
		{"unknown kind", "apiVersion: aval.dev/v1alpha1\nkind: Registratoin\nmetadata: {name: web}", `f.yaml:2: kind: is not a known kind; found "Registratoin"; allowed: Registration, PeerAuthentication, AuthorizationPolicy, RequestAuthentication, PlaintextException; did you mean Registration?`},
		{"other version", "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: web}", `f.yaml:1: apiVersion: is not supported; found "security.istio.io/v1"; allowed: aval.dev/v1alpha1`},
		{"no name", head("metadata: {namespace: shop}"), "metadata.name: is missing"},
		{"bad name", head("metadata: {name: Web_1}"), `metadata.name: has 'W'`},
		{"bad namespace", head("metadata: {name: web, namespace: a.b}"), "metadata.namespace: has '.'"},
		{"bad label", head("metadata: {name: web, labels: {app: -x}}"), "f.yaml:3: metadata.labels.app: label value does not start"},
		{"long label", head("metadata: {name: web, labels: {app: " + long + "}}"), "label value is 64 bytes"},
		{"bad label key", head("metadata: {name: web, labels: {'a b': x}}"), "label key has ' '"},
		{"number as label", head("metadata: {name: web, labels: {app: 1}}"), "metadata.labels.app: wrong type; found number 1; allowed: a string; quote it"},
		{"bad time", head("metadata: {name: web, creationTimestamp: yesterday}"), "metadata.creationTimestamp: "},
		{"spec is a list", head("metadata: {name: web}\nspec: []"), "f.yaml:4: spec: wrong type; found a list; allowed: a mapping"},
		{"spec is null", head("metadata: {name: web}\nspec:"), "f.yaml:4: spec: has no value"},
		{"not a mapping", "- a\n", "f.yaml:1: wrong type; found a list; allowed: a mapping"},
		{"alias", head("metadata: {name: web}\nspec: {a: &x [1], b: *x}"), "f.yaml:4: spec.a: anchors are not supported"},
		{"anchor alone", head("metadata: &m {name: web}"), "metadata: anchors are not supported"},
		{"merge", head("metadata: {name: web, <<: {namespace: shop}}"), "merge keys"},
		{"tag", head("metadata: {name: !!str web}"), "metadata.name: tags such as"},
		{"duplicate", head("metadata: {name: web}\nspec:\n  a: 1\n  a: 2"), "f.yaml:6: spec.a: is already written on line 5"},
		{"duplicate in JSON", `{"apiVersion":"aval.dev/v1alpha1","kind":"Registration","kind":"Registration"}`, "f.yaml:1: kind: is written twice"},
		{"odd key", head("metadata: {name: web}\nspec: {[a]: 1}"), "has a key that is not a plain name"},
		{"null key", head("metadata: {name: web}\nspec: {~: 1}"), "has a key that is not a plain name"},
		{"octal", head("metadata: {name: web}\nspec: {uid: 010}"), `spec.uid: number "010" is written in a form that readers disagree about`},
		{"underscores", head("metadata: {name: web}\nspec: {uid: 1_000}"), "readers disagree"},
		{"not a number", head("metadata: {name: web}\nspec: {uid: .nan}"), "readers disagree"},
		{"deep", head("metadata: {name: web}\nspec: {a: " + deep + "}"), "is nested deeper than 32"},
		{"deep JSON", `{"a":` + deep + `}`, "is nested deeper than 32"},
		{"long field", head("metadata: {name: web}\nspec: {" + strings.Repeat("x", 513) + ": 1}"), "f.yaml:4: spec: has a name of more than 512 bytes"},
		{"syntax", head("metadata: {name: web"), "not valid YAML: "},
		{"bomb", "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n", "anchors are not supported"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if text := refused(t, c.text); !strings.Contains(text, c.want) {
				t.Errorf("got  %s\nwant %s", text, c.want)
			}
		})
	}
}

func TestAllFaultsAreReportedInTheOrderOfLines(t *testing.T) {
	text := refused(t, "kind: Registration\nmetadata:\n  name: WEB\n  foo: 1\nbar: 2\n")
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || !strings.HasPrefix(lines[0], "f.yaml:1:") || !strings.HasPrefix(lines[3], "f.yaml:5:") {
		t.Error(text)
	}
}

func TestFaultsAreBounded(t *testing.T) {
	for _, line := range []string{"x%d: 1\n", "x%d: &a 1\n"} {
		var b strings.Builder
		for i := range 1000 {
			fmt.Fprintf(&b, line, i)
		}
		if n := strings.Count(refused(t, b.String()), "\n") + 1; n > maxFaults+5 {
			t.Errorf("%d faults", n)
		}
	}
}

func TestSizeIsBounded(t *testing.T) {
	big := head("metadata: {name: web}\nspec: {a: " + strings.Repeat("x", MaxDocumentBytes) + "}")
	if text := refused(t, big); !strings.Contains(text, "more than 1048576") {
		t.Error(text)
	}
	if text := refused(t, strings.Repeat(" ", MaxStreamBytes+1)); !strings.Contains(text, "more than 8388608") {
		t.Error(text)
	}
	if _, err := FromJSON([]byte(`"` + strings.Repeat("x", MaxDocumentBytes) + `"`)); err == nil {
		t.Error("FromJSON took more than its bound")
	}
}

func TestFromJSONNeedsOneDocumentWithNamespace(t *testing.T) {
	for text, want := range map[string]string{
		`{"apiVersion":"aval.dev/v1alpha1","kind":"Registration","metadata":{"name":"web"}}`: "metadata.namespace: is missing",
		``:        "has 0 JSON values",
		`{} {}`:   "has 2 JSON values",
		`{"a":`:   "not valid JSON",
		`kind: x`: "not valid JSON",
	} {
		if _, err := FromJSON([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestNamespaceIsFilledInOnlyWhereMissing(t *testing.T) {
	d := parseOne(t, head("metadata: {name: web}"))
	d, err := d.WithNamespace("shop")
	if err != nil || d.Key().Namespace != "shop" {
		t.Fatal(d.Key(), err)
	}
	if d, _ = d.WithNamespace("other"); d.Key().Namespace != "shop" {
		t.Error(d.Key())
	}
	if _, err := d.WithNamespace("No"); err == nil {
		t.Error("a bad namespace was taken")
	}
}

func TestCreationTimestampIsKept(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.FixedZone("x", 3600))
	d := parseOne(t, good).WithCreationTimestamp(at)
	j, err := d.JSON()
	if err != nil {
		t.Fatal(err)
	}
	back, err := FromJSON(j)
	if err != nil || !back.Metadata().CreationTimestamp.Equal(at) || !back.Equal(d) || back.Equal(parseOne(t, good)) {
		t.Error(back.Metadata(), err)
	}
	if !d.WithCreationTimestamp(time.Time{}).Equal(parseOne(t, good)) {
		t.Error("the zero time does not remove the timestamp")
	}
}

func TestYAMLReadsBackToTheSameDocument(t *testing.T) {
	d := parseOne(t, head(`metadata: {name: web, namespace: "on", annotations: {a/b: "line\nline\t\u0085\ufeff \U0001F600", c: ''}}
spec: {b: [[1, -2.5e3], [], {}, {x: 'y', a: [q]}], "true": yes, n: "null", "1": "1", time: 2020-01-01, t: true, colon: "a: b", "a:": "#x", nl: "a\n\n"}`))
	y, err := d.YAML()
	if err != nil {
		t.Fatal(err)
	}
	if back := parseOne(t, string(y)); !back.Equal(d) {
		t.Errorf("%s", y)
	}
	if !strings.HasPrefix(string(y), "apiVersion: aval.dev/v1alpha1\nkind: Registration\nmetadata:\n  name: web\n  namespace: \"on\"\n") {
		t.Errorf("%s", y)
	}
}

func TestKeysPrintAndParse(t *testing.T) {
	k := Key{Kind: PeerAuthentication, Namespace: "shop", Name: "web.v1"}
	if k.String() != "PeerAuthentication shop/web.v1" {
		t.Error(k)
	}
	var back Key
	if err := back.UnmarshalText([]byte(k.String())); err != nil || back != k {
		t.Error(back, err)
	}
	for _, s := range []string{"x", "Pod a/b", "Registration A/b", "Registration a/b/c", "Registration ", "registration a/b"} {
		if k, err := ParseKey(s); err == nil {
			t.Errorf("%q parsed to %v", s, k)
		}
	}
	for in, want := range map[string]Kind{
		"registrations": Registration, "REGISTRATION": Registration, "peerauthentications": PeerAuthentication,
		"AuthorizationPolicies": AuthorizationPolicy, "authorizationpolicy": AuthorizationPolicy, "pods": "", "": "",
	} {
		if got, ok := NormalizeKind(in); got != want || ok != (want != "") {
			t.Errorf("%q is %q", in, got)
		}
	}
}

func TestDiffShowsWhatChanges(t *testing.T) {
	before, _ := parseOne(t, good).JSON()
	after, _ := parseOne(t, strings.Replace(good, "4h", "1h", 1)).JSON()
	got := Diff(before, after)
	if !strings.Contains(got, "-   ttl: 4h\n+   ttl: 1h\n") || strings.Contains(got, "apiVersion") || !strings.HasPrefix(got, "@@\n") {
		t.Errorf("%s", got)
	}
	if Diff(before, before) != "" {
		t.Error("equal documents differ")
	}
	if got := Diff(nil, after); strings.Count(got, "\n+ ")+1 != strings.Count(got, "\n") {
		t.Errorf("%s", got)
	}
}

func TestNearestNames(t *testing.T) {
	names := []string{"unix.uid", "unix.gid", "unix.path", "to"}
	for in, want := range map[string]string{"unix.uidd": "unix.uid", "unix.pahts": "unix.path", "Unix.UID": "unix.uid", "zzz": "", "ot": "to", "from": ""} {
		if got := Nearest(in, names); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func TestErrorfPlacesTheFault(t *testing.T) {
	cause := errors.New("no such thing")
	e := parseOne(t, good).Errorf("spec.workload.unix.uid", "1000", "a user", "look up: %w", cause)
	if e.Error() != `web.yaml:7: spec.workload.unix.uid: look up: no such thing; found "1000"; allowed: a user` || !errors.Is(e, cause) {
		t.Error(e)
	}
	err := Collect(nil, e, fmt.Errorf("wrapped: %w", Errors{{Line: 2, Reason: "first"}}), cause)
	if all, ok := errors.AsType[Errors](err); !ok || len(all) != 3 || all[2] != e || !errors.Is(err, cause) {
		t.Error(err)
	}
	if Collect(nil, nil) != nil {
		t.Error("no error became one")
	}
}
