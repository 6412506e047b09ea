// This file holds the tests of deltas and of the matching of processes.

package roster

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/identitytest"
	"github.com/aval-id/aval/identity/wire"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func resource(t testing.TB, name, id, workload string, revision uint64) *wire.Resource {
	t.Helper()
	docs, err := document.Parse("t", fmt.Appendf(nil,
		"{apiVersion: aval.dev/v1alpha1, kind: Registration, metadata: {name: %s, namespace: shop}, spec: {id: %s, workload: %s}}", name, id, workload))
	if err != nil {
		t.Fatal(err)
	}
	text, err := docs[0].JSON()
	if err != nil {
		t.Fatal(err)
	}
	return &wire.Resource{Key: wire.FromKey(docs[0].Key()), Document: text, Revision: revision}
}

func policyResource(namespace, name string) *wire.Resource {
	return &wire.Resource{Key: &wire.ResourceKey{Kind: document.AuthorizationPolicy, Namespace: namespace, Name: name}, Document: []byte("{}")}
}

type setup struct {
	td   *identitytest.TrustDomain
	node Node
}

func newSetup(t testing.TB) setup {
	td := identitytest.New(t, "example.org")
	return setup{td: td, node: Node{ID: td.ID(t, "/aval/node/n"), Settings: &wire.Settings{TrustDomain: "example.org", RootNamespace: "root"}}}
}

func (s setup) bundle() []*wire.Bundle { return []*wire.Bundle{wire.FromBundle(s.td.Bundle)} }

func at(epoch, revision uint64) *wire.Position {
	return &wire.Position{Epoch: epoch, Revision: revision}
}

func regNames(r *Roster) string {
	var out []string
	for _, reg := range r.Registrations {
		out = append(out, reg.Name)
	}
	return strings.Join(out, " ")
}

func TestOnlyACompleteSnapshotIsShown(t *testing.T) {
	s := newSetup(t)
	b := NewBuilder(s.node, s.td.Name, nil, Position{1, 5}, true)
	r, faults, err := b.Apply(&wire.Delta{Position: at(1, 5), Reset_: true, Upserts: []*wire.Resource{resource(t, "a", "/a", "{unix.uid: 1}", 1)}, Bundles: s.bundle()})
	if r != nil || faults != nil || err != nil {
		t.Fatal(r, faults, err)
	}
	r, _, err = b.Apply(&wire.Delta{Position: at(1, 5), Complete: true, Upserts: []*wire.Resource{resource(t, "b", "/b", "{unix.sha256: "+strings.Repeat("a", 64)+"}", 2)}})
	if err != nil || regNames(r) != "a b" || r.Position != (Position{1, 5}) || !r.Hashes || !r.Bundle.Equal(s.td.Bundle) {
		t.Fatal(r, err)
	}
	// The next stream starts from what was complete, not from the middle.
	b = NewBuilder(s.node, s.td.Name, r, Position{1, 9}, false)
	if half, _, err := b.Apply(&wire.Delta{Position: at(1, 6), Deletes: []*wire.ResourceKey{{Kind: document.Registration, Namespace: "shop", Name: "a"}}}); half != nil || err != nil {
		t.Fatal(half, err)
	}
	b = NewBuilder(s.node, s.td.Name, r, Position{1, 9}, false)
	next, _, err := b.Apply(&wire.Delta{Position: at(1, 9), Complete: true})
	if err != nil || regNames(next) != "a b" || next.Registrations[0] != r.Registrations[0] {
		t.Fatal(next, err)
	}
}

func TestOutOfStepAsksForEverything(t *testing.T) {
	s := newSetup(t)
	full := func(epoch, revision uint64) *wire.Delta {
		return &wire.Delta{Position: at(epoch, revision), Reset_: true, Complete: true, Bundles: s.bundle()}
	}
	held, _, err := NewBuilder(s.node, s.td.Name, nil, Position{1, 5}, true).Apply(full(1, 5))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		welcome Position
		resync  bool
		deltas  []*wire.Delta
	}{
		"another epoch without resync": {Position{2, 1}, false, []*wire.Delta{{Position: at(2, 1), Complete: true}}},
		"delta of another epoch":       {Position{1, 5}, false, []*wire.Delta{{Position: at(2, 6), Complete: true}}},
		"backwards":                    {Position{1, 9}, false, []*wire.Delta{{Position: at(1, 4), Complete: true}}},
		"resync without a bundle":      {Position{2, 1}, true, []*wire.Delta{{Position: at(2, 1), Complete: true}}},
	} {
		b := NewBuilder(s.node, s.td.Name, held, c.welcome, c.resync)
		for _, d := range c.deltas {
			if r, _, err := b.Apply(d); r != nil || !errors.Is(err, ErrOutOfStep) {
				t.Errorf("%s: %v %v", name, r, err)
			}
		}
	}
	b := NewBuilder(s.node, s.td.Name, held, Position{2, 1}, false)
	if r, _, err := b.Apply(full(2, 1)); err != nil || r.Position != (Position{2, 1}) {
		t.Fatal(r, err)
	}
}

func TestAnUnreadableRegistrationGivesNobodyAnIdentity(t *testing.T) {
	s := newSetup(t)
	b := NewBuilder(s.node, s.td.Name, nil, Position{1, 1}, true)
	good := resource(t, "a", "/a", "{unix.uid: 1}", 1)
	if r, _, err := b.Apply(&wire.Delta{Position: at(1, 1), Complete: true, Reset_: true, Bundles: s.bundle(), Upserts: []*wire.Resource{good}}); err != nil || regNames(r) != "a" {
		t.Fatal(r, err)
	}
	newer := &wire.Resource{Key: good.GetKey(), Document: []byte(strings.Replace(string(good.GetDocument()), `"spec":{`, `"spec":{"unheard":1,`, 1)), Revision: 2}
	other := &wire.Resource{Key: &wire.ResourceKey{Kind: document.Registration, Namespace: "shop", Name: "c"}, Document: good.GetDocument()}
	unknown := &wire.Resource{Key: &wire.ResourceKey{Kind: "Novelty", Namespace: "shop", Name: "n"}}
	r, faults, err := b.Apply(&wire.Delta{Position: at(1, 2), Complete: true, Upserts: []*wire.Resource{newer, other, unknown}})
	if err != nil || len(faults) != 3 || regNames(r) != "" {
		t.Fatal(regNames(r), faults, err)
	}
	if len(r.PoliciesFor("shop")) != 1 {
		t.Fatal("a policy of an unknown kind does not reach proxies, which would fail closed on it")
	}
}

func TestPoliciesOfTheNamespaceAndTheRoot(t *testing.T) {
	s := newSetup(t)
	b := NewBuilder(s.node, s.td.Name, nil, Position{1, 1}, true)
	r, _, err := b.Apply(&wire.Delta{Position: at(1, 1), Complete: true, Bundles: s.bundle(), Upserts: []*wire.Resource{
		policyResource("shop", "p"), policyResource("root", "q"), policyResource("other", "r"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range r.PoliciesFor("shop") {
		got = append(got, p.Resource.GetKey().GetName())
	}
	if !slices.Equal(got, []string{"q", "p"}) {
		t.Fatal(got)
	}
}

func TestMatchingAgreesWithEverySelectorInTurn(t *testing.T) {
	s := newSetup(t)
	selectors := []string{
		"{unix.uid: 1}", "{unix.uid: [1, 2]}", "{unix.uid: 2, unix.path: /bin/a}", "{unix.path: /bin/a}", "{unix.gid: 7}",
		"{unix.supplementary_gid: [7, 8]}", "{unix.sha256: " + strings.Repeat("b", 64) + ", unix.uid: 1}", "{unix.supplementary_gid: 9, unix.gid: 7}",
	}
	d := &wire.Delta{Position: at(1, 1), Complete: true, Bundles: s.bundle()}
	for i, sel := range selectors {
		d.Upserts = append(d.Upserts, resource(t, fmt.Sprintf("r%d", i), fmt.Sprintf("/%d", i), sel, 1))
	}
	r, faults, err := NewBuilder(s.node, s.td.Name, nil, Position{1, 1}, true).Apply(d)
	if err != nil || faults != nil {
		t.Fatal(err, faults)
	}
	for _, a := range []identity.Attributes{
		{}, {"unix.uid": {"1"}}, {"unix.uid": {"2"}, "unix.path": {"/bin/a"}}, {"unix.gid": {"7"}, "unix.supplementary_gid": {"7", "8", "9"}},
		{"unix.uid": {"1"}, "unix.sha256": {strings.Repeat("b", 64)}}, {"unix.uid": {"3"}},
	} {
		var want []string
		for _, reg := range r.Registrations {
			if reg.Workload.Matches(a) {
				want = append(want, reg.Name)
			}
		}
		var got []string
		for _, reg := range r.Match(a) {
			got = append(got, reg.Name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%v: got %v, want %v", a, got, want)
		}
	}
}

func TestFeedTellsOfEachChange(t *testing.T) {
	var f Feed
	r, changed := f.Current()
	if r != nil {
		t.Fatal(r)
	}
	f.Set(&Roster{})
	<-changed
	if r, changed = f.Current(); r == nil {
		t.Fatal("no roster")
	}
	f.Set(nil)
	<-changed
}

func FuzzDelta(f *testing.F) {
	s := newSetup(f)
	f.Add([]byte(`{"apiVersion":"aval.dev/v1alpha1","kind":"Registration","metadata":{"name":"a","namespace":"shop"},"spec":{"id":"/a","workload":{"unix.uid":"1"}}}`), uint64(1), uint64(2), true)
	f.Add([]byte(`{}`), uint64(2), uint64(0), false)
	f.Fuzz(func(t *testing.T, doc []byte, epoch, revision uint64, reset bool) {
		b := NewBuilder(s.node, s.td.Name, nil, Position{1, 1}, true)
		r, _, err := b.Apply(&wire.Delta{Position: at(epoch, revision), Reset_: reset, Complete: true, Bundles: s.bundle(), Upserts: []*wire.Resource{
			{Key: &wire.ResourceKey{Kind: document.Registration, Namespace: "shop", Name: "a"}, Document: doc},
		}})
		if (r == nil) == (err == nil) {
			t.Fatal(r, err)
		}
		if r != nil && len(r.Match(identity.Attributes{})) != 0 {
			t.Fatal("a process without attributes matches")
		}
	})
}
