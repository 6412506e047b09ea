// This file holds version and completion.

package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the build: -ldflags "-X main.version=v1.2.3".
var version = ""

// built is what the binary says of itself.
type built struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
	Commit   string `json:"commit,omitempty"`
	Time     string `json:"time,omitempty"`
	Modified bool   `json:"modified,omitempty"`
}

func build() built {
	b := built{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	facts, ok := debug.ReadBuildInfo()
	if !ok {
		facts = &debug.BuildInfo{}
	}
	for _, s := range facts.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	if b.Version == "" {
		b.Version = facts.Main.Version
	}
	if b.Version == "" || b.Version == "(devel)" {
		b.Version = "devel"
		if len(b.Commit) >= 12 {
			b.Version += "-" + b.Commit[:12]
		}
	}
	return b
}

func (c *cli) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version", Args: takes(),
		Example: "  aval version\n  aval version -o json",
	}
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(context.Context, []string) error {
		b := build()
		return c.show(b, func() error {
			fmt.Fprintf(c.out, "aval %s (%s, %s)\n", b.Version, b.Go, b.Platform)
			return nil
		})
	})
	return cmd
}

func (c *cli) completionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	cmd := &cobra.Command{
		Use: "completion bash|zsh|fish", Short: "Print a shell's completion script",
		Example: `  source <(aval completion bash)
  aval completion zsh > "${fpath[1]}/_aval"
  aval completion fish > ~/.config/fish/completions/aval.fish`,
		Args:      cobra.MatchAll(takes("the shell"), cobra.OnlyValidArgs),
		ValidArgs: shells,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		root := cmd.Root()
		switch args[0] {
		case "bash":
			return root.GenBashCompletionV2(c.out, true)
		case "zsh":
			return root.GenZshCompletion(c.out)
		default:
			return root.GenFishCompletion(c.out, true)
		}
	}
	return cmd
}
