// This file holds explain: why a process has no identity, or which it has.

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/wire"
	"github.com/spf13/cobra"
)

func (c *cli) explainCommand() *cobra.Command {
	return group("explain", "Why something is as it is", c.explainPIDCommand())
}

func (c *cli) explainPIDCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pid PID",
		Short: "Why a process has no identity, or which it has",
		Long: `Explain shows what the agent sees of a process, the registrations that match
it, and of those that miss the nearest first, with what would make it match.
It exits with 1 where the process has no identity. Root, the agent's user and
the process's own user may ask.`,
		Example: `  aval explain pid 4242
  aval explain pid $(pidof web) --socket /run/aval/agent/workload.sock -o json`,
		Args: takes("PID"),
	}
	c.socketFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, args []string) error {
		pid, err := strconv.ParseInt(args[0], 10, 32)
		if err != nil || pid <= 0 {
			return usage(fmt.Errorf("explain pid: %q is not a process ID", args[0]))
		}
		return c.local(ctx, func(local wire.LocalClient) error { return c.explain(ctx, local, int32(pid)) })
	})
	return cmd
}

// explanation is the answer in JSON and YAML.
type explanation struct {
	PID            int32                   `json:"pid"`
	Entitled       bool                    `json:"entitled"`
	Selectors      map[string][]string     `json:"selectors"`
	NodeID         string                  `json:"node_id"`
	NodeAttributes map[string][]string     `json:"node_attributes"`
	Registrations  []explainedRegistration `json:"registrations"`
	Error          string                  `json:"error,omitempty"`
}

type explainedRegistration struct {
	Registration string    `json:"registration"`
	SPIFFEID     string    `json:"spiffe_id"`
	Matches      bool      `json:"matches"`
	Missing      []string  `json:"missing,omitempty"`
	Seen         []string  `json:"seen,omitempty"`
	Serial       string    `json:"serial,omitempty"`
	NotAfter     time.Time `json:"not_after,omitzero"`
}

func (c *cli) explain(ctx context.Context, local wire.LocalClient, pid int32) error {
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); errors.Is(err, fs.ErrNotExist) {
		return hinted(fmt.Errorf("explain pid %d: there is no such process", pid), exitNegative, "pidof NAME or pgrep NAME find it")
	}
	resp, err := local.Explain(ctx, &wire.ExplainRequest{Pid: pid})
	if err != nil {
		return called(fmt.Sprintf("explain pid %d", pid), err)
	}
	e := explanation{
		PID: pid, Selectors: wire.ToAttributes(resp.GetSelectors()), NodeID: resp.GetNodeId(),
		NodeAttributes: wire.ToAttributes(resp.GetNodeAttributes()), Registrations: []explainedRegistration{}, Error: resp.GetError(),
	}
	for _, r := range resp.GetRegistrations() {
		e.Entitled = e.Entitled || r.GetMatches()
		e.Registrations = append(e.Registrations, explainedRegistration{
			Registration: r.GetRegistration(), SPIFFEID: r.GetSpiffeId(), Matches: r.GetMatches(),
			Missing: r.GetMissing(), Seen: r.GetSeen(), Serial: r.GetSerial(), NotAfter: stamp(r.GetNotAfter()),
		})
	}
	if err := c.show(e, func() error { c.printExplanation(e); return nil }); err != nil {
		return err
	}
	if !e.Entitled {
		return negative()
	}
	return nil
}

// nearest bounds how many registrations that miss are printed.
const nearest = 3

func (c *cli) printExplanation(e explanation) {
	fmt.Fprintf(c.out, "process %d on %s\n", e.PID, e.NodeID)
	fmt.Fprintf(c.out, "  seen: %s\n", plain(identity.Attributes(e.Selectors).String()))
	if e.Error != "" {
		fmt.Fprintf(c.out, "  not seen: %s\n", e.Error)
	}
	missed := 0
	for _, r := range e.Registrations {
		if r.Matches {
			fmt.Fprintf(c.out, "%s registration %s matches: %s\n", c.paint(green, "yes"), r.Registration, r.SPIFFEID)
			if r.Serial != "" {
				fmt.Fprintf(c.out, "  serial %s, ends %s\n", r.Serial, ago(r.NotAfter, time.Now()))
			}
			continue
		}
		if missed++; missed > nearest || e.Entitled {
			continue
		}
		c.printMiss(r, missed == 1)
	}
	if e.Entitled {
		return
	}
	if len(e.Registrations) == 0 {
		fmt.Fprintf(c.out, "%s identity: no registration reaches this node (%s)\n", c.paint(red, "no"), identity.Attributes(e.NodeAttributes))
		fmt.Fprintln(c.out, "  to match: a registration whose spec.node holds for this node; aval get registrations -A shows all")
	}
	if missed > nearest {
		fmt.Fprintf(c.out, "and %s further away; -o json shows all\n", plural(missed-nearest, "registration"))
	}
}

func (c *cli) printMiss(r explainedRegistration, first bool) {
	if first {
		fmt.Fprintf(c.out, "%s identity; the nearest registration that misses:\n", c.paint(red, "no"))
	}
	fmt.Fprintf(c.out, "  registration %s (%s)\n", r.Registration, r.SPIFFEID)
	fmt.Fprintf(c.out, "    wants %s\n", strings.Join(r.Missing, " "))
	if len(r.Seen) > 0 {
		fmt.Fprintf(c.out, "    seen  %s\n", plain(strings.Join(r.Seen, " ")))
	} else {
		fmt.Fprintln(c.out, "    seen  nothing under that name")
	}
	if first && len(r.Seen) > 0 {
		fmt.Fprintf(c.out, "    to match: set spec.workload of it to %s, or run the process so that it has %s\n", plain(strings.Join(r.Seen, " ")), strings.Join(r.Missing, " "))
	} else if first {
		fmt.Fprintf(c.out, "    to match: run the process so that it has %s\n", strings.Join(r.Missing, " "))
	}
}
