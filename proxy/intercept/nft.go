// This file holds the rules as an nftables table, written the way nft lists
// them, and what is asked of the nft command.

package intercept

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

const nftTable = "table inet aval"

// nftScript replaces the table by one with these rules, in one transaction.
// Adding the table first makes the deletion hold where there is none.
func nftScript(r Rules) string {
	return nftTable + "\ndelete " + nftTable + "\n" + nftText(r)
}

// nftText is the table as nft lists it.
func nftText(r Rules) string {
	var b strings.Builder
	b.WriteString(nftTable + " {\n")
	if r.Inbound != nil {
		nftChain(&b, "inbound", "type nat hook prerouting priority dstnat; policy accept;", nftInbound(r.Inbound))
	}
	if r.Inbound != nil && r.Outbound != nil {
		b.WriteString("\n")
	}
	if r.Outbound != nil {
		nftChain(&b, "outbound", "type nat hook output priority -100; policy accept;", nftOutbound(r.Outbound))
	}
	b.WriteString("}\n")
	return b.String()
}

func nftChain(b *strings.Builder, name, hook string, rules []string) {
	fmt.Fprintf(b, "\tchain %s {\n\t\t%s\n", name, hook)
	for _, r := range rules {
		fmt.Fprintf(b, "\t\t%s\n", r)
	}
	b.WriteString("\t}\n")
}

func nftInbound(in *Inbound) []string {
	rules := []string{
		"meta l4proto != tcp return",
		`iifname "lo" return`,
		`fib daddr type != local return comment "only routed through"`,
	}
	for _, p := range in.Ports {
		rules = append(rules, fmt.Sprintf(`tcp dport %d return comment "excluded port"`, p))
	}
	for _, p := range in.From {
		rules = append(rules, nftAddress(p, "saddr")+` return comment "excluded source"`)
	}
	to := fmt.Sprintf(" redirect to :%d", in.To)
	if len(in.Only) == 0 {
		return append(rules, "meta l4proto tcp"+to)
	}
	for _, p := range in.Only {
		rules = append(rules, fmt.Sprintf("tcp dport %d%s", p, to))
	}
	return rules
}

func nftOutbound(out *Outbound) []string {
	rules := []string{"meta l4proto != tcp return"}
	if out.Owner.UID != nil {
		rules = append(rules, fmt.Sprintf(`meta skuid %d return comment "the proxy itself"`, *out.Owner.UID))
	}
	if out.Owner.GID != nil {
		rules = append(rules, fmt.Sprintf(`meta skgid %d return comment "the proxy itself"`, *out.Owner.GID))
	}
	rules = append(rules, `fib daddr type local return comment "stays here"`)
	for _, u := range out.UIDs {
		rules = append(rules, fmt.Sprintf(`meta skuid %d return comment "excluded user"`, u))
	}
	for _, p := range out.Ports {
		rules = append(rules, fmt.Sprintf(`tcp dport %d return comment "excluded port"`, p))
	}
	for _, p := range out.Dest {
		rules = append(rules, nftAddress(p, "daddr")+` return comment "excluded destination"`)
	}
	return append(rules, fmt.Sprintf("meta l4proto tcp redirect to :%d", out.To))
}

// nftAddress matches a block. A block of every address is a match on the
// family, since nft lists no length of zero.
func nftAddress(p netip.Prefix, side string) string {
	family, name := "ip", "ipv4"
	if p.Addr().Is6() {
		family, name = "ip6", "ipv6"
	}
	switch {
	case p.Bits() == 0:
		return "meta nfproto " + name
	case p.IsSingleIP():
		return family + " " + side + " " + p.Addr().String()
	}
	return family + " " + side + " " + p.String()
}

// nft is the nft command.
type nft struct{ run runner }

func (n nft) tool() Tool { return NFT }

func (n nft) apply(ctx context.Context, r Rules) error {
	_, err := n.run(ctx, nftScript(r), "nft", "-f", "-")
	return err
}

// installed returns the table's lines; none where it is absent.
func (n nft) installed(ctx context.Context) ([]string, error) {
	all, err := n.run(ctx, "", "nft", "list", "tables")
	if err != nil {
		return nil, err
	}
	if !slices.Contains(lines(all), nftTable) {
		return nil, nil
	}
	text, err := n.run(ctx, "", "nft", "list", "table", "inet", "aval")
	return lines(text), err
}

func (n nft) wanted(r Rules) []string { return lines(nftText(r)) }

func (n nft) remove(ctx context.Context) (bool, error) {
	there, err := n.installed(ctx)
	if err != nil || len(there) == 0 {
		return false, err
	}
	_, err = n.run(ctx, "delete "+nftTable+"\n", "nft", "-f", "-")
	return err == nil, err
}

// lines returns the lines that say something, without indentation.
func lines(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
	}
	return out
}

func number[T uint16 | uint32](n T) string { return strconv.FormatUint(uint64(n), 10) }
