// This file holds the revoke commands: revoke, list and lift.

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/aval-id/aval/identity/wire"
	"github.com/spf13/cobra"
)

// revocation is a revocation in JSON and YAML.
type revocation struct {
	Kind    string        `json:"kind"` // serial, id, node or issuer
	Target  string        `json:"target"`
	At      time.Time     `json:"at,omitzero"`
	Ends    time.Time     `json:"ends,omitzero"`
	Lifted  time.Time     `json:"lifted,omitzero"`
	Actor   string        `json:"actor,omitempty"`
	Reason  string        `json:"reason,omitempty"`
	Exposed []exposedSVID `json:"exposed,omitempty"`
}

// exposedSVID is what verifiers that are not Aval's take until it ends.
type exposedSVID struct {
	SPIFFEID string    `json:"spiffe_id"`
	Serial   string    `json:"serial"`
	Node     string    `json:"node"`
	NotAfter time.Time `json:"not_after"`
}

func revocationOf(r *wire.Revocation, exposed []*wire.ExposedSVID) revocation {
	out := revocation{Kind: r.GetKind(), Target: r.GetTarget(), At: stamp(r.GetAt()), Ends: stamp(r.GetEnds()),
		Lifted: stamp(r.GetLifted()), Actor: r.GetActor(), Reason: r.GetReason()}
	for _, e := range exposed {
		out.Exposed = append(out.Exposed, exposedSVID{e.GetSpiffeId(), e.GetSerial(), e.GetNode(), stamp(e.GetNotAfter())})
	}
	return out
}

func (c *cli) revokeCommand() *cobra.Command {
	var node, issuer, reason string
	var yes bool
	cmd := &cobra.Command{
		Use: "revoke SERIAL|ID", Short: "Make certificates count for nothing, from this moment", Args: takes("[SERIAL|ID]"),
		Long: `Revoke denies a certificate by its serial, a workload by its SPIFFE ID or its
registration (namespace/name), with --node all SVIDs that a node holds, or with
--issuer all that an authority signed, which must be out of use. Servers, agents
and proxies of Aval refuse what is denied at once and cut its open connections
with the reason revoked.

A workload that is revoked gets nothing until aval revoke lift. A serial, and
what a node held, is replaced at once: its workload goes on with a new SVID.

Nobody else asks: other verifiers take each SVID until it ends. The command
says which those are, and until when.`,
		Example: `  aval revoke spiffe://example.org/ns/shop/sa/api --reason 'the key was copied'
  aval revoke shop/api --yes
  aval revoke 4f1c22a90b7d3e5861aa0c9d7be2f014 --yes -o json
  aval revoke --node db-1
  aval revoke list
  aval revoke lift shop/api`,
	}
	cmd.Flags().StringVar(&node, "node", "", "revoke all SVIDs that the node of this name holds")
	cmd.Flags().StringVar(&issuer, "issuer", "", "revoke all that the authority of this subject key identifier (hex) signed")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	c.yesFlag(cmd, &yes)
	c.adminFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, args []string) error {
		req, err := revokeRequest(args, node, issuer)
		if err != nil {
			return err
		}
		req.Reason = reason
		return c.admin(ctx, func(admin wire.AdminClient) error { return c.revoke(ctx, admin, req, yes) })
	})
	cmd.AddCommand(c.revokeListCommand(), c.revokeLiftCommand())
	return cmd
}

// revokeRequest reads what is to be revoked: exactly one thing.
func revokeRequest(args []string, node, issuer string) (*wire.RevokeRequest, error) {
	var all []*wire.RevokeRequest
	for _, a := range args {
		kind := "serial"
		if strings.Contains(a, "/") {
			kind = "id"
		}
		all = append(all, &wire.RevokeRequest{Kind: kind, Target: a})
	}
	if node != "" {
		all = append(all, &wire.RevokeRequest{Kind: "node", Target: node})
	}
	if issuer != "" {
		all = append(all, &wire.RevokeRequest{Kind: "issuer", Target: issuer})
	}
	if len(all) != 1 || all[0].GetTarget() == "" {
		return nil, usage(errors.New("revoke: name one thing: a serial, a SPIFFE ID, a registration (namespace/name), --node or --issuer"))
	}
	return all[0], nil
}

func (c *cli) revoke(ctx context.Context, admin wire.AdminClient, req *wire.RevokeRequest, yes bool) error {
	if !yes {
		req.DryRun = true
		resp, err := admin.Revoke(ctx, req)
		if err != nil {
			return called("revoke", err)
		}
		req.DryRun = false
		fmt.Fprintf(c.err, "%s would be denied at once\n", plural(len(resp.GetExposed()), "live SVID"))
		if err := c.typedBack(false, "revoke "+req.GetKind()+" "+req.GetTarget(), req.GetTarget()); err != nil {
			return err
		}
	}
	resp, err := admin.Revoke(ctx, req)
	if err != nil {
		return called("revoke", err)
	}
	r := revocationOf(resp.GetRevocation(), resp.GetExposed())
	return c.show(r, func() error { return c.printRevoked(r) })
}

func (c *cli) printRevoked(r revocation) error {
	fmt.Fprintf(c.out, "%s %s revoked", r.Kind, r.Target)
	if r.Kind == "id" {
		fmt.Fprintf(c.out, "; nothing is issued for it until aval revoke lift %s", r.Target)
	}
	if len(r.Exposed) == 0 {
		fmt.Fprintln(c.out, "\nno SVID that it concerns is still valid")
		return nil
	}
	fmt.Fprintf(c.out, "\nverifiers that are not Aval's take %s until the end of each:\n\n", plural(len(r.Exposed), "SVID"))
	now := time.Now()
	t := table{heading: []string{"SPIFFE ID", "SERIAL", "NODE", "EXPOSED UNTIL", "ENDS"}}
	for _, e := range r.Exposed {
		t.add(e.SPIFFEID, e.Serial, e.Node, e.NotAfter.Format(time.RFC3339), ago(e.NotAfter, now))
	}
	return t.print(c.out)
}

func (c *cli) revokeListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List what is revoked", Args: takes(), Aliases: []string{"ls"},
		Long:    "List shows the revocations in force, the newest first. One leaves the list five\nminutes after the last certificate that it denies has ended.",
		Example: "  aval revoke list\n  aval revoke list -o json",
	}
	c.adminFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		return c.admin(ctx, func(admin wire.AdminClient) error {
			resp, err := admin.ListRevocations(ctx, &wire.ListRevocationsRequest{})
			if err != nil {
				return called("revoke list", err)
			}
			all := []revocation{}
			t := table{heading: []string{"KIND", "TARGET", "SINCE", "UNTIL", "REASON"}}
			for _, r := range resp.GetRevocations() {
				v := revocationOf(r, nil)
				all = append(all, v)
				until := "lifted"
				switch {
				case !v.Lifted.IsZero():
					until = "lifted " + v.Lifted.Format(time.RFC3339)
				case !v.Ends.IsZero():
					until = v.Ends.Format(time.RFC3339)
				}
				t.add(v.Kind, v.Target, v.At.Format(time.RFC3339), until, v.Reason)
			}
			return c.show(all, func() error { return t.print(c.out) })
		})
	})
	return cmd
}

func (c *cli) revokeLiftCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "lift ID", Short: "Let a revoked workload be issued anew", Args: takes("ID"),
		Long: `Lift lets a workload, by SPIFFE ID or registration, be issued again. What it
held before it was revoked stays denied until it ends. The revocation of a
serial, of a node's SVIDs or of an issuer is not lifted: new SVIDs are issued
beside it all the while.`,
		Example: "  aval revoke lift spiffe://example.org/ns/shop/sa/api\n  aval revoke lift shop/api",
	}
	c.adminFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, args []string) error {
		return c.admin(ctx, func(admin wire.AdminClient) error {
			resp, err := admin.LiftRevocation(ctx, &wire.LiftRevocationRequest{Target: args[0]})
			if err != nil {
				return called("revoke lift", err)
			}
			r := revocationOf(resp, nil)
			return c.show(r, func() error {
				fmt.Fprintf(c.out, "%s may be issued again; what it held before %s stays denied\n", r.Target, r.At.Format(time.RFC3339))
				return nil
			})
		})
	})
	return cmd
}
