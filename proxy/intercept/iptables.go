// This file holds the rules as two chains of the nat table, written the way
// iptables-save prints them, and what is asked of the iptables commands.

package intercept

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"strings"
)

const (
	inboundChain  = "AVAL_INBOUND"
	outboundChain = "AVAL_OUTBOUND"
	inboundJump   = "-A PREROUTING -p tcp -j " + inboundChain
	outboundJump  = "-A OUTPUT -p tcp -j " + outboundChain
)

// family is one of the two commands, which know one address family each.
type family struct {
	save, restore string
	six           bool
}

// families returns the commands that this kernel has a use for.
func families() []family {
	all := []family{{"iptables-save", "iptables-restore", false}}
	if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil {
		all = append(all, family{"ip6tables-save", "ip6tables-restore", true})
	}
	return all
}

// chainRules are the rules of one family in the words of iptables-save.
func chainRules(r Rules, six bool) []string {
	var out []string
	add := func(words ...string) { out = append(out, "-A "+strings.Join(words, " ")) }
	if in := r.Inbound; in != nil {
		add(inboundChain, "-i lo -j RETURN")
		add(inboundChain, "-m addrtype ! --dst-type LOCAL -j RETURN")
		for _, p := range in.Ports {
			add(inboundChain, "-p tcp -m tcp --dport", number(p), "-j RETURN")
		}
		for _, p := range ofFamily(in.From, six) {
			add(inboundChain, matching("-s", p)+"-j RETURN")
		}
		for _, p := range in.Only {
			add(inboundChain, "-p tcp -m tcp --dport", number(p), "-j REDIRECT --to-ports", number(in.To))
		}
		if len(in.Only) == 0 {
			add(inboundChain, "-p tcp -j REDIRECT --to-ports", number(in.To))
		}
		out = append(out, inboundJump)
	}
	if to := r.Outbound; to != nil {
		if to.Owner.UID != nil {
			add(outboundChain, "-m owner --uid-owner", number(*to.Owner.UID), "-j RETURN")
		}
		if to.Owner.GID != nil {
			add(outboundChain, "-m owner --gid-owner", number(*to.Owner.GID), "-j RETURN")
		}
		add(outboundChain, "-m addrtype --dst-type LOCAL -j RETURN")
		for _, u := range to.UIDs {
			add(outboundChain, "-m owner --uid-owner", number(u), "-j RETURN")
		}
		for _, p := range to.Ports {
			add(outboundChain, "-p tcp -m tcp --dport", number(p), "-j RETURN")
		}
		for _, p := range ofFamily(to.Dest, six) {
			add(outboundChain, matching("-d", p)+"-j RETURN")
		}
		add(outboundChain, "-p tcp -j REDIRECT --to-ports", number(to.To))
		out = append(out, outboundJump)
	}
	return out
}

// matching is the match of a block; iptables-save prints none for a block of
// every address.
func matching(side string, p netip.Prefix) string {
	if p.Bits() == 0 {
		return ""
	}
	return side + " " + p.String() + " "
}

func ofFamily(all []netip.Prefix, six bool) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(all), func(p netip.Prefix) bool { return p.Addr().Is6() != six })
}

// restoreScript takes what is installed away and puts the rules in its place,
// in one transaction for the family.
func restoreScript(installed, rules []string) string {
	var b strings.Builder
	b.WriteString("*nat\n")
	for _, rule := range installed {
		if isJump(rule) {
			b.WriteString("-D" + strings.TrimPrefix(rule, "-A") + "\n")
		}
	}
	for _, chain := range []string{inboundChain, outboundChain} {
		has := func(rules []string) bool {
			return slices.ContainsFunc(rules, func(s string) bool { return mentions(s, chain) })
		}
		switch {
		case has(rules):
			b.WriteString(":" + chain + " - [0:0]\n") // makes it, or empties it
		case has(installed):
			b.WriteString("-F " + chain + "\n-X " + chain + "\n")
		}
	}
	for _, rule := range rules {
		b.WriteString(rule + "\n")
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// mentions reports whether a line of iptables-save belongs to a chain.
func mentions(line, chain string) bool {
	return slices.Contains(strings.Fields(strings.TrimPrefix(line, ":")), chain)
}

func isJump(line string) bool {
	return strings.HasPrefix(line, "-A ") && (strings.HasSuffix(line, "-j "+inboundChain) || strings.HasSuffix(line, "-j "+outboundChain))
}

// iptables is the iptables commands.
type iptables struct{ run runner }

func (t iptables) tool() Tool { return IPTables }

// ours returns this package's lines of the nat table of one family, chain
// declarations included.
func (t iptables) ours(ctx context.Context, f family) ([]string, error) {
	// Without -t only tables that exist are read, and none is made.
	text, err := t.run(ctx, "", f.save)
	if err != nil {
		return nil, err
	}
	var out []string
	inNAT := false
	for _, line := range lines(text) {
		switch {
		case strings.HasPrefix(line, "*"):
			inNAT = line == "*nat"
		case inNAT && (mentions(line, inboundChain) || mentions(line, outboundChain)):
			out = append(out, line)
		}
	}
	return out, nil
}

func (t iptables) apply(ctx context.Context, r Rules) error {
	for _, f := range families() {
		installed, err := t.ours(ctx, f)
		if err != nil {
			return err
		}
		script := restoreScript(installed, chainRules(r, f.six))
		if _, err := t.run(ctx, script, f.restore, "--noflush"); err != nil {
			return err
		}
	}
	return nil
}

// installed returns the rules of both families, each line named by its
// family.
func (t iptables) installed(ctx context.Context) ([]string, error) {
	var out []string
	for _, f := range families() {
		all, err := t.ours(ctx, f)
		if err != nil {
			return nil, err
		}
		for _, line := range all {
			if strings.HasPrefix(line, "-A") {
				out = append(out, prefixed(f, line))
			}
		}
	}
	return byChain(out), nil
}

func (t iptables) wanted(r Rules) []string {
	var out []string
	for _, f := range families() {
		for _, rule := range chainRules(r, f.six) {
			out = append(out, prefixed(f, rule))
		}
	}
	return byChain(out)
}

func prefixed(f family, line string) string {
	if f.six {
		return "ip6tables " + line
	}
	return "iptables " + line
}

// byChain orders rules by command and chain and keeps their order within a
// chain, which is the one that counts.
func byChain(rules []string) []string {
	slices.SortStableFunc(rules, func(a, b string) int {
		return slices.Compare(strings.Fields(a)[:3], strings.Fields(b)[:3])
	})
	return rules
}

func (t iptables) remove(ctx context.Context) (bool, error) {
	removed := false
	for _, f := range families() {
		installed, err := t.ours(ctx, f)
		if err != nil {
			return removed, err
		}
		if len(installed) == 0 {
			continue
		}
		if _, err := t.run(ctx, restoreScript(installed, nil), f.restore, "--noflush"); err != nil {
			return removed, err
		}
		removed = true
	}
	return removed, nil
}
