// This file holds the tests of rules, their text and the parsers, which need
// no privilege.

package intercept

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestRulesThatWouldLoopAreRefused(t *testing.T) {
	uid := uint32(1)
	for name, r := range map[string]Rules{
		"neither direction": {},
		"no inbound port":   {Inbound: &Inbound{}},
		"no outbound port":  {Outbound: &Outbound{Owner: Owner{UID: &uid}}},
		"no owner":          {Outbound: &Outbound{To: 15001}},
		"one port":          {Inbound: &Inbound{To: 15001}, Outbound: &Outbound{To: 15001, Owner: Owner{UID: &uid}}},
		"contradiction":     {Inbound: &Inbound{To: 15006, Only: []uint16{80}, Ports: []uint16{80}}},
	} {
		if _, err := (Host{}).Script(r); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestEqualRulesGiveEqualText(t *testing.T) {
	a, b := everything(), everything()
	slices.Reverse(b.Inbound.Ports)
	b.Inbound.Ports = append(b.Inbound.Ports, 22)
	slices.Reverse(b.Inbound.From)
	slices.Reverse(b.Outbound.Dest)
	slices.Reverse(b.Outbound.UIDs)
	for _, tool := range []Tool{NFT, IPTables} {
		one, err := Host{Tool: tool}.Script(a)
		if err != nil {
			t.Fatal(err)
		}
		if two, err := (Host{Tool: tool}).Script(b); err != nil || one != two {
			t.Errorf("%s: %v\n%s\n%s", tool, err, one, two)
		}
	}
}

func TestTheProxysOwnConnectionsPassBeforeAnythingIsRedirected(t *testing.T) {
	for _, tool := range []Tool{NFT, IPTables} {
		text, err := Host{Tool: tool}.Script(everything())
		if err != nil {
			t.Fatal(err)
		}
		own, redirect := strings.Index(text, "15099"), strings.Index(text, "15001")
		if own < 0 || redirect < own {
			t.Errorf("%s: own connections at %d, redirect at %d in\n%s", tool, own, redirect, text)
		}
	}
}

func TestRestoreReplacesWhatIsThere(t *testing.T) {
	installed := []string{":AVAL_INBOUND - [0:0]", ":AVAL_OUTBOUND - [0:0]", inboundJump, outboundJump, outboundJump, "-A AVAL_INBOUND -i lo -j RETURN"}
	got := restoreScript(installed, chainRules(Rules{Inbound: &Inbound{To: 15006}}, false))
	want := `*nat
-D PREROUTING -p tcp -j AVAL_INBOUND
-D OUTPUT -p tcp -j AVAL_OUTBOUND
-D OUTPUT -p tcp -j AVAL_OUTBOUND
:AVAL_INBOUND - [0:0]
-F AVAL_OUTBOUND
-X AVAL_OUTBOUND
-A AVAL_INBOUND -i lo -j RETURN
-A AVAL_INBOUND -m addrtype ! --dst-type LOCAL -j RETURN
-A AVAL_INBOUND -p tcp -j REDIRECT --to-ports 15006
-A PREROUTING -p tcp -j AVAL_INBOUND
COMMIT
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestAConnectionThatCameByItselfIsNotRedirected(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Logf("%s: %v", address, err)
			continue
		}
		defer l.Close()
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if to, err := OriginalDestination(c.(*net.TCPConn)); err != ErrNotRedirected {
			t.Errorf("%s: %v, %v", address, to, err)
		}
	}
}

func TestListenersOfAPort(t *testing.T) {
	text := `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000 15099        0 51 1 0 100 0 0 10 0
   1: 0100007F:3A99 0100007F:A0AA 01 00000000:00000000 00:00000000 00000000     0        0 52 1 0 20 4 30 10 -1
   2: 00000000000000000000000000000000:3A9E 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 7 0 53 1 0 100 0 0 10 0
`
	if got := parseListeners(text, 15001); !slices.Equal(got, []uint32{15099}) {
		t.Errorf("15001: %v", got)
	}
	if got := parseListeners(text, 15006); !slices.Equal(got, []uint32{7}) {
		t.Errorf("15006: %v", got)
	}
}

func FuzzParsePrefix(f *testing.F) {
	for _, seed := range []string{"10.0.0.0/8", "10.0.0.1", "fd00::/8", "::1", "::ffff:1.2.3.4", "::ffff:1.2.3.4/120", "10.0.0.1/8", "fe80::1%eth0", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePrefix(text)
		if err != nil {
			return
		}
		if p != p.Masked() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
			t.Errorf("%q gives %v", text, p)
		}
		if again, err := ParsePrefix(p.String()); err != nil || again != p {
			t.Errorf("%q: %v is read as %v, %v", text, p, again, err)
		}
		// Whatever parses is one word in either tool's language.
		for _, rule := range []string{nftAddress(p, "saddr"), matching("-s", p)} {
			if strings.ContainsAny(rule, "\n;{}\"") {
				t.Errorf("%q gives the rule %q", text, rule)
			}
		}
	})
}

func FuzzParseListeners(f *testing.F) {
	f.Add("0: 0100007F:3A99 00000000:0000 0A 0:0 00:0 0 15099 0 51\n", uint16(15001))
	f.Add("", uint16(0))
	f.Fuzz(func(t *testing.T, text string, port uint16) {
		if n := len(parseListeners(text, port)); n > strings.Count(text, "\n")+1 {
			t.Errorf("%d listeners in %q", n, text)
		}
	})
}

func TestBlocksAreMasked(t *testing.T) {
	in := &Inbound{To: 1, From: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/8"), netip.MustParsePrefix("10.0.0.0/8")}}
	text, err := Host{}.Script(Rules{Inbound: in})
	if err != nil || strings.Count(text, "10.0.0.0/8") != 1 {
		t.Errorf("%v\n%s", err, text)
	}
}
