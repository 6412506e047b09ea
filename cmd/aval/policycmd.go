// This file holds policy, the parent of what can be asked of policies.

package main

import "github.com/spf13/cobra"

func (c *cli) policyCommand() *cobra.Command {
	return group("policy", "What policies do, and what others would do", c.policySimulateCommand())
}
