// This file holds the tests of the registry of endpoints in a proxy: what it
// makes of it, and what it announces itself.

package proxy

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/directory"
	"github.com/aval-id/aval/identity/directory/protocol"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/proxy/intercept/netnstest"
)

const (
	apiID   = "spiffe://example.org" + apiPath
	otherID = "spiffe://example.org/ns/shop/sa/other"
)

// outboundTo matches records of web's calls to an address.
func outboundTo(to, reason string) func(audit.Event) bool {
	return func(e audit.Event) bool {
		return e.Direction == audit.DirectionOutbound && e.Reason == reason && e.Destination == to
	}
}

func TestTheRegistrySaysWhomToExpect(t *testing.T) {
	w := newWired(t, "nft", "curl")
	whole := at(apiID, "10.77.0.2", 0, "PERMISSIVE")
	whole.Except = []uint32{9090} // or it would have to be mutual TLS there
	w.agent.register(whole, at(otherID, "10.77.0.2", 6060, "STRICT"),
		at(otherID, "10.77.0.2", 6061, "STRICT"), at(apiID, "10.77.0.2", 6061, "STRICT"),
		at(otherID, "10.77.0.2", 9090, "DISABLE"), at(apiID, "fd77::2", 8080, "STRICT"), at(otherID, "10.77.0.2", 5050, "STRICT"))
	w.publish(t, mode("PERMISSIVE")+allow("example.org"+webPath)+rules("plain", "ALLOW", `{to: [{operation: {ports: ["9090", "7071"]}}]}`))
	for _, port := range []string{"8080", "6060", "6061", "7070", "9090", "5050"} {
		serveHTTP(t, w.there, ":"+port)
	}
	setup(t, w.there, w.proxy(t, w.there, w.api.ID, "  inbound: {exclude: {ports: [7070]}}\n"))
	setup(t, w.here, w.proxy(t, w.here, w.web.ID, `  outbound: {destinations: [{address: "10.77.0.2:5050", id: "`+apiID+`"}]}
`))
	call := func(to string) (string, error) {
		at := netip.MustParseAddrPort(to)
		return curl(t, w.here, appUID, at.Addr().String(), int(at.Port()))
	}
	for to, want := range map[string]struct{ reason, server, transport, detail string }{
		"10.77.0.2:8080": {audit.ReasonAllowed, apiID, audit.TransportMTLS, "identity by the registry of endpoints"},
		"[fd77::2]:8080": {audit.ReasonAllowed, apiID, audit.TransportMTLS, "identity by the registry of endpoints"},
		// Several identities share the address: either counts.
		"10.77.0.2:6061": {audit.ReasonAllowed, apiID, audit.TransportMTLS, "identity by the registry of endpoints"},
		// The configuration counts before the registry.
		"10.77.0.2:5050": {audit.ReasonAllowed, apiID, audit.TransportMTLS, "identity by configuration"},
		// Plaintext alone where the mode is DISABLE.
		"10.77.0.2:9090": {audit.ReasonPlaintextAllowed, "", audit.TransportPlaintext, "the registry of endpoints has the mode DISABLE"},
	} {
		if out, err := call(to); err != nil || !strings.Contains(out, "hello") {
			t.Errorf("%s: %v: %s", to, err, out)
			continue
		}
		e := w.agent.waitFor(1, outboundTo(to, want.reason))[0]
		if e.ServerID != want.server || e.Transport != want.transport || !strings.HasPrefix(e.Detail, want.detail) {
			t.Errorf("%s: record %+v", to, e)
		}
	}
	// Another identity than the registered one: nothing, and no second try in
	// plaintext, which the port would take.
	if out, err := call("10.77.0.2:6060"); err == nil {
		t.Errorf("wrong identity: %s", out)
	}
	e := w.agent.waitFor(1, outboundTo("10.77.0.2:6060", audit.ReasonIDMismatch))[0]
	if e.ServerID != apiID || !strings.Contains(e.Detail, "not "+otherID) {
		t.Errorf("record: %+v", e)
	}
	// A registered workload that speaks plaintext after all: nothing.
	w.agent.register(at(apiID, "10.77.0.2", 7070, "STRICT"))
	eventually(t, "the registry has come", func() bool { _, err := call("10.77.0.2:7070"); return err != nil })
	w.agent.mu.Lock()
	for _, e := range w.agent.events {
		if e.Direction == audit.DirectionOutbound && e.Transport == audit.TransportPlaintext && strings.HasSuffix(e.Destination, ":6060") {
			t.Errorf("plaintext: %+v", e)
		}
	}
	w.agent.mu.Unlock()
}

func TestOpenConnectionsOutliveTheirEntryAndNewOnesFollow(t *testing.T) {
	w := newWired(t, "nft", "curl")
	w.agent.register(at(apiID, "10.77.0.2", 0, "STRICT"))
	w.publish(t, mode("STRICT")+allow("example.org"+webPath))
	echo := w.there.Listen(t, ":8080")
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
	setup(t, w.there, w.proxy(t, w.there, w.api.ID, "  inbound: {}\n"))
	setup(t, w.here, w.proxy(t, w.here, w.web.ID, "  outbound: {unknown: refuse}\n"))
	c, err := w.here.Dial(t, "10.77.0.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	say := func(text string) {
		t.Helper()
		fmt.Fprintln(c, text)
		if got, err := readLine(c, nil); err != nil || got != text {
			t.Fatalf("%q, %v", got, err)
		}
	}
	say("one")
	w.agent.register()
	eventually(t, "a new connection is refused", func() bool {
		c, err := w.here.Dial(t, "10.77.0.2:8080")
		if err != nil {
			return true
		}
		fmt.Fprintln(c, "x")
		_, err = readLine(c, nil)
		return err != nil
	})
	w.agent.waitFor(1, outboundTo("10.77.0.2:8080", audit.ReasonPlaintextRefused))
	say("two")
	// The agent goes, and what was known stays known.
	w.agent.register(at(apiID, "10.77.0.2", 8080, "STRICT"))
	works := func() bool {
		c, err := w.here.Dial(t, "10.77.0.2:8080")
		if err != nil {
			return false
		}
		fmt.Fprintln(c, "x")
		got, err := readLine(c, nil)
		return err == nil && got == "x"
	}
	eventually(t, "the entry is back", works)
	w.agent.stop()
	if !works() {
		t.Error("the registry went with the agent")
	}
	say("three")
}

func TestUntilTheRegistryHasComeNobodyIsTakenForUnknown(t *testing.T) {
	r := registry{first: make(chan struct{}), resolved: map[netip.AddrPort]*resolution{}}
	to := netip.MustParseAddrPort("10.0.0.1:80")
	if _, _, known := r.find(t.Context(), to, time.Millisecond); known {
		t.Error("known before anything came")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, known := r.find(ctx, to, time.Hour); known {
		t.Error("known after the end")
	}
	found := make(chan bool)
	go func() {
		_, registered, known := r.find(t.Context(), to, time.Minute)
		found <- registered && known
	}()
	e, err := protocol.ToEndpoint(at(apiID, "10.0.0.1", 80, "STRICT"))
	if err != nil {
		t.Fatal(err)
	}
	r.take(directory.NewSet([]directory.Endpoint{e}), 1)
	if !<-found {
		t.Error("who waited was not told")
	}
	r.take(nil, 2)
	if _, registered, known := r.find(t.Context(), to, time.Millisecond); registered || !known {
		t.Error("an empty registry")
	}
	// What status shows is bounded.
	for i := range 2 * maxResolved {
		r.note(netip.AddrPortFrom(to.Addr(), uint16(i+1)), originUnknown, nil, false, time.Unix(int64(i), 0))
	}
	if all := r.describe(); len(all) != maxResolved || all[0].Address != fmt.Sprintf("10.0.0.1:%d", 2*maxResolved) {
		t.Errorf("%d destinations, the newest %s", len(all), all[0].Address)
	}
}

func TestWhatAProxyAnnounces(t *testing.T) {
	w := newWired(t, "nft")
	w.agent.register()
	ports := `
---
apiVersion: aval.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: ports, namespace: shop}
spec: {selector: {matchLabels: {app: api}}, mtls: {mode: STRICT}, portLevelMtls: {9000: {mode: DISABLE}}}
`
	w.publish(t, "")
	w.proxy(t, w.there, w.api.ID, "  inbound: {exclude: {ports: [22]}}\ninbound:\n- {listen: \":8443\", forward: \"127.0.0.1:1\", port: 9000, protocol: http}\n"+
		"- {listen: \"127.0.0.1:8444\", forward: \"127.0.0.1:1\"}\n"+
		"- {listen: \":8445\", forward: \"127.0.0.1:1\", proxyProtocol: require, trustedProxies: [10.0.0.0/8]}\nannounce: {addresses: [10.9.9.9]}\n")
	text := func(all []*wire.Endpoint) string {
		var out []string
		for _, e := range all {
			out = append(out, fmt.Sprintf("%s|%d %s %s%v%v", e.Address, e.Port, e.Mode, e.Protocol, e.Except, e.PortModes))
		}
		return strings.Join(out, "\n")
	}
	want := `10.77.0.2|8443 PERMISSIVE http[]map[]
fd77::2|8443 PERMISSIVE http[]map[]
10.9.9.9|8443 PERMISSIVE http[]map[]
10.77.0.2|0 PERMISSIVE auto[22 8443 8444 8445]map[]
fd77::2|0 PERMISSIVE auto[22 8443 8444 8445]map[]
10.9.9.9|0 PERMISSIVE auto[22 8443 8444 8445]map[]`
	w.agent.awaitAnnounced(t, "the announcement", func(all []*wire.Endpoint) bool { return text(all) == want })
	// Policies change, and the announcement says the modes in force.
	w.publish(t, ports)
	strict := strings.ReplaceAll(strings.ReplaceAll(want, "PERMISSIVE auto", "STRICT auto"), "8445]map[]", "8445]map[9000:DISABLE]")
	strict = strings.ReplaceAll(strict, "PERMISSIVE http", "DISABLE http")
	w.agent.awaitAnnounced(t, "the new modes", func(all []*wire.Endpoint) bool { return text(all) == strict })
	// So it does when the machine gets another address.
	if out, err := w.there.Output(t, 0, "ip", "address", "add", "10.77.0.7/24", "dev", "veth0"); err != nil {
		t.Fatal(err, out)
	}
	w.agent.awaitAnnounced(t, "the new address", func(all []*wire.Endpoint) bool { return strings.Contains(text(all), "10.77.0.7|8443 DISABLE") })
	// An agent that comes back hears it again.
	w.agent.stop()
	w.agent.start()
	if err := os.Chmod(w.agent.socket, 0o777); err != nil {
		t.Fatal(err)
	}
	w.agent.awaitAnnounced(t, "the announcement to a new agent", func(all []*wire.Endpoint) bool { return len(all) == 8 })
}

func TestOnlyTheInterceptedPortsAreAnnouncedAndNothingThatIsLeftOut(t *testing.T) {
	w := newWired(t, "nft")
	w.agent.register()
	w.publish(t, mode("STRICT"))
	w.proxy(t, w.there, w.api.ID, "  inbound: {only: [80, 443, 22], exclude: {ports: [22]}, ports: [{port: 443, protocol: tls, alpn: [h2]}]}\nannounce: {within: [fd00::/8]}\n")
	w.agent.awaitAnnounced(t, "the ports", func(all []*wire.Endpoint) bool {
		return len(all) == 2 && all[0].Address == "fd77::2" && all[0].Port == 80 && all[0].Protocol == "auto" &&
			all[1].Port == 443 && all[1].Protocol == "tls" && all[1].Alpn[0] == "h2"
	})
}

func TestAProxyThatDrainsIsAnnouncedNoMore(t *testing.T) {
	_, there := netnstest.Pair(t)
	s := newScene(t)
	s.agent.register()
	s.publish(t, "")
	app := listenTCP(t)
	p, stop := runProxy(t, Config{Agent: s.agent.socket, Identity: s.api.ID, Limits: Limits{Drain: time.Minute},
		Announce: Announce{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
		Sockets:  []Socket{{Listener: there.Listen(t, ":8443")}},
		Inbound:  []Inbound{{Listen: ":8443", Forward: app.Addr().String()}}})
	s.agent.awaitAnnounced(t, "the announcement", func(all []*wire.Endpoint) bool { return len(all) > 0 && all[len(all)-1].Address == "192.0.2.1" })
	held, err := there.Dial(t, "10.77.0.2:8443") // keeps the drain going
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the connection is open", func() bool { return p.Status().Open == 1 })
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	s.agent.awaitAnnounced(t, "the announcement is taken back", nil)
	select {
	case <-p.Draining():
	default:
		t.Error("it does not drain")
	}
	held.Close()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestContradictoryAnnouncementsAreRefused(t *testing.T) {
	for section, complaint := range map[string]string{
		"{off: true, addresses: [10.0.0.1]}": "off announces no address",
		"{addresses: [127.0.0.1]}":           "none that others can dial",
		"{addresses: [10.0.0.0/8]}":          "",
		"{within: [10.0.0.1/8]}":             "did you mean 10.0.0.0/8",
		"{elsewhere: true}":                  "elsewhere",
	} {
		_, err := ParseConfig("p.yaml", []byte("agent: /a\ninbound: [{listen: \":1\", forward: \"127.0.0.1:2\"}]\nannounce: "+section+"\n"))
		if err == nil || !strings.Contains(err.Error(), complaint) {
			t.Errorf("%s: %v", section, err)
		}
	}
}
