// This file holds policy check: what policies say that was probably not
// meant.

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/policy"
	"github.com/spf13/cobra"
)

func (c *cli) policyCheckCommand() *cobra.Command {
	var from estateFlags
	var strict bool
	cmd := &cobra.Command{
		Use: "check", Short: "Find rules and policies that do nothing, or too much", Args: takes(),
		Long: `Check looks at the policies of the server, or with -f of files, together with
the registrations: documents that are refused, policies that are ignored for
another one of their scope, rules that another one makes needless or void,
rules that no registered identity matches, workloads without any ALLOW policy,
tokens that are verified and never demanded, or demanded and never verified,
and what admission warns of. It exits with 1 where a document is refused or
ignored; with --strict every finding counts.`,
		Example: `  aval policy check
  aval policy check -f documents/ --trust-domain example.org --strict
  aval policy check -o json`,
	}
	cmd.Flags().BoolVar(&strict, "strict", false, "let every finding fail the check")
	c.estateFlags(cmd, &from)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		e, err := c.estate(ctx, from)
		if err != nil {
			return err
		}
		return c.showReview(e.review(), strict)
	})
	return cmd
}

// reviewed is one finding in JSON and YAML.
type reviewed struct {
	Kind    string `json:"kind"` // refused, ignored, shadowed, unmatched, empty, no-allow, tokens, warning
	Subject string `json:"subject"`
	Field   string `json:"field,omitempty"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// grave reports whether the finding fails the check by itself.
func (r reviewed) grave() bool { return r.Kind == "refused" || r.Kind == "ignored" }

func (e *estate) review() []reviewed {
	out := []reviewed{}
	if e.refused != nil {
		for _, text := range faultsOf(e.refused) {
			out = append(out, reviewed{Kind: "refused", Message: text, Hint: "where it applies, a proxy that meets it denies everything"})
		}
	}
	ignored := policy.Conflicts(e.modes)
	for _, p := range e.modes {
		if winner, ok := ignored[p.Key()]; ok {
			out = append(out, reviewed{Kind: "ignored", Subject: label(p.Key()), Message: "is ignored: " + winner.Path() + " covers the same, and is older or has the lower name", Hint: "delete one of the two"})
		}
	}
	var ids []identity.ID
	for _, r := range e.registrations {
		ids = append(ids, r.ID)
	}
	for _, f := range policy.Review(e.settings, e.policies, ids) {
		out = append(out, reviewed{Kind: f.Kind, Subject: label(f.Policy), Field: f.Field, Message: f.Message})
	}
	for _, r := range e.registrations {
		if !policy.HasAllow(e.settings, workloadOf(r), e.policies) && !e.settings.DefaultDeny {
			out = append(out, reviewed{Kind: "no-allow", Subject: "registration " + r.Path(), Message: "no ALLOW policy selects it: every peer of the trust domain may connect",
				Hint: "add an AuthorizationPolicy with ALLOW, or set authorization.default: deny"})
		}
		out = append(out, e.tokenFindings(r)...)
	}
	for _, w := range e.warnings {
		where := w.File
		if w.Line > 0 {
			where = fmt.Sprintf("%s:%d", w.File, w.Line)
		}
		out = append(out, reviewed{Kind: "warning", Subject: where, Field: w.Field, Message: w.Message})
	}
	return out
}

func (c *cli) showReview(all []reviewed, strict bool) error {
	failed := slices.ContainsFunc(all, func(r reviewed) bool { return strict || r.grave() })
	out := struct {
		OK       bool       `json:"ok"`
		Findings []reviewed `json:"findings"`
	}{!failed, all}
	err := c.show(out, func() error {
		for _, r := range all {
			color := yellow
			if r.grave() {
				color = red
			}
			subject := strings.TrimSpace(r.Subject + " " + r.Field)
			if subject != "" {
				subject += ": "
			}
			fmt.Fprintf(c.out, "%s  %s%s\n", c.paint(color, fmt.Sprintf("%-9s", r.Kind)), subject, plain(r.Message))
			if r.Hint != "" {
				fmt.Fprintf(c.out, "           hint: %s\n", r.Hint)
			}
		}
		fmt.Fprintln(c.out, plural(len(all), "finding"))
		return nil
	})
	if err == nil && failed {
		return negative()
	}
	return err
}
