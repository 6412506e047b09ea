// This file holds the tests of endpoints on the wire.

package protocol

import (
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/directory"
	"github.com/aval-id/aval/identity/wire"
)

func endpoint(t testing.TB, node, workload, address string, port uint16) directory.Endpoint {
	t.Helper()
	id := func(path string) identity.ID {
		v, err := identity.ParseID("spiffe://example.org" + path)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	return directory.Endpoint{Key: directory.Key{Node: id("/aval/node/" + node), ID: id("/ns/shop/sa/" + workload), Address: netip.MustParseAddr(address), Port: port},
		Registration: "shop/" + workload, Mode: "PERMISSIVE"}
}

func TestWhatAnEndpointPrintsItParses(t *testing.T) {
	e := endpoint(t, "n1", "api", "10.0.0.1", 0)
	e.Except, e.PortModes, e.Protocol, e.ALPN = []uint16{22, 8443}, map[uint16]string{80: directory.Disable}, "auto", []string{"h2"}
	for _, e := range []directory.Endpoint{e, endpoint(t, "n1", "api", "fd00::1", 8080)} {
		if got, err := ToEndpoint(FromEndpoint(e)); err != nil || !got.Equal(e) {
			t.Errorf("%+v: %+v, %v", e, got, err)
		}
	}
}

func TestEndpointsBeyondTheirBoundsAreRefused(t *testing.T) {
	many := make([]uint32, directory.MaxPorts+1)
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
		w := FromEndpoint(endpoint(t, "n1", "api", "10.0.0.1", 8080))
		change(w)
		if e, err := ToEndpoint(w); err == nil {
			t.Errorf("%s: taken as %+v", name, e)
		}
	}
}

func TestAModeOfTheFutureNeverMeansPlaintext(t *testing.T) {
	for _, mode := range []string{"", "UNSET", "QUANTUM"} {
		w := FromEndpoint(endpoint(t, "n1", "api", "10.0.0.1", 8080))
		w.Mode = mode
		if e, err := ToEndpoint(w); err != nil || !e.Mutual(8080) {
			t.Errorf("mode %q: %+v, %v", mode, e, err)
		}
	}
}

func FuzzEndpoint(f *testing.F) {
	raw, err := proto.Marshal(FromEndpoint(endpoint(f, "n1", "api", "10.0.0.1", 8080)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		w := new(wire.Endpoint)
		if proto.Unmarshal(raw, w) != nil {
			return
		}
		e, err := ToEndpoint(w)
		if err != nil {
			return
		}
		if !directory.Dialable(e.Address) || e.ID.Role() != identity.RoleWorkload {
			t.Fatalf("%+v", e)
		}
		again, err := ToEndpoint(FromEndpoint(e))
		if err != nil || !again.Equal(e) {
			t.Fatalf("%+v: %+v, %v", e, again, err)
		}
		directory.NewSet([]directory.Endpoint{e}).Find(netip.AddrPortFrom(e.Address, 80))
	})
}

func FuzzDeltas(f *testing.F) {
	var j directory.Journal
	j.Put(endpoint(f, "n1", "api", "10.0.0.1", 8080))
	raw, err := proto.Marshal(FromEndpointDelta(j.Read(new(directory.Reader), true)[0]))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		d := new(wire.EndpointDelta)
		if proto.Unmarshal(raw, d) != nil {
			return
		}
		var r directory.Replica
		parsed, _ := ToEndpointDelta(d)
		r.Apply(parsed)
		r.Apply(parsed)
		if s, ok := r.Set(); ok != (d.GetReset_() && d.GetComplete()) || s.Len() > len(d.GetUpserts()) {
			t.Fatal(ok, s.Len())
		}
	})
}
