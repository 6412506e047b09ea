// This file holds the tests of endpoints, of lookups, and of the two ends of
// deltas.

package directory

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/policy"
	"github.com/aval-id/aval/identity/wire"
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
		Registration: "shop/" + workload, Mode: policy.Permissive}
}

func TestWhatAnEndpointPrintsItParses(t *testing.T) {
	e := endpoint(t, "n1", "api", "10.0.0.1", 0)
	e.Except, e.PortModes, e.Protocol, e.ALPN = []uint16{22, 8443}, map[uint16]policy.Mode{80: policy.Disable}, "auto", []string{"h2"}
	for _, e := range []Endpoint{e, endpoint(t, "n1", "api", "fd00::1", 8080)} {
		if got, err := Parse(e.Wire()); err != nil || !got.Equal(e) {
			t.Errorf("%+v: %+v, %v", e, got, err)
		}
	}
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

func TestEndpointsBeyondTheirBoundsAreRefused(t *testing.T) {
	many := make([]uint32, MaxPorts+1)
	modes := map[uint32]string{}
	for i := range many {
		many[i] = uint32(i + 1)
		modes[uint32(i+1)] = "STRICT"
	}
	for name, change := range map[string]func(*wire.Endpoint){
		"spiffe_id":          func(w *wire.Endpoint) { w.SpiffeId = "spiffe://example.org/aval/node/n1" },
		"no identity":        func(w *wire.Endpoint) { w.SpiffeId = "" },
		"node":               func(w *wire.Endpoint) { w.Node = "spiffe://example.org/web" },
		"port":               func(w *wire.Endpoint) { w.Port = 65536 },
		"many exceptions":    func(w *wire.Endpoint) { w.Port, w.Except = 0, many },
		"many modes":         func(w *wire.Endpoint) { w.Port, w.PortModes = 0, modes },
		"exception of one":   func(w *wire.Endpoint) { w.Except = []uint32{80} },
		"exception 0":        func(w *wire.Endpoint) { w.Port, w.Except = 0, []uint32{0} },
		"mode of port 70000": func(w *wire.Endpoint) { w.Port, w.PortModes = 0, map[uint32]string{70000: "STRICT"} },
		"long alpn":          func(w *wire.Endpoint) { w.Alpn = []string{strings.Repeat("x", 65)} },
		"many alpn":          func(w *wire.Endpoint) { w.Alpn = make([]string, 9) },
		"long protocol":      func(w *wire.Endpoint) { w.Protocol = strings.Repeat("x", 65) },
	} {
		w := endpoint(t, "n1", "api", "10.0.0.1", 8080).Wire()
		change(w)
		if e, err := Parse(w); err == nil {
			t.Errorf("%s: taken as %+v", name, e)
		}
	}
}

func TestAModeOfTheFutureNeverMeansPlaintext(t *testing.T) {
	for _, mode := range []string{"", "UNSET", "QUANTUM"} {
		w := endpoint(t, "n1", "api", "10.0.0.1", 8080).Wire()
		w.Mode = mode
		if e, err := Parse(w); err != nil || !e.Mutual(8080) {
			t.Errorf("mode %q: %+v, %v", mode, e, err)
		}
	}
}

func TestWhoIsExpectedBehindAnAddress(t *testing.T) {
	whole := endpoint(t, "n1", "api", "10.0.0.1", 0)
	whole.Except, whole.PortModes = []uint16{22}, map[uint16]policy.Mode{9000: policy.Disable, 9001: policy.Disable}
	exact := endpoint(t, "n1", "db", "10.0.0.1", 5432)
	second := endpoint(t, "n2", "db2", "10.0.0.1", 5432)
	plain := endpoint(t, "n3", "old", "10.0.0.1", 5433)
	plain.Mode = policy.Disable
	alsoAt := endpoint(t, "n3", "api", "10.0.0.1", 9001)
	s := NewSet([]Endpoint{whole, second, exact, plain, alsoAt, endpoint(t, "n1", "six", "fd00::1", 80)})
	for to, want := range map[string]string{
		"10.0.0.1:8080":          "api mutual",
		"10.0.0.1:22":            "none",
		"10.0.0.1:9000":          "api plain",
		"10.0.0.1:9001":          "api mutual",
		"10.0.0.1:5432":          "db,db2 mutual",
		"10.0.0.1:5433":          "old plain",
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

func TestTheReadersSetEqualsTheWritersAfterAnyDeltas(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var j Journal
		var r Reader
		var replica Replica
		settled := false
		pull := func() {
			for _, d := range j.Read(&r, settled) {
				raw, err := proto.Marshal(d)
				if err != nil {
					rt.Fatal(err)
				}
				got := new(wire.EndpointDelta)
				if err := proto.Unmarshal(raw, got); err != nil {
					rt.Fatal(err)
				}
				if _, faults := replica.Apply(got); faults != nil {
					rt.Fatal(faults)
				}
			}
		}
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			e := endpoint(t, fmt.Sprintf("n%d", rapid.IntRange(1, 3).Draw(rt, "node")), "api", fmt.Sprintf("10.0.0.%d", rapid.IntRange(1, 4).Draw(rt, "host")),
				uint16(rapid.IntRange(0, 3).Draw(rt, "port")))
			e.Mode = rapid.SampledFrom([]policy.Mode{policy.Disable, policy.Strict}).Draw(rt, "mode")
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
	if _, faults := replica.Apply(&wire.EndpointDelta{Complete: true}); faults == nil {
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
			if d.GetReset_() {
				resets++
			}
			if len(d.GetUpserts()) > perDelta {
				t.Errorf("a delta of %d", len(d.GetUpserts()))
			}
			if _, faults := replica.Apply(d); faults != nil {
				t.Fatal(faults)
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

func FuzzEndpoint(f *testing.F) {
	raw, err := proto.Marshal(endpoint(f, "n1", "api", "10.0.0.1", 8080).Wire())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		w := new(wire.Endpoint)
		if proto.Unmarshal(raw, w) != nil {
			return
		}
		e, err := Parse(w)
		if err != nil {
			return
		}
		if !Dialable(e.Address) || e.ID.Role() != identity.RoleWorkload {
			t.Fatalf("%+v", e)
		}
		again, err := Parse(e.Wire())
		if err != nil || !again.Equal(e) {
			t.Fatalf("%+v: %+v, %v", e, again, err)
		}
		NewSet([]Endpoint{e}).Find(netip.AddrPortFrom(e.Address, 80))
	})
}

func FuzzDeltas(f *testing.F) {
	var j Journal
	j.Put(endpoint(f, "n1", "api", "10.0.0.1", 8080))
	raw, err := proto.Marshal(j.Read(new(Reader), true)[0])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		d := new(wire.EndpointDelta)
		if proto.Unmarshal(raw, d) != nil {
			return
		}
		var r Replica
		r.Apply(d)
		r.Apply(d)
		if s, ok := r.Set(); ok != (d.GetReset_() && d.GetComplete()) || s.Len() > len(d.GetUpserts()) {
			t.Fatal(ok, s.Len())
		}
	})
}
