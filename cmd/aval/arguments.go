// This file holds how a command line that is not understood is answered.

package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/aval-id/aval/identity/document"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// takes checks the arguments of a command against their names. Those in
// brackets may be left out; they come last.
func takes(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		command := strings.TrimPrefix(cmd.CommandPath(), "aval ")
		if len(args) > len(names) {
			return usage(fmt.Errorf("%s: %q is not expected", command, args[len(names)]))
		}
		if len(args) < len(names) && !strings.HasPrefix(names[len(args)], "[") {
			return usage(fmt.Errorf("%s: %s is missing", command, names[len(args)]))
		}
		return nil
	}
}

// nearFlag adds to the error of an unknown flag the one that was probably
// meant.
func nearFlag(cmd *cobra.Command, err error) error {
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok || len(unknown.GetSpecifiedName()) < 2 {
		return err
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	if near := document.Nearest(unknown.GetSpecifiedName(), names); near != "" {
		return fmt.Errorf("%w; did you mean --%s?", err, near)
	}
	return err
}

// helpCommand is "aval help COMMAND", which refuses a command that is not
// there.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "Help about any command",
		Example: "  aval help audit tail",
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err == nil && len(rest) > 0 {
				err = fmt.Errorf("help: there is no command %q", strings.Join(args, " "))
			}
			if err != nil {
				return usage(err)
			}
			return found.Help()
		},
	}
}
