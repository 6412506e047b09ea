// This file holds token create and the verbs on nodes.

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/wire"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func (c *cli) tokenCommand() *cobra.Command {
	return group("token", "Join tokens for nodes", c.tokenCreateCommand())
}

func (c *cli) tokenCreateCommand() *cobra.Command {
	var ttl time.Duration
	var node string
	var attributes []string
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a join token and print the command that joins a node",
		Long: `Create makes a token that admits one node: it binds to the first key that
uses it, and that key may try again until the token expires. The node's name
and attributes are fixed by the token, not by what the node says.`,
		Example: `  aval token create --ttl 10m
  aval token create --node db-1 --attribute zone=eu --attribute tier=db -o json`,
		Args: takes(),
	}
	cmd.Flags().DurationVar(&ttl, "ttl", 10*time.Minute, "how long the token may be used")
	cmd.Flags().StringVar(&node, "node", "", "name of the node (default: the server picks one)")
	cmd.Flags().StringArrayVar(&attributes, "attribute", nil, "attribute of the node as NAME=VALUE; may be repeated")
	c.adminFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		attrs, err := parseAttributes(attributes)
		if err != nil {
			return err
		}
		if ttl < time.Millisecond {
			return usage(fmt.Errorf("token create: --ttl %s is not positive", ttl))
		}
		req := &wire.CreateTokenRequest{Ttl: ttl.Milliseconds(), Node: node, Attributes: wire.FromAttributes(attrs)}
		return c.admin(ctx, func(admin wire.AdminClient) error { return c.createToken(ctx, admin, req) })
	})
	return cmd
}

func parseAttributes(pairs []string) (identity.Attributes, error) {
	attrs := identity.Attributes{}
	for _, pair := range pairs {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" || value == "" {
			return nil, usage(fmt.Errorf("attribute %q is not of the form NAME=VALUE", pair))
		}
		attrs = attrs.With(name, value)
	}
	return attrs, nil
}

func (c *cli) createToken(ctx context.Context, admin wire.AdminClient, req *wire.CreateTokenRequest) error {
	resp, err := admin.CreateToken(ctx, req)
	if err != nil {
		if status.Code(err) == codes.InvalidArgument {
			return usage(called("token create", err))
		}
		return called("token create", err)
	}
	out := struct {
		Token      string    `json:"token"`
		Server     string    `json:"server"`
		BundleHash string    `json:"bundle_hash"`
		Command    string    `json:"command"`
		NodeID     string    `json:"node_id"`
		Expires    time.Time `json:"expires"`
	}{
		Token: resp.GetToken(), Server: resp.GetServer(), BundleHash: resp.GetBundleHash(),
		Command: fmt.Sprintf("aval agent --server %s --join-token %s --bundle-hash %s --data-dir %s --socket %s",
			resp.GetServer(), resp.GetToken(), resp.GetBundleHash(), defaultAgentDir, defaultAgentSocket),
		NodeID: resp.GetNodeId(), Expires: stamp(resp.GetExpires()),
	}
	return c.show(out, func() error {
		fmt.Fprintln(c.out, out.Command)
		fmt.Fprintf(c.err, "joins %s; usable for %s\n", out.NodeID, short(time.Until(out.Expires).Round(time.Second)))
		if everywhere(out.Server) {
			fmt.Fprintf(c.err, "hint: put the server's name in place of %s; aval server --advertise NAME:PORT does it by itself\n", out.Server)
		}
		return nil
	})
}

// everywhere reports whether an address is that of a listener on all
// addresses, which no other machine can dial.
func everywhere(address string) bool {
	at, err := netip.ParseAddrPort(address)
	return err == nil && at.Addr().IsUnspecified()
}

func (c *cli) nodeCommand() *cobra.Command {
	return group("node", "The nodes of the trust domain", c.nodeListCommand(), c.nodeShowCommand(), c.nodeEvictCommand())
}

// node is a node's state in JSON and YAML.
type node struct {
	Name               string              `json:"name"`
	NodeID             string              `json:"node_id"`
	State              string              `json:"state"` // connected, away or evicted
	Attributes         map[string][]string `json:"attributes"`
	Attestation        string              `json:"attestation,omitempty"`
	Attested           time.Time           `json:"attested,omitzero"`
	LastSeen           time.Time           `json:"last_seen,omitzero"`
	CredentialNotAfter time.Time           `json:"credential_not_after,omitzero"`
	ClockSkewMS        int64               `json:"clock_skew_ms"`
	Version            string              `json:"version,omitempty"`
	SVIDs              []liveSVID          `json:"svids"`
}

type liveSVID struct {
	SPIFFEID string    `json:"spiffe_id"`
	Serial   string    `json:"serial"`
	NotAfter time.Time `json:"not_after"`
}

func nodeOf(s *wire.NodeState) node {
	n := node{
		Name: s.GetName(), NodeID: s.GetNodeId(), State: "away", Attributes: wire.ToAttributes(s.GetAttributes()),
		Attestation: s.GetAttestation(), Attested: stamp(s.GetAttested()), LastSeen: stamp(s.GetLastSeen()),
		CredentialNotAfter: stamp(s.GetCredentialNotAfter()), ClockSkewMS: s.GetClockSkew(), Version: s.GetVersion(),
		SVIDs: []liveSVID{},
	}
	switch {
	case s.GetEvicted():
		n.State = "evicted"
	case s.GetConnected():
		n.State = "connected"
	}
	for _, v := range s.GetSvids() {
		n.SVIDs = append(n.SVIDs, liveSVID{v.GetSpiffeId(), v.GetSerial(), stamp(v.GetNotAfter())})
	}
	slices.SortFunc(n.SVIDs, func(a, b liveSVID) int { return strings.Compare(a.SPIFFEID+a.Serial, b.SPIFFEID+b.Serial) })
	return n
}

func (c *cli) nodeListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List the nodes", Args: takes(), Aliases: []string{"ls"},
		Example: "  aval node list\n  aval node list -o json",
	}
	c.adminFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		return c.admin(ctx, func(admin wire.AdminClient) error {
			resp, err := admin.ListNodes(ctx, &wire.ListNodesRequest{})
			if err != nil {
				return called("node list", err)
			}
			var nodes []node
			for _, s := range resp.GetNodes() {
				nodes = append(nodes, nodeOf(s))
			}
			return c.show(items(nodes), func() error {
				now := time.Now()
				t := table{heading: []string{"NAME", "STATE", "SVIDS", "LAST SEEN", "CREDENTIAL ENDS", "ATTRIBUTES"}}
				for _, n := range nodes {
					t.add(n.Name, n.State, fmt.Sprint(len(n.SVIDs)), ago(n.LastSeen, now), ago(n.CredentialNotAfter, now), identity.Attributes(n.Attributes).String())
				}
				return t.print(c.out)
			})
		})
	})
	return cmd
}

func (c *cli) nodeShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show NAME", Short: "Show a node and its live SVIDs", Args: takes("NAME"),
		Example:           "  aval node show db-1\n  aval node show db-1 -o json",
		ValidArgsFunction: c.completeNode,
	}
	c.adminFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, args []string) error {
		return c.admin(ctx, func(admin wire.AdminClient) error {
			resp, err := admin.ListNodes(ctx, &wire.ListNodesRequest{Name: args[0]})
			if err != nil {
				return nodeFailure("node show", err)
			}
			n := nodeOf(resp.GetNodes()[0])
			return c.show(n, func() error { return c.printNode(n) })
		})
	})
	return cmd
}

// nodeFailure says where the names of nodes are.
func nodeFailure(act string, err error) error {
	if status.Code(err) == codes.NotFound {
		return hinted(called(act, err), exitNegative, "aval node list shows all of them")
	}
	return called(act, err)
}

func (c *cli) printNode(n node) error {
	now := time.Now()
	for _, line := range [][2]string{
		{"name", n.Name}, {"id", n.NodeID}, {"state", n.State}, {"attributes", identity.Attributes(n.Attributes).String()},
		{"attested", ago(n.Attested, now)}, {"last seen", ago(n.LastSeen, now)},
		{"credential ends", ago(n.CredentialNotAfter, now)}, {"clock skew", (time.Duration(n.ClockSkewMS) * time.Millisecond).String()},
		{"version", plain(n.Version)},
	} {
		fmt.Fprintf(c.out, "%-16s %s\n", line[0], line[1])
	}
	return c.printLive(n.SVIDs, now)
}

func (c *cli) printLive(svids []liveSVID, now time.Time) error {
	if len(svids) == 0 {
		return nil
	}
	fmt.Fprintln(c.out)
	t := table{heading: []string{"SPIFFE ID", "SERIAL", "LIVES UNTIL", "ENDS"}}
	for _, v := range svids {
		t.add(v.SPIFFEID, v.Serial, v.NotAfter.Format(time.RFC3339), ago(v.NotAfter, now))
	}
	return t.print(c.out)
}

func (c *cli) nodeEvictCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "evict NAME", Short: "Shut a node out, from this moment", Args: takes("NAME"),
		Long: `Evict ends the node's rights at once: its stream is closed, and it gets
nothing more. SVIDs that it holds are revoked: Aval's servers, agents and
proxies refuse them and cut their connections at once. The command lists them,
since nothing but their expiry ends them for peers that are not Aval's.`,
		Example:           "  aval node evict db-1",
		ValidArgsFunction: c.completeNode,
	}
	c.adminFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, args []string) error {
		if args[0] == "" {
			return usage(errors.New("node evict: the name is empty"))
		}
		return c.admin(ctx, func(admin wire.AdminClient) error {
			resp, err := admin.EvictNode(ctx, &wire.EvictNodeRequest{Name: args[0]})
			if err != nil {
				return nodeFailure("node evict", err)
			}
			n := nodeOf(resp.GetNode())
			return c.show(n, func() error {
				fmt.Fprintf(c.out, "node %s evicted; it holds %s; Aval refuses what it holds, other verifiers take it until its end\n", n.Name, plural(len(n.SVIDs), "live SVID"))
				return c.printLive(n.SVIDs, time.Now())
			})
		})
	})
	return cmd
}
