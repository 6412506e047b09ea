// This file holds apply and delete: what changes documents.

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/policy"
	"github.com/aval-id/aval/identity/wire"
	"github.com/spf13/cobra"
)

func (c *cli) applyCommand() *cobra.Command {
	var files []string
	var dryRun bool
	from := ""
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "Create or change documents, all or none",
		Long: `Apply reads documents from files, directories (below them, .yaml, .yml and
.json) or the standard input, checks all of them, and changes the server's in
one step: either every document takes effect or none does.

A document without a namespace goes into the one that -n names, or "default".

With --from istio the files hold Istio's documents (security.istio.io), which
are written as ours; what they mean differently here is said on standard
error. cluster.local becomes the own trust domain, and istio-system the root
namespace.`,
		Example: `  aval apply -f web.yaml
  kubectl get authorizationpolicies,peerauthentications,requestauthentications -A -o yaml | aval apply --from istio -f - --dry-run
  aval apply -f documents/ --dry-run
  cat web.yaml | aval apply -f - -n shop`,
		Args: takes(),
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, directory, or - for the standard input; may be repeated")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only show what would change")
	cmd.Flags().Var(&choice{&from, []string{"aval", "istio"}}, "from", "whose documents the files hold: aval, istio")
	_ = cmd.RegisterFlagCompletionFunc("from", cobra.FixedCompletions([]string{"aval", "istio"}, cobra.ShellCompDirectiveNoFileComp))
	c.namespaceFlag(cmd, defaultNamespace, "namespace of documents that name none")
	c.adminFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		if len(files) == 0 {
			return usage(errors.New("apply: -f is missing"))
		}
		if from == "istio" {
			return c.applyIstio(ctx, files, dryRun)
		}
		return c.apply(ctx, files, dryRun)
	})
	return cmd
}

func (c *cli) apply(ctx context.Context, files []string, dryRun bool) error {
	docs, err := c.readDocuments(files)
	if err != nil {
		return err
	}
	if len(docs) == 0 {
		return usage(fmt.Errorf("apply: no document in %s", strings.Join(files, ", ")))
	}
	err = c.admin(ctx, func(admin wire.AdminClient) error { return c.applyTo(ctx, admin, docs, dryRun) })
	if exitCode(err) == exitUnreachable {
		// What is wrong with the documents can be said without a server.
		if _, faults := checkDocuments(docs, unknownSettings()); faults != nil {
			return faults
		}
	}
	return err
}

// applyIstio translates Istio's documents for the server and applies them.
func (c *cli) applyIstio(ctx context.Context, files []string, dryRun bool) error {
	sources, err := c.readSources(files)
	if err != nil {
		return err
	}
	return c.admin(ctx, func(admin wire.AdminClient) error {
		s, err := policySettings(ctx, admin)
		if err != nil {
			return err
		}
		docs, notes, err := importSources(sources, c.namespace, s)
		if err != nil {
			return err
		}
		for _, note := range notes {
			fmt.Fprintf(c.err, "differs: %s\n", note)
		}
		if len(docs) == 0 {
			return usage(fmt.Errorf("apply: no policy in %s", strings.Join(files, ", ")))
		}
		return c.applyTo(ctx, admin, docs, dryRun)
	})
}

func (c *cli) applyTo(ctx context.Context, admin wire.AdminClient, docs []document.Document, dryRun bool) error {
	s, err := policySettings(ctx, admin)
	if err != nil {
		return err
	}
	warnings, err := checkDocuments(docs, s)
	if err != nil {
		return err
	}
	req := &wire.ApplyRequest{DryRun: dryRun}
	for _, d := range docs {
		data, err := d.JSON()
		if err != nil {
			return fmt.Errorf("apply %s: %w", label(d.Key()), err)
		}
		req.Documents = append(req.Documents, data)
	}
	resp, err := admin.Apply(ctx, req)
	if err != nil {
		return called("apply", err)
	}
	c.warn(warnings, resp.GetChanges())
	return c.showChanges(resp.GetChanges(), dryRun)
}

// warn prints warnings once each, those with file and line first.
func (c *cli) warn(warnings []policy.Warning, changes []*wire.Change) {
	said := map[string]bool{}
	for _, w := range warnings {
		said[w.Message] = true
		fmt.Fprintln(c.err, w.String())
	}
	for _, ch := range changes {
		for _, text := range ch.GetWarnings() {
			known := false
			for message := range said {
				known = known || strings.Contains(text, message)
			}
			if !known {
				said[text] = true
				fmt.Fprintf(c.err, "%s: warning: %s\n", label(wire.ToKey(ch.GetKey())), strings.TrimPrefix(text, "warning: "))
			}
		}
	}
}

// change is one changed document in JSON and YAML.
type change struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Action    string `json:"action"`
	DryRun    bool   `json:"dry_run,omitempty"`
	Diff      string `json:"diff,omitempty"`
}

func (c *cli) showChanges(changes []*wire.Change, dryRun bool) error {
	var out []change
	for _, ch := range changes {
		k := wire.ToKey(ch.GetKey())
		one := change{Kind: k.Kind, Namespace: k.Namespace, Name: k.Name, Action: ch.GetAction(), DryRun: dryRun}
		if dryRun {
			one.Diff = document.Diff(ch.GetBefore(), ch.GetAfter())
		}
		out = append(out, one)
	}
	return c.show(items(out), func() error {
		for _, one := range out {
			k := document.Key{Kind: one.Kind, Namespace: one.Namespace, Name: one.Name}
			suffix := ""
			if dryRun {
				suffix = " (dry run)"
			}
			fmt.Fprintf(c.out, "%s %s%s\n", label(k), one.Action, suffix)
			c.printDiff(one.Diff)
		}
		return nil
	})
}

func (c *cli) printDiff(diff string) {
	for line := range strings.Lines(diff) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "+"):
			line = c.paint(green, line)
		case strings.HasPrefix(line, "-"):
			line = c.paint(red, line)
		}
		fmt.Fprintf(c.out, "  %s\n", line)
	}
}

func (c *cli) deleteCommand() *cobra.Command {
	var files []string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "delete KIND NAME... | -f FILE|DIR|-",
		Short: "Delete documents, all or none",
		Example: `  aval delete registration web -n shop
  aval delete -f documents/`,
		Args: cobra.ArbitraryArgs,
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "delete the documents that these files declare")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only show what would go")
	c.namespaceFlag(cmd, defaultNamespace, "namespace of the names")
	c.adminFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.ValidArgsFunction = c.completeKindAndName
	cmd.RunE = act(func(ctx context.Context, args []string) error {
		keys, err := c.deleteKeys(args, files)
		if err != nil {
			return err
		}
		return c.admin(ctx, func(admin wire.AdminClient) error {
			resp, err := admin.Delete(ctx, &wire.DeleteRequest{Keys: keys, DryRun: dryRun})
			if err != nil {
				return called("delete", err)
			}
			return c.showChanges(resp.GetChanges(), dryRun)
		})
	})
	return cmd
}

// deleteKeys takes either a kind with names or files.
func (c *cli) deleteKeys(args, files []string) ([]*wire.ResourceKey, error) {
	switch {
	case len(files) > 0 && len(args) > 0:
		return nil, usage(errors.New("delete: names and -f exclude each other"))
	case len(files) > 0:
		docs, err := c.readDocuments(files)
		if err != nil {
			return nil, err
		}
		var keys []*wire.ResourceKey
		for _, d := range docs {
			keys = append(keys, wire.FromKey(d.Key()))
		}
		return keys, nil
	case len(args) < 2:
		return nil, usage(errors.New("delete: a kind and a name are missing, such as: registration web"))
	}
	kind, err := kindNamed(args[0])
	if err != nil {
		return nil, err
	}
	var keys []*wire.ResourceKey
	for _, name := range args[1:] {
		keys = append(keys, &wire.ResourceKey{Kind: kind, Namespace: c.namespace, Name: name})
	}
	return keys, nil
}
