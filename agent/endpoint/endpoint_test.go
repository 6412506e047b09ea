// This file holds the tests of the endpoint's pure parts. The calls are
// tested with a whole agent, one folder up.

package endpoint

import (
	"encoding/json"
	"testing"

	"github.com/aval-id/aval/agent/roster"
	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/identitytest"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHintsAreUniqueInAResponse(t *testing.T) {
	td := identitytest.New(t, "example.org")
	m := moment{roster: &roster.Roster{Bundle: td.Bundle}}
	for path, hint := range map[string]string{"/a": "x", "/b": "x", "/c": "", "/d": ""} {
		m.svids = append(m.svids, td.SVID(t, path).WithHint(hint))
	}
	resp, err := svidResponse(m)
	if err != nil {
		t.Fatal(err)
	}
	hints := map[string]int{}
	for _, s := range resp.GetSvids() {
		hints[s.GetHint()]++
		if s.GetSpiffeId() == "" || len(s.GetX509Svid()) == 0 || len(s.GetX509SvidKey()) == 0 || len(s.GetBundle()) == 0 {
			t.Fatalf("a mandatory field is empty: %v", s.GetSpiffeId())
		}
	}
	if hints["x"] != 1 || hints[""] != 3 {
		t.Fatal(hints)
	}
}

func TestPickNamesTheChoices(t *testing.T) {
	td := identitytest.New(t, "example.org")
	reg := func(path string) *roster.Registration {
		return &roster.Registration{Registration: identity.Registration{Namespace: "ns", Name: "n", ID: td.ID(t, path)}}
	}
	one, two := reg("/one"), reg("/two")
	for _, c := range []struct {
		matches []*roster.Registration
		wanted  string
		want    *roster.Registration
	}{
		{[]*roster.Registration{one}, "", one},
		{[]*roster.Registration{one}, "spiffe://example.org/one", one},
		{[]*roster.Registration{one, two}, "spiffe://example.org/two", two},
		{[]*roster.Registration{one, two}, "", nil},
		{[]*roster.Registration{one}, "spiffe://example.org/two", nil},
		{[]*roster.Registration{one}, "/one", nil},
	} {
		got, err := pick(c.matches, c.wanted)
		switch {
		case c.want == nil && status.Code(err) != codes.PermissionDenied:
			t.Errorf("%q of %s: %v", c.wanted, names(c.matches), err)
		case c.want != nil && (err != nil || len(got) != 1 || got[0] != c.want):
			t.Errorf("%q of %s: %v %v", c.wanted, names(c.matches), got, err)
		}
	}
}

func TestADigestOnOneSideOnlyIsNoChange(t *testing.T) {
	plain := identity.Attributes{"unix.uid": {"1"}}
	one := identity.Attributes{"unix.uid": {"1"}, "unix.sha256": {"a"}}
	two := identity.Attributes{"unix.uid": {"1"}, "unix.sha256": {"b"}}
	other := identity.Attributes{"unix.uid": {"2"}}
	if !alike(plain, one) || !alike(one, plain) || alike(one, two) || alike(plain, other) || alike(one, other) {
		t.Fatal("alike is wrong")
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"time":"2026-01-02T03:04:05Z","kind":"connection","verdict":"allowed","reason":"allowed","rule":3,"policies":["a/b"]}`))
	f.Add([]byte(`{"time":"2026-01-02T03:04:05Z","kind":"loss","lost":3}`))
	f.Add([]byte(`{"kind":"issuance"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := parseRecord(text)
		if err != nil {
			return
		}
		if e.Kind != audit.KindConnection && e.Kind != audit.KindLoss {
			t.Fatalf("accepted kind %q", e.Kind)
		}
		out, bad := stampAll([][]byte{text}, reporter{Node: "n", Registration: "r"})
		if bad != nil {
			return // a time that JSON cannot hold
		}
		var back audit.Event
		if err := json.Unmarshal(out[0], &back); err != nil || back.Node != "n" || back.Workload != "r" {
			t.Fatal(back, err)
		}
	})
}
