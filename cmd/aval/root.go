// This file holds run, the tree of commands, and what all of them share.

package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/aval-id/aval/identity/document"
	"github.com/spf13/cobra"
)

// streams is the surroundings of one invocation.
type streams struct {
	in       io.Reader
	out, err io.Writer
	environ  []string
	color    bool // out is a terminal that wants colours
}

// lookup returns a variable of the environment, or "".
func (s streams) lookup(name string) string {
	for _, pair := range s.environ {
		if n, v, ok := strings.Cut(pair, "="); ok && n == name {
			return v
		}
	}
	return ""
}

// cli is one invocation.
type cli struct {
	streams
	adminSocket string
	agentSocket string
	proxySocket string
	namespace   string
	output      string
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, s streams) int {
	c := &cli{streams: s}
	root := c.root()
	root.SetArgs(args)
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	return c.report(root.ExecuteContext(ctx))
}

// root builds the tree of commands.
func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "aval",
		Short: "Workload identity: a CA, SPIFFE identities, mTLS and a record that shows editing",
		Long: `Aval gives every workload a short-lived SPIFFE identity, uses it on every
connection, rotates it, and can prove afterwards what was issued and who spoke
to whom.

Exit codes: 0 done, 1 a negative finding, 2 usage, 3 an invalid document,
4 something is unreachable, 5 denied or no identity.`,
		Example: `  aval demo
  aval server --trust-domain example.org --data-dir /var/lib/aval/server --listen 0.0.0.0:8443
  aval apply -f registrations/`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(nearFlag(cmd, err)) })
	root.SetHelpCommand(helpCommand())
	root.SetHelpCommandGroupID("look")
	root.AddGroup(
		&cobra.Group{ID: "run", Title: "Run:"},
		&cobra.Group{ID: "declare", Title: "Declare:"},
		&cobra.Group{ID: "operate", Title: "Operate:"},
		&cobra.Group{ID: "look", Title: "Look:"},
	)
	for group, cmds := range map[string][]*cobra.Command{
		"run":     {c.serverCommand(), c.agentCommand(), c.proxyCommand(), c.demoCommand()},
		"declare": {c.applyCommand(), c.getCommand(), c.deleteCommand()},
		"operate": {c.tokenCommand(), c.nodeCommand(), c.caCommand(), c.rotationCommand(), c.revokeCommand(), c.backupCommand(), c.restoreCommand(), c.auditCommand()},
		"look":    {c.checkCommand(), c.explainCommand(), c.policyCommand(), c.svidCommand(), c.versionCommand(), c.completionCommand()},
	} {
		for _, cmd := range cmds {
			cmd.GroupID = group
			root.AddCommand(cmd)
		}
	}
	service := c.demoServiceCommand()
	service.GroupID = "run"
	root.AddCommand(service)
	return root
}

// group makes a command that only holds others.
func group(use, short string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(fmt.Errorf("%s: a verb is missing: %s", cmd.CommandPath(), strings.Join(verbs(cmd), ", ")))
			}
			if near := document.Nearest(args[0], verbs(cmd)); near != "" {
				return usage(fmt.Errorf("%s: %q is not a verb of it; did you mean %s?", cmd.CommandPath(), args[0], near))
			}
			return usage(fmt.Errorf("%s: %q is not a verb of it: %s", cmd.CommandPath(), args[0], strings.Join(verbs(cmd), ", ")))
		},
	}
	var examples []string
	for _, child := range children {
		first, _, _ := strings.Cut(child.Example, "\n")
		examples = append(examples, first)
	}
	cmd.Example = strings.Join(examples, "\n")
	cmd.AddCommand(children...)
	return cmd
}

func verbs(cmd *cobra.Command) []string {
	var names []string
	for _, child := range cmd.Commands() {
		names = append(names, child.Name())
	}
	return names
}

// act makes a command's body. Whatever goes wrong before it runs is a fault
// of usage.
func act(body func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := body(cmd.Context(), args); err != nil {
			return started(err)
		}
		return nil
	}
}

// adminFlag declares where operators find the server.
func (c *cli) adminFlag(cmd *cobra.Command) {
	def := c.lookup("AVAL_ADMIN_SOCKET")
	if def == "" {
		def = defaultAdminSocket
	}
	cmd.Flags().StringVar(&c.adminSocket, "admin-socket", def, "the server's admin socket (env AVAL_ADMIN_SOCKET)")
}

// socketFlag declares where people on a node find its agent.
func (c *cli) socketFlag(cmd *cobra.Command) {
	def := c.lookup("AVAL_SOCKET")
	if def == "" {
		def = c.lookup("SPIFFE_ENDPOINT_SOCKET")
	}
	if def == "" {
		def = defaultAgentSocket
	}
	cmd.Flags().StringVar(&c.agentSocket, "socket", def, "the agent's socket (env AVAL_SOCKET, SPIFFE_ENDPOINT_SOCKET)")
}

// namespaceFlag declares -n. Each command has a variable of its own, since
// their defaults differ.
func (c *cli) namespaceFlag(cmd *cobra.Command, def, text string) {
	cmd.Flags().StringP("namespace", "n", def, text)
	cmd.PreRun = func(cmd *cobra.Command, _ []string) {
		c.namespace, _ = cmd.Flags().GetString("namespace") // declared above as a string
	}
}

// outputFlag declares -o with the forms that the command knows; the first is
// the default.
func (c *cli) outputFlag(cmd *cobra.Command, forms ...string) {
	cmd.Flags().VarP(&choice{&c.output, forms}, "output", "o", "form of the output: "+strings.Join(forms, ", "))
	c.output = ""
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(forms, cobra.ShellCompDirectiveNoFileComp))
}

// choice is a flag with a closed list of values.
type choice struct {
	value *string
	forms []string
}

func (v *choice) String() string {
	if v.value == nil || *v.value == "" {
		if len(v.forms) == 0 {
			return ""
		}
		return v.forms[0]
	}
	return *v.value
}

func (v *choice) Set(s string) error {
	if slices.Contains(v.forms, s) {
		*v.value = s
		return nil
	}
	named := slices.DeleteFunc(slices.Clone(v.forms), func(form string) bool { return form == "" })
	return fmt.Errorf("%q is none of %s", s, strings.Join(named, ", "))
}

func (v *choice) Type() string { return "form" }
