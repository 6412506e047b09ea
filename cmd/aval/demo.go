// This file holds the demo command, and the hidden one that runs the demo's
// services.

package main

import (
	"context"

	"github.com/aval-id/aval/cmd/aval/demo"
	"github.com/spf13/cobra"
)

func (c *cli) demoCommand() *cobra.Command {
	var o demo.Options
	cmd := &cobra.Command{
		Use: "demo", Short: "Play all of it on this machine, step by step", Args: takes(),
		Long: `Demo starts a real server, a real agent and real services behind real proxies
as separate processes in a temporary directory, and tells what happens: a
trust domain, a node, identities, an allowed call, a denied one, plaintext in
permissive and strict mode, live rotation, and a record whose editing shows.
It then waits, and cleans up at Ctrl-C. With --once it ends by itself.`,
		Example: "  aval demo\n  aval demo --once -o json",
	}
	cmd.Flags().BoolVar(&o.Once, "once", false, "end after the last step")
	cmd.Flags().BoolVar(&o.KeepDir, "keep", false, "leave the directory in place at the end")
	c.outputFlag(cmd, "text", formJSON)
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		o.Output, o.Stdout, o.Stderr, o.Color = c.output, c.out, c.err, c.color
		if err := demo.Run(ctx, o); err != nil {
			// Whatever it met on its way, the finding is that the story
			// does not hold.
			return &failure{code: exitNegative, err: err}
		}
		return nil
	})
	return cmd
}

func (c *cli) demoServiceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "demo-service", Short: "A service of the demo", Hidden: true,
		Example:            "  aval demo-service --name api --listen 127.0.0.1:8080",
		DisableFlagParsing: true,
	}
	cmd.RunE = act(func(ctx context.Context, args []string) error { return demo.Service(ctx, args) })
	return cmd
}
