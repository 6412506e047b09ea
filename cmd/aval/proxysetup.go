// This file holds proxy setup, cleanup and check: the rules that hand a
// transparent proxy the connections of its network namespace.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/aval-id/aval/proxy"
	"github.com/aval-id/aval/proxy/intercept"
	"github.com/spf13/cobra"
)

// Values of --direction.
const (
	directionBoth     = "both"
	directionInbound  = "inbound"
	directionOutbound = "outbound"
)

// interception is what the flags of setup and check say.
type interception struct {
	config    string
	host      intercept.Host
	tool      string
	user      string
	group     string
	direction string
	inbound   uint16
	outbound  uint16

	only, inPorts, outPorts []uint
	sources, destinations   []string
	users                   []string
}

// hostFlags declare which namespace and which tool.
func (i *interception) hostFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&i.host.Namespace, "netns", "", "network namespace, a name of \"ip netns\" or a path such as /proc/PID/ns/net; this process's unless set")
	cmd.Flags().Var(&choice{&i.tool, []string{"auto", string(intercept.NFT), string(intercept.IPTables)}}, "tool", "auto, nft or iptables; auto takes nft where it is installed")
}

// ruleFlags declare what is intercepted.
func (i *interception) ruleFlags(c *cli, cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&i.config, "config", c.lookup("AVAL_PROXY_CONFIG"), "the proxy's file, whose transparent section is taken (env AVAL_PROXY_CONFIG)")
	f.StringVar(&i.user, "proxy-user", "", "name or uid that the proxy runs as; its connections are never redirected")
	f.StringVar(&i.group, "proxy-group", "", "name or gid that the proxy runs as, in place of the user or beside it")
	f.Var(&choice{&i.direction, []string{directionBoth, directionInbound, directionOutbound}}, "direction", "both, inbound or outbound, where no file is given")
	f.Uint16Var(&i.inbound, "inbound-port", intercept.DefaultInboundPort, "the proxy's transparent inbound port")
	f.Uint16Var(&i.outbound, "outbound-port", intercept.DefaultOutboundPort, "the proxy's transparent outbound port")
	f.UintSliceVar(&i.only, "include-inbound-port", nil, "intercept these ports alone; all unless set")
	f.UintSliceVar(&i.inPorts, "exclude-inbound-port", nil, "ports of this machine to leave alone")
	f.StringSliceVar(&i.sources, "exclude-inbound-source", nil, "addresses or blocks whose connections are left alone")
	f.UintSliceVar(&i.outPorts, "exclude-outbound-port", nil, "ports of other machines to leave alone")
	f.StringSliceVar(&i.destinations, "exclude-outbound-destination", nil, "addresses or blocks to leave alone")
	f.StringSliceVar(&i.users, "exclude-user", nil, "names or uids whose connections are left alone")
	i.hostFlags(cmd)
}

// at returns the namespace and tool that are meant.
func (i *interception) at() intercept.Host {
	h := i.host
	if i.tool != "" && i.tool != "auto" {
		h.Tool = intercept.Tool(i.tool)
	}
	return h
}

// rules are those of the file, if any, and of the flags: single values replace
// the file's, lists add to it.
func (i *interception) rules(cmd *cobra.Command) (intercept.Rules, error) {
	var r intercept.Rules
	if i.config != "" {
		data, err := os.ReadFile(i.config)
		if err != nil {
			return r, fmt.Errorf("configuration: %w", err)
		}
		cfg, err := proxy.ParseConfig(i.config, data)
		if err != nil {
			return r, fmt.Errorf("configuration: %w", err)
		}
		if r, err = cfg.Rules(); err != nil {
			return r, fmt.Errorf("configuration %s: %w", i.config, err)
		}
	} else {
		if i.direction != directionOutbound {
			r.Inbound = &intercept.Inbound{To: i.inbound}
		}
		if i.direction != directionInbound {
			r.Outbound = &intercept.Outbound{To: i.outbound}
		}
	}
	if r.Inbound != nil {
		if err := i.addInbound(cmd, r.Inbound); err != nil {
			return r, err
		}
	}
	if r.Outbound != nil {
		return r, i.addOutbound(cmd, r.Outbound)
	}
	return r, nil
}

func (i *interception) addInbound(cmd *cobra.Command, in *intercept.Inbound) (err error) {
	if cmd.Flags().Changed("inbound-port") {
		in.To = i.inbound
	}
	if in.Only, err = addPorts(in.Only, i.only); err != nil {
		return fmt.Errorf("--include-inbound-port: %w", err)
	}
	if in.Ports, err = addPorts(in.Ports, i.inPorts); err != nil {
		return fmt.Errorf("--exclude-inbound-port: %w", err)
	}
	for _, text := range i.sources {
		p, err := intercept.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("--exclude-inbound-source: %w", err)
		}
		in.From = append(in.From, p)
	}
	return nil
}

func (i *interception) addOutbound(cmd *cobra.Command, out *intercept.Outbound) (err error) {
	if cmd.Flags().Changed("outbound-port") {
		out.To = i.outbound
	}
	if i.user != "" || i.group != "" {
		if out.Owner, err = proxy.LookupOwner(i.user, i.group); err != nil {
			return fmt.Errorf("--proxy-user, --proxy-group: %w", err)
		}
	}
	if out.Owner == (intercept.Owner{}) {
		return errors.New("--proxy-user or --proxy-group is missing: what the proxy itself dials must not be redirected to it")
	}
	if out.Ports, err = addPorts(out.Ports, i.outPorts); err != nil {
		return fmt.Errorf("--exclude-outbound-port: %w", err)
	}
	for _, text := range i.destinations {
		p, err := intercept.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("--exclude-outbound-destination: %w", err)
		}
		out.Dest = append(out.Dest, p)
	}
	for _, name := range i.users {
		o, err := proxy.LookupOwner(name, "")
		if err != nil {
			return fmt.Errorf("--exclude-user: %w", err)
		}
		if o.UID == nil {
			return errors.New("--exclude-user: the name is empty")
		}
		out.UIDs = append(out.UIDs, *o.UID)
	}
	return nil
}

func addPorts(to []uint16, ports []uint) ([]uint16, error) {
	for _, p := range ports {
		if p == 0 || p > 65535 {
			return nil, fmt.Errorf("%d is not a port from 1 to 65535", p)
		}
		to = append(to, uint16(p))
	}
	return to, nil
}

func (c *cli) proxySetupCommand() *cobra.Command {
	var i interception
	var dryRun bool
	cmd := &cobra.Command{
		Use: "setup", Short: "Redirect a network namespace's connections to its transparent proxy", Args: takes(),
		Long: `Setup puts one nftables table, "inet aval", in place (or the chains AVAL_INBOUND
and AVAL_OUTBOUND of the nat table where only iptables exists), for IPv4 and
IPv6. It may be repeated: the new rules replace the old ones at once.

Inbound, connections from other machines go to the proxy's inbound port;
outbound, connections to other machines go to its outbound port, except the
proxy's own, which are told by its user or group. Loopback, what is only
routed through, and what is not TCP pass.

It needs root, or CAP_NET_ADMIN in the namespace. With the file of the proxy,
ports, user and exclusions come from its transparent section, and ports of its
other listeners are excluded.`,
		Example: `  aval proxy setup --config /etc/aval/proxy/web.yaml
  aval proxy setup --proxy-user aval-proxy --exclude-inbound-port 22 --exclude-outbound-destination 169.254.169.254 --dry-run
  aval proxy setup --netns web --proxy-user 15099 --exclude-user backup --tool iptables`,
	}
	i.ruleFlags(c, cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print what the tool would be fed, and change nothing")
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		rules, err := i.rules(cmd)
		if err != nil {
			return usage(fmt.Errorf("proxy setup: %w", err))
		}
		script, err := i.at().Script(rules)
		if err != nil {
			return usage(fmt.Errorf("proxy setup: %w", err))
		}
		if dryRun {
			_, err := fmt.Fprint(c.out, script)
			return err
		}
		tool, err := i.at().Setup(ctx, rules)
		if err != nil {
			return interceptError("proxy setup", err)
		}
		fmt.Fprintf(c.out, "intercepting by %s: %s\n", tool, described(rules))
		if rules.Outbound != nil && rules.Outbound.Owner.UID != nil && *rules.Outbound.Owner.UID == 0 {
			fmt.Fprintln(c.err, "warning: the proxy's user is root, so that no connection of root's is intercepted")
		}
		fmt.Fprintln(c.out, "next: aval proxy check, with the same flags")
		return nil
	})
	return cmd
}

// described says in one line what is intercepted.
func described(r intercept.Rules) string {
	var parts []string
	if r.Inbound != nil {
		parts = append(parts, fmt.Sprintf("inbound to port %d", r.Inbound.To))
	}
	if r.Outbound != nil {
		parts = append(parts, fmt.Sprintf("outbound to port %d", r.Outbound.To))
	}
	return strings.Join(parts, ", ")
}

func (c *cli) proxyCleanupCommand() *cobra.Command {
	var i interception
	cmd := &cobra.Command{
		Use: "cleanup", Short: "Remove the redirection that setup made, and nothing else", Args: takes(),
		Long: `Cleanup removes what setup made, by either tool. It may be repeated. Stop the
proxy first: connections that are still redirected hang once the namespace has
no NAT rule left.`,
		Example: "  aval proxy cleanup\n  aval proxy cleanup --netns web",
	}
	i.hostFlags(cmd)
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		removed, err := i.at().Cleanup(ctx)
		if err != nil {
			return interceptError("proxy cleanup", err)
		}
		if len(removed) == 0 {
			fmt.Fprintln(c.out, "nothing was intercepted")
			return nil
		}
		for _, tool := range removed {
			fmt.Fprintf(c.out, "rules of %s are removed\n", tool)
		}
		return nil
	})
	return cmd
}

func (c *cli) proxyCheckCommand() *cobra.Command {
	var i interception
	cmd := &cobra.Command{
		Use: "check", Short: "Compare the redirection with what setup would make", Args: takes(),
		Long: `Check says whether the rules are there as setup with the same flags makes them,
what is missing, what is too much, and whether a proxy listens where they lead,
as the user that they let pass. It changes nothing, and exits with 1 where
something is wrong.`,
		Example: "  aval proxy check --config /etc/aval/proxy/web.yaml\n  aval proxy check --netns web --proxy-user 15099 -o json",
	}
	i.ruleFlags(c, cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		rules, err := i.rules(cmd)
		if err != nil {
			return usage(fmt.Errorf("proxy check: %w", err))
		}
		all, err := i.at().Check(ctx, rules)
		if err != nil {
			return interceptError("proxy check", err)
		}
		f := &findings{group: "interception"}
		for _, one := range all {
			result := checkOK
			if !one.OK {
				result = checkFail
			}
			f.add(result, one.Check, one.Hint, "%s", one.Detail)
		}
		return c.conclude(f, false)
	})
	return cmd
}

// interceptError gives an error of the rules its exit code and hint.
func interceptError(act string, err error) error {
	err = fmt.Errorf("%s: %w", act, err)
	switch {
	case errors.Is(err, intercept.ErrPermission):
		return hinted(err, exitDenied, "run it as root, or with CAP_NET_ADMIN in the namespace")
	case errors.Is(err, intercept.ErrNoTool):
		return hinted(err, exitNegative, "install nftables")
	}
	return err
}
