// This file holds the tests of endpoints, of lookups, and of the two ends of
// deltas.

package directory

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/aval-id/aval/identity"
)

func id(t testing.TB, path string) identity.ID {
	t.Helper()
	v, err := identity.ParseID("spiffe://example.org" + path)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func endpoint(t testing.TB, node, workload, address string, port uint16) Endpoint {
	t.Helper()
	return Endpoint{Key: Key{Node: id(t, "/aval/node/"+node), ID: id(t, "/ns/shop/sa/"+workload), Address: netip.MustParseAddr(address), Port: port},
		Registration: "shop/" + workload, Mode: "PERMISSIVE"}
}

func TestAddressesThatMeanNoOneMachineAreRefused(t *testing.T) {
	for _, bad := range []string{"", "127.0.0.1", "::1", "0.0.0.0", "::", "169.254.1.1", "fe80::1", "fe80::1%eth0", "fd00::1%1", "224.0.0.1", "ff02::1",
		"255.255.255.255", "::ffff:127.0.0.1", "10.0.0.1:80", "10.0.0.0/8", "host", "10.0.0.01", strings.Repeat("1", 100)} {
		if a, err := ParseAddress(bad); err == nil {
			t.Errorf("%q is taken as %s", bad, a)
		}
	}
	if a, err := ParseAddress("::ffff:10.0.0.1"); err != nil || a != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("a mapped address is %s, %v", a, err)
	}
}

func TestWhoIsExpectedBehindAnAddress(t *testing.T) {
	whole := endpoint(t, "n1", "api", "10.0.0.1", 0)
	whole.Except, whole.PortModes = []uint16{22}, map[uint16]string{9000: Disable, 9001: Disable}
	exact := endpoint(t, "n1", "db", "10.0.0.1", 5432)
	second := endpoint(t, "n2", "db2", "10.0.0.1", 5432)
	plain := endpoint(t, "n3", "old", "10.0.0.1", 5433)
	plain.Mode = Disable
	alsoAt := endpoint(t, "n3", "api", "10.0.0.1", 9001)
	s := NewSet([]Endpoint{whole, second, exact, plain, alsoAt, endpoint(t, "n1", "six", "fd00::1", 80)})
	for to, want := range map[string]string{
		"10.0.0.1:8080":          "api mutual",
		"10.0.0.1:22":            "none",
		"10.0.0.1:9000":          "api plain",
		"10.0.0.1:9001":          "api mutual",
		"10.0.0.1:5432":          "db,db2 mutual",
		"10.0.0.1:5433":          "old mutual",
		"10.0.0.2:8080":          "none",
		"[fd00::1]:80":           "six mutual",
		"[fd00::1]:81":           "none",
		"[::ffff:10.0.0.1]:8080": "api mutual",
	} {
		a, ok := s.Find(netip.MustParseAddrPort(to))
		got := "none"
		if ok {
			var names []string
			for _, id := range a.IDs {
				names = append(names, id.Path()[strings.LastIndexByte(id.Path(), '/')+1:])
			}
			got = strings.Join(names, ",") + map[bool]string{true: " mutual", false: " plain"}[a.Mutual]
		}
		if got != want {
			t.Errorf("%s: %s, want %s", to, got, want)
		}
	}
	if _, ok := (*Set)(nil).Find(netip.MustParseAddrPort("10.0.0.1:80")); ok || s.Len() != 6 {
		t.Error("a set of nothing answers, or the size is wrong")
	}
}

func TestNobodyTakesTheTLSOfANeighbourOnTheSameAddress(t *testing.T) {
	whole, narrow := endpoint(t, "n1", "api", "10.0.0.1", 0), endpoint(t, "n1", "web", "10.0.0.1", 80)
	narrow.Mode = Disable
	for _, all := range [][]Endpoint{{whole, narrow}, {narrow, whole}} {
		if a, ok := NewSet(all).Find(netip.MustParseAddrPort("10.0.0.1:80")); !ok || !a.Mutual || len(a.IDs) != 1 || a.IDs[0] != narrow.ID {
			t.Errorf("%+v", a)
		}
	}
}

func TestTheReadersSetEqualsTheWritersAfterAnyDeltas(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var j Journal
		var r Reader
		var replica Replica
		settled := false
		pull := func() {
			for _, d := range j.Read(&r, settled) {
				if _, fault := replica.Apply(d); fault != nil {
					rt.Fatal(fault)
				}
			}
		}
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			e := endpoint(t, fmt.Sprintf("n%d", rapid.IntRange(1, 3).Draw(rt, "node")), "api", fmt.Sprintf("10.0.0.%d", rapid.IntRange(1, 4).Draw(rt, "host")),
				uint16(rapid.IntRange(0, 3).Draw(rt, "port")))
			e.Mode = rapid.SampledFrom([]string{Disable, "STRICT"}).Draw(rt, "mode")
			switch rapid.IntRange(0, 6).Draw(rt, "act") {
			case 0, 1, 2:
				j.Put(e)
			case 3:
				j.Delete(e.Key)
			case 4:
				pull()
			case 5: // the stream breaks and comes back
				r = Reader{}
				replica.Begin()
			case 6: // the server starts anew, and knows nothing yet
				j, r, settled = Journal{}, Reader{}, false
				replica.Begin()
			}
		}
		settled = true
		pull()
		got, shown := replica.Set()
		if !shown || got.Len() != j.Len() {
			rt.Fatalf("shown %v, %d entries, want %d", shown, got.Len(), j.Len())
		}
		for _, e := range got.All() {
			if want, ok := j.entries[e.Key]; !ok || !want.Equal(e) {
				rt.Fatalf("%+v, want %+v", e, want)
			}
		}
		if again := j.Read(&r, true); again != nil {
			rt.Fatal("news where nothing is new")
		}
	})
}

func TestAServerThatHasJustStartedTakesNothingAway(t *testing.T) {
	a, b := endpoint(t, "n1", "api", "10.0.0.1", 80), endpoint(t, "n2", "db", "10.0.0.2", 80)
	var before Journal
	before.Put(a)
	before.Put(b)
	var r Reader
	var replica Replica
	for _, d := range before.Read(&r, true) {
		replica.Apply(d)
	}
	replica.Begin()
	if _, fault := replica.Apply(&Delta{Complete: true}); fault == nil {
		t.Error("a stream that does not begin with the whole is taken")
	}
	var after Journal
	r = Reader{}
	after.Put(a)
	for _, d := range after.Read(&r, false) {
		replica.Apply(d)
	}
	if s, ok := replica.Set(); !ok || s.Len() != 2 {
		t.Fatalf("while the server settles: %v, %d", ok, s.Len())
	}
	if d := after.Read(&r, false); d != nil {
		t.Errorf("news where nothing is new: %v", d)
	}
	for _, d := range after.Read(&r, true) {
		replica.Apply(d)
	}
	if s, _ := replica.Set(); s.Len() != 1 || !s.All()[0].Equal(a) {
		t.Errorf("after it: %v", s.All())
	}
	var fresh Replica
	for _, d := range after.Read(new(Reader), false) {
		fresh.Apply(d)
	}
	if _, ok := fresh.Set(); ok {
		t.Error("a part is shown as the whole")
	}
}

func TestAReaderFarBehindGetsEverything(t *testing.T) {
	var j Journal
	var r Reader
	var replica Replica
	apply := func() (resets int) {
		for _, d := range j.Read(&r, true) {
			if d.Reset {
				resets++
			}
			if len(d.Upserts) > perDelta {
				t.Errorf("a delta of %d", len(d.Upserts))
			}
			if _, fault := replica.Apply(d); fault != nil {
				t.Fatal(fault)
			}
		}
		return resets
	}
	apply()
	for i := range 3 * maxRecent {
		j.Put(endpoint(t, "n1", "api", fmt.Sprintf("10.0.%d.%d", i/250%30, i%250), uint16(1+i/7500)))
	}
	if apply() != 1 {
		t.Error("no reset")
	}
	if s, _ := replica.Set(); s.Len() != j.Len() {
		t.Errorf("%d entries, want %d", s.Len(), j.Len())
	}
	if len(j.recent) > 2*maxRecent {
		t.Errorf("%d changes are remembered", len(j.recent))
	}
	j.Delete(slices.Collect(func(yield func(Key) bool) {
		for k := range j.entries {
			yield(k)
			return
		}
	})[0])
	if apply() != 0 {
		t.Error("one change is a reset")
	}
	if s, _ := replica.Set(); s.Len() != j.Len() {
		t.Errorf("%d entries, want %d", s.Len(), j.Len())
	}
}

func BenchmarkFindAmongFiftyThousand(b *testing.B) {
	var all []Endpoint
	for i := range MaxTotal {
		all = append(all, endpoint(b, "n1", "api", fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), 0))
	}
	s := NewSet(all)
	to := netip.MustParseAddrPort("10.0.77.7:8080")
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := s.Find(to); !ok {
			b.Fatal("not found")
		}
	}
}
