// This file fuzzes the readers: whatever is accepted prints back the same.

package document

import (
	"testing"
)

func FuzzParse(f *testing.F) {
	for _, s := range []string{good, "{}", "---\n---\n", "a: &a [*a]", `{"kind":"Registration"}`,
		"apiVersion: aval.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: b}\nspec: {x: [{y: z}, \"\\u0085\", 1e5, ~]}\n",
		"apiVersion: aval.dev/v1alpha1\nkind: Registration\nmetadata:\n  name: a\n  namespace: b\n  annotations: {k: |-\n  x}\nspec:\n- 1\n", "? [a]\n: b", "\xef\xbb\xbfa: b", "%YAML 1.1\n---\na: !!binary x"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, err := Parse("f", data)
		if err != nil {
			if docs != nil {
				t.Fatal("documents with an error")
			}
			return
		}
		for _, d := range docs {
			if d, err = d.WithNamespace("default"); err != nil {
				t.Fatal(err)
			}
			roundTrip(t, d)
		}
	})
}

func FuzzFromJSON(f *testing.F) {
	f.Add([]byte(`{"apiVersion":"aval.dev/v1alpha1","kind":"Registration","metadata":{"name":"web","namespace":"shop"},"spec":{"a":[1,-0,1e400,"\ud800","\u007f",null,true]}}`))
	f.Add([]byte(`{"a":{"a":[[[]]]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if d, err := FromJSON(data); err == nil {
			roundTrip(t, d)
		}
	})
}

func roundTrip(t *testing.T, d Document) {
	t.Helper()
	j, err := d.JSON()
	if err != nil {
		t.Fatal(err)
	}
	back, err := FromJSON(j)
	if err != nil {
		t.Fatalf("canonical form is refused: %v\n%s", err, j)
	}
	if again, _ := back.JSON(); string(again) != string(j) {
		t.Fatalf("canonical form changes:\n%s\n%s", j, again)
	}
	y, err := d.YAML()
	if err != nil {
		t.Fatal(err)
	}
	docs, err := Parse("y", y)
	if err != nil || len(docs) != 1 || !docs[0].Equal(d) {
		t.Fatalf("YAML form is read as something else: %v\n%s\n%s", err, y, j)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("name: x\ncount: 1\nmatch: {a: [1, b]}\ninbound: [{wait: 1s}]"))
	f.Add([]byte(`{"free":{"a":1},"pointer":{"listen":"127.0.0.1:1"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var c config
		_ = Decode("f", data, &c)
	})
}
