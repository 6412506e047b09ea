// This file holds the tests of Setup, Cleanup and Check in real network
// namespaces, with both tools.

package intercept

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aval-id/aval/proxy/intercept/netnstest"
)

// everything is rules of every kind.
func everything() Rules {
	uid, gid := uint32(15099), uint32(15098)
	return Rules{
		Inbound: &Inbound{To: 15006, Ports: []uint16{8443, 22}, From: []netip.Prefix{
			netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("10.8.0.1/32"), netip.MustParsePrefix("fd09::/32"), netip.MustParsePrefix("fd08::1/128")}},
		Outbound: &Outbound{To: 15001, Owner: Owner{UID: &uid, GID: &gid}, Ports: []uint16{53}, UIDs: []uint32{33, 7}, Dest: []netip.Prefix{
			netip.MustParsePrefix("169.254.169.254/32"), netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:96::/108")}},
	}
}

// redirecting is rules for both directions without exclusions, for a proxy
// that is uid 15099.
func redirecting() Rules {
	uid := uint32(15099)
	return Rules{Inbound: &Inbound{To: 15006}, Outbound: &Outbound{To: 15001, Owner: Owner{UID: &uid}}}
}

func eachTool(t *testing.T, f func(t *testing.T, h Host, here, there *netnstest.Machine)) {
	for tool, needs := range map[Tool]string{NFT: "nft", IPTables: "iptables-restore"} {
		t.Run(string(tool), func(t *testing.T) {
			here, there := netnstest.Pair(t, needs)
			f(t, Host{Namespace: here.Name, Tool: tool}, here, there)
		})
	}
	t.Run("iptables-legacy", func(t *testing.T) {
		here, there := netnstest.Pair(t, "xtables-legacy-multi")
		legacy(t, here)
		f(t, Host{Namespace: here.Name, Tool: IPTables}, here, there)
	})
}

// legacy makes iptables the one of before nftables for this test, as it is
// where an administrator chose it.
func legacy(t *testing.T, m *netnstest.Machine) {
	t.Helper()
	multi, err := find("xtables-legacy-multi")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, act := range []string{"", "-save", "-restore"} {
			if err := os.Symlink(multi, filepath.Join(dir, family+act)); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	if out, err := m.Command(t.Context(), "iptables", "-t", "nat", "-S").CombinedOutput(); err != nil {
		t.Skipf("the kernel has no ip_tables: %s", out)
	}
}

// ruleset is all that the kernel holds for the machine, in both tools' words,
// without counters.
func ruleset(t *testing.T, m *netnstest.Machine) string {
	t.Helper()
	var out strings.Builder
	for _, args := range [][]string{{"nft", "list", "ruleset"}, {"iptables-save"}, {"ip6tables-save"}} {
		if _, err := find(args[0]); err != nil {
			continue
		}
		text, err := m.Command(t.Context(), args[0], args[1:]...).Output()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ":") {
				out.WriteString(line)
			}
		}
	}
	return out.String()
}

func TestWhatIsInstalledReadsAsItWasWritten(t *testing.T) {
	eachTool(t, func(t *testing.T, h Host, _, _ *netnstest.Machine) {
		only := redirecting()
		only.Inbound.Only = []uint16{443, 80}
		whole := redirecting()
		whole.Inbound.From = []netip.Prefix{netip.MustParsePrefix("::/0")}
		whole.Outbound.Dest = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
		for name, r := range map[string]Rules{
			"everything": everything(), "both": redirecting(), "only": only, "whole family": whole,
			"inbound": {Inbound: everything().Inbound}, "outbound": {Outbound: everything().Outbound},
		} {
			for range 2 { // the second finds the first's
				if tool, err := h.Setup(t.Context(), r); err != nil || tool != h.Tool {
					t.Fatalf("%s: %v, by %s", name, err, tool)
				}
			}
			found, err := h.Check(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			if f := found[0]; f.Check != "rules" || !f.OK {
				t.Errorf("%s: %s", name, f.Detail)
			}
		}
	})
}

func TestCleanupRemovesExactlyWhatSetupMade(t *testing.T) {
	eachTool(t, func(t *testing.T, h Host, here, _ *netnstest.Machine) {
		// What others have is of the same tool and hangs on the same hooks.
		if h.Tool == NFT {
			others := "table inet other {\n chain out {\n type nat hook output priority -100; policy accept;\n tcp dport 99 redirect to :98\n }\n}\n"
			cmd := here.Command(t.Context(), "nft", "-f", "-")
			cmd.Stdin = strings.NewReader(others)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		} else {
			for _, command := range []string{"iptables", "ip6tables"} {
				for _, chain := range []string{"PREROUTING", "OUTPUT"} {
					if out, err := here.Command(t.Context(), command, "-t", "nat", "-A", chain, "-p", "tcp", "--dport", "99", "-j", "REDIRECT", "--to-ports", "98").CombinedOutput(); err != nil {
						t.Fatalf("%v: %s", err, out)
					}
				}
			}
		}
		before := ruleset(t, here)
		if !strings.Contains(before, "99") {
			t.Fatalf("others' rules are not there:\n%s", before)
		}
		for range 3 {
			if _, err := h.Setup(t.Context(), everything()); err != nil {
				t.Fatal(err)
			}
		}
		if during := ruleset(t, here); during == before {
			t.Error("Setup changed nothing")
		}
		if removed, err := h.Cleanup(t.Context()); err != nil || len(removed) != 1 || removed[0] != h.Tool {
			t.Errorf("Cleanup: %v, removed %v", err, removed)
		}
		if after := ruleset(t, here); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		if removed, err := h.Cleanup(t.Context()); err != nil || len(removed) != 0 {
			t.Errorf("second Cleanup: %v, removed %v", err, removed)
		}
	})
}

func TestSetupWithOneToolReplacesTheOther(t *testing.T) {
	here, _ := netnstest.Pair(t, "nft", "iptables-restore")
	for _, tool := range []Tool{IPTables, NFT, IPTables} {
		h := Host{Namespace: here.Name, Tool: tool}
		if _, err := h.Setup(t.Context(), everything()); err != nil {
			t.Fatal(err)
		}
		found, err := h.Check(t.Context(), everything())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			if f.Check == "rules" && !f.OK || f.Check == string(NFT) || f.Check == string(IPTables) {
				t.Errorf("%s: %+v", tool, f)
			}
		}
	}
}

func TestCheckNamesWhatIsMissingAndWhatIsTooMuch(t *testing.T) {
	here, _ := netnstest.Pair(t, "nft")
	h := Host{Namespace: here.Name, Tool: NFT}
	finding := func(check string) Finding {
		t.Helper()
		found, err := h.Check(t.Context(), redirecting())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			if f.Check == check {
				return f
			}
		}
		t.Fatalf("no finding %q", check)
		return Finding{}
	}
	if f := finding("rules"); f.OK || !strings.Contains(f.Detail, "nothing is intercepted") || f.Hint == "" {
		t.Errorf("without rules: %+v", f)
	}
	if _, err := h.Setup(t.Context(), redirecting()); err != nil {
		t.Fatal(err)
	}
	if out, err := here.Command(t.Context(), "nft", "insert rule inet aval outbound tcp dport 25 accept").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if f := finding("rules"); f.OK || f.Detail != "not of these settings: tcp dport 25 accept" {
		t.Errorf("with another's rule: %+v", f)
	}
	if out, err := here.Command(t.Context(), "nft", "flush chain inet aval outbound").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if f := finding("rules"); f.OK || !strings.Contains(f.Detail, "missing: meta skuid 15099 return") {
		t.Errorf("without the proxy's user: %+v", f)
	}
	if f := finding("outbound port"); f.OK || !strings.Contains(f.Detail, "nothing listens on 15001") {
		t.Errorf("without a proxy: %+v", f)
	}
	here.Listen(t, "127.0.0.1:15001")
	if f := finding("outbound port"); f.OK || !strings.Contains(f.Detail, "runs as uid 0") {
		t.Errorf("with a proxy of another user: %+v", f)
	}
	here.Listen(t, ":15006")
	if f := finding("inbound port"); !f.OK {
		t.Errorf("with a proxy: %+v", f)
	}
}

// answering tells each client where its connection was going.
func answering(t *testing.T, m *netnstest.Machine, address string) {
	l := m.Listen(t, address)
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			to, err := OriginalDestination(c)
			if err != nil {
				fmt.Fprintln(c, err)
			} else {
				fmt.Fprintln(c, to)
			}
			c.Close()
		}
	}()
}

func answer(c net.Conn, err error) (string, error) {
	if err != nil {
		return "", err
	}
	defer c.Close()
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

func TestOriginalDestinationSurvivesTheRedirect(t *testing.T) {
	eachTool(t, func(t *testing.T, h Host, here, there *netnstest.Machine) {
		r := redirecting()
		r.Inbound.Ports, r.Outbound.Ports = []uint16{22}, []uint16{23}
		r.Outbound.Dest = []netip.Prefix{netip.MustParsePrefix("10.77.0.128/25")}
		if _, err := h.Setup(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		answering(t, here, ":15006")
		answering(t, here, "127.0.0.1:15001")
		answering(t, here, "[::1]:15001")
		answering(t, here, ":22")
		answering(t, there, ":23")
		for i, address := range here.Addresses() {
			in := net.JoinHostPort(address, "8080")
			if got, err := answer(there.Dial(t, in)); err != nil || got != in {
				t.Errorf("inbound to %s: %q, %v", in, got, err)
			}
			// Ports that are left alone, and the proxy's own, arrive by themselves.
			for _, port := range []string{"22", "15006"} {
				if got, err := answer(there.Dial(t, net.JoinHostPort(address, port))); err != nil || got != ErrNotRedirected.Error() {
					t.Errorf("inbound to port %s of %s: %q, %v", port, address, got, err)
				}
			}
			// On the machine itself nothing is redirected.
			if got, err := answer(here.Dial(t, net.JoinHostPort(address, "22"))); err != nil || got != ErrNotRedirected.Error() {
				t.Errorf("local to %s: %q, %v", address, got, err)
			}
			out := net.JoinHostPort(there.Addresses()[i], "8080")
			if got, err := answer(here.Dial(t, out)); err != nil || got != out {
				t.Errorf("outbound to %s: %q, %v", out, got, err)
			}
			left := net.JoinHostPort(there.Addresses()[i], "23")
			if got, err := answer(here.Dial(t, left)); err != nil || got != ErrNotRedirected.Error() {
				t.Errorf("outbound to %s: %q, %v", left, got, err)
			}
		}
		if out, err := there.Command(t.Context(), "ip", "address", "add", "10.77.0.130/24", "dev", "veth0").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		answering(t, there, "10.77.0.130:8080")
		if got, err := answer(here.Dial(t, "10.77.0.130:8080")); err != nil || got != ErrNotRedirected.Error() {
			t.Errorf("to an excluded destination: %q, %v", got, err)
		}
	})
}

func TestTrafficThatIsOnlyRoutedPasses(t *testing.T) {
	eachTool(t, func(t *testing.T, h Host, router, client *netnstest.Machine) {
		// A second network behind the router, with one server.
		run := func(m *netnstest.Machine, args ...string) {
			t.Helper()
			if out, err := m.Command(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v: %s", args, err, out)
			}
		}
		_, server := netnstest.Pair(t)
		run(server, "ip", "address", "flush", "dev", "veth0")
		run(router, "ip", "link", "add", "veth1", "type", "veth", "peer", "name", "veth1", "netns", server.Name)
		run(router, "ip", "address", "add", "10.78.0.1/24", "dev", "veth1")
		run(router, "ip", "link", "set", "veth1", "up")
		run(router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
		run(server, "ip", "address", "add", "10.78.0.2/24", "dev", "veth1")
		run(server, "ip", "link", "set", "veth1", "up")
		run(server, "ip", "route", "add", client.IPv4+"/32", "via", "10.78.0.1")
		run(client, "ip", "route", "add", "10.78.0.0/24", "via", router.IPv4)
		if _, err := h.Setup(t.Context(), redirecting()); err != nil {
			t.Fatal(err)
		}
		answering(t, server, ":8080")
		answering(t, router, ":15006")
		if got, err := answer(client.Dial(t, "10.78.0.2:8080")); err != nil || got != ErrNotRedirected.Error() {
			t.Errorf("routed: %q, %v", got, err)
		}
		if got, err := answer(client.Dial(t, "10.78.0.1:8080")); err != nil || got != "10.78.0.1:8080" {
			t.Errorf("to the router itself: %q, %v", got, err)
		}
	})
}

// What was open before the rules stays as it is whatever comes, and what was
// redirected outlives new rules.
func TestOpenConnectionsOutliveSetup(t *testing.T) {
	eachTool(t, func(t *testing.T, h Host, here, there *netnstest.Machine) {
		l := here.Listen(t, ":8080")
		var open []*net.TCPConn
		connect := func() {
			t.Helper()
			c, err := there.Dial(t, "10.77.0.1:8080")
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, c)
		}
		connect()
		if _, err := h.Setup(t.Context(), redirecting()); err != nil {
			t.Fatal(err)
		}
		proxy := here.Listen(t, ":15006")
		connect()
		var served []net.Conn
		for _, listener := range []*net.TCPListener{l, proxy} {
			c, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			served = append(served, c)
		}
		if _, err := h.Setup(t.Context(), everything()); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(served[1], "still here")
		if got, err := answer(open[1], nil); err != nil || got != "still here" {
			t.Errorf("redirected, after another Setup: %q, %v", got, err)
		}
		if _, err := h.Cleanup(t.Context()); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(served[0], "still here")
		if got, err := answer(open[0], nil); err != nil || got != "still here" {
			t.Errorf("older than the rules, after Cleanup: %q, %v", got, err)
		}
	})
}

func TestANamespaceThatIsNotThereIsNamed(t *testing.T) {
	for _, name := range []string{"no-such-namespace", "../x", "/proc/none/ns/net"} {
		_, err := Host{Namespace: name}.Setup(t.Context(), redirecting())
		if errors.Is(err, ErrNoTool) {
			t.Skip(err)
		}
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
