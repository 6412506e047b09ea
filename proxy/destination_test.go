// This file holds the tests of transparent mode that need no privilege: its
// configuration, its destinations, and the memory of what was dialled.

package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/aval-id/aval/identity"
)

func TestTheNarrowestDestinationWins(t *testing.T) {
	id := func(name string) identity.ID {
		one, err := identity.ParseID("spiffe://example.org/ns/shop/sa/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return one
	}
	var list []Destination
	for i, text := range []string{"10.0.0.0/8", "10.0.0.0/8:443", "10.1.0.0/16", "10.1.2.3", "10.1.2.3:443", "fd00::/8", "[fd00::7]:443", "0.0.0.0/0:25"} {
		target, err := ParseTarget(text)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, Destination{Address: target, ID: id(fmt.Sprint("d", i))})
	}
	d, err := newDestinations(list)
	if err != nil {
		t.Fatal(err)
	}
	for to, want := range map[string]string{
		"10.9.9.9:80": "d0", "10.9.9.9:443": "d1", "10.1.9.9:443": "d2", "10.1.2.3:80": "d3", "10.1.2.3:443": "d4",
		"[fd00::7]:80": "d5", "[fd00::7]:443": "d6", "[fd00::7%3]:443": "d6", "192.0.2.1:25": "d7", "192.0.2.1:26": "", "[2001:db8::1]:25": "",
	} {
		got, ok := d.find(netip.MustParseAddrPort(to))
		if ok != (want != "") || ok && got.ID != id(want) {
			t.Errorf("%s: %v, want %q", to, got.ID, want)
		}
	}
	if _, err := newDestinations(append(list, list[0])); err == nil {
		t.Error("one address twice was accepted")
	}
}

func TestWhatIsDialledForADestination(t *testing.T) {
	to := netip.MustParseAddrPort("[fd00::7]:8080")
	for dial, want := range map[string]string{"": "[fd00::7]:8080", ":8443": "[fd00::7]:8443", "api.shop:8443": "api.shop:8443"} {
		if got := (Destination{Dial: dial}).dial(to); got != want {
			t.Errorf("%q: %s, want %s", dial, got, want)
		}
	}
}

const transparentHead = "agent: /run/a.sock\n"

func TestTransparentConfiguration(t *testing.T) {
	text := transparentHead + `inbound:
- {listen: "0.0.0.0:8443", forward: "127.0.0.1:8080"}
transparent:
  user: "15099"
  group: "0"
  inbound:
    exclude: {ports: [22], sources: [10.0.0.0/8, "fd00::1"]}
    ports: [{port: 3306, protocol: server-first}]
  outbound:
    port: 15011
    destinations:
    - {address: "10.0.0.0/24:8080", id: "spiffe://example.org/api", dial: ":8443"}
    exclude: {uids: [33], ports: [53]}
`
	cfg, err := ParseConfig("p.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	r, err := cfg.Rules()
	if err != nil {
		t.Fatal(err)
	}
	// The port of the explicit listener is left to it.
	if r.Inbound.To != 15006 || !slices.Equal(r.Inbound.Ports, []uint16{22, 8443}) || len(r.Inbound.From) != 2 {
		t.Errorf("inbound rules: %+v", r.Inbound)
	}
	if o := r.Outbound; o.To != 15011 || *o.Owner.UID != 15099 || *o.Owner.GID != 0 || o.UIDs[0] != 33 || o.Ports[0] != 53 {
		t.Errorf("outbound rules: %+v", o)
	}
	if cfg, err = cfg.withDefaults(); err != nil {
		t.Fatal(err)
	}
	in := cfg.Transparent.Inbound
	at := func(port uint16) *Inbound {
		return in.listener(netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), port))
	}
	if at(3306).Protocol != ProtocolServerFirst || at(80).Protocol != ProtocolAuto {
		t.Errorf("ports: %+v", in.Ports)
	}
}

func TestContradictoryTransparentConfigurationIsRefused(t *testing.T) {
	for section, complaint := range map[string]string{
		"{}":                              "neither inbound nor outbound",
		"{outbound: {}}":                  "user or group is missing",
		"{inbound: {forward: elsewhere}}": "neither original nor loopback",
		"{inbound: {ports: [{port: 1}, {port: 1}]}}":                             "missing or repeated",
		"{inbound: {ports: [{port: 1, protocol: x}]}}":                           "none of auto",
		"{inbound: {ports: [{port: 1, protocol: tls, forwardProtocol: h2c}]}}":   "forwardProtocol: has no meaning",
		"{inbound: {ports: [{port: 1, protocol: http, sendProxyProtocol: v1}]}}": "sendProxyProtocol: has no meaning",
		"{inbound: {port: 15001}, outbound: {}, user: x}":                        "both directions",
		"{user: x, outbound: {unknown: maybe}}":                                  "neither passthrough nor refuse",
		"{user: x, outbound: {destinations: [{address: 10.0.0.1}]}}":             "SPIFFE ID is missing",
		"{user: x, outbound: {destinations: [{address: 10.0.0.1:0}]}}":           "no port",
		"{inbound: {exclude: {sources: [10.0.0.1/8]}}}":                          "did you mean 10.0.0.0/8",
		"{inbound: {}, outbounds: {}}":                                           "outbounds",
		`{user: x, outbound: {destinations: [{id: "spiffe://example.org/a"}]}}`:  "address",
	} {
		_, err := ParseConfig("p.yaml", []byte(transparentHead+"transparent: "+section+"\n"))
		if err == nil || !strings.Contains(err.Error(), complaint) {
			t.Errorf("%s: %v", section, err)
		}
	}
}

func TestAProxyOfAnotherUserDoesNotStart(t *testing.T) {
	text := fmt.Sprintf("%stransparent: {user: %q, outbound: {}}\n", transparentHead, fmt.Sprint(os.Geteuid()+1))
	cfg, err := ParseConfig("p.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "would be redirected to it") {
		t.Errorf("New: %v", err)
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, seed := range []string{"10.0.0.7", "10.0.0.7:8080", "10.0.0.0/24:1", "fd00::7", "[fd00::7]", "[fd00::/64]:65535", "[::]:0", ":1", "", "[", "1:2:3"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		target, err := ParseTarget(text)
		if err != nil {
			return
		}
		if again, err := ParseTarget(target.String()); err != nil || again != target {
			t.Errorf("%q: %v is read as %v, %v", text, target, again, err)
		}
	})
}

// However quickly a connection is accepted, whoever accepts it finds that it
// is the proxy's own.
func TestOwnConnectionsAreKnownToWhoeverAcceptsThem(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Logf("%s: %v", address, err)
			continue
		}
		defer l.Close()
		d := &dialled{from: make(map[netip.AddrPort]struct{})}
		const each, workers = 50, 8
		var accepting, dialling sync.WaitGroup
		for range workers {
			dialling.Go(func() {
				for range each {
					c, forget, err := d.dial(t.Context(), net.Dialer{}, l.Addr().String())
					if err != nil {
						t.Error(err)
						l.Close()
						return
					}
					c.Read(make([]byte, 1)) // until the other side has looked
					forget()
					c.Close()
				}
			})
		}
		accepting.Go(func() {
			for range each * workers {
				c, err := l.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				if !d.has(addrOf(c.RemoteAddr())) {
					t.Errorf("%s is not known", c.RemoteAddr())
				}
				c.Close()
			}
		})
		dialling.Wait()
		accepting.Wait()
		if len(d.from) != 0 {
			t.Errorf("%s: %d addresses are remembered for ever", address, len(d.from))
		}
	}
}

func TestAFailedDialIsForgotten(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	d := &dialled{from: make(map[netip.AddrPort]struct{})}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, ctx := range []context.Context{t.Context(), ended} {
		for _, to := range []string{address, "[fe80::1%lo]:1", "no.such.name.invalid:80"} {
			if c, _, err := d.dial(ctx, net.Dialer{}, to); err == nil {
				c.Close()
				t.Errorf("%s answered", to)
			}
		}
	}
	if len(d.from) != 0 {
		t.Errorf("%d addresses are remembered for ever", len(d.from))
	}
}
