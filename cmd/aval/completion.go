// This file holds what shells complete from the server: kinds and names.

package main

import (
	"context"
	"slices"
	"time"

	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/wire"
	"github.com/spf13/cobra"
)

// completionTimeout bounds how long a person waits for a suggestion.
const completionTimeout = 500 * time.Millisecond

// ask calls the server for suggestions; without an answer there are none.
func (c *cli) ask(cmd *cobra.Command, body func(context.Context, wire.AdminClient) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	ctx := cmd.Context()
	if ctx == nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	var names []string
	err := c.admin(ctx, func(admin wire.AdminClient) error {
		var err error
		names, err = body(ctx, admin)
		return err
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	slices.Sort(names)
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (c *cli) completeKindAndName(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return []string{"registrations", "peerauthentications", "authorizationpolicies", "requestauthentications", "plaintextexceptions", "endpoints"}, cobra.ShellCompDirectiveNoFileComp
	}
	kind, ok := document.NormalizeKind(args[0])
	if !ok || cmd.Name() == "get" && len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.ask(cmd, func(ctx context.Context, admin wire.AdminClient) ([]string, error) {
		namespace, err := cmd.Flags().GetString("namespace")
		if err != nil || namespace == "" {
			namespace = defaultNamespace
		}
		resp, err := admin.Get(ctx, &wire.GetRequest{Kind: kind, Namespace: namespace})
		if err != nil {
			return nil, err
		}
		docs, err := documentsOf(resp)
		if err != nil {
			return nil, err
		}
		var names []string
		for _, d := range docs {
			names = append(names, d.Metadata().Name)
		}
		return names, nil
	})
}

func (c *cli) completeNode(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.ask(cmd, func(ctx context.Context, admin wire.AdminClient) ([]string, error) {
		resp, err := admin.ListNodes(ctx, &wire.ListNodesRequest{})
		if err != nil {
			return nil, err
		}
		var names []string
		for _, n := range resp.GetNodes() {
			names = append(names, n.GetName())
		}
		return names, nil
	})
}
