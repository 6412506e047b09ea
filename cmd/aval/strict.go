// This file holds explain strict: whether workloads can take mTLS alone, on
// the evidence of what was recorded.

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/aval-id/aval/identity/policy"
	"github.com/aval-id/aval/identity/wire"
	"github.com/spf13/cobra"
)

func (c *cli) explainStrictCommand() *cobra.Command {
	var window string
	cmd := &cobra.Command{
		Use:   "strict [WORKLOAD|NAMESPACE]",
		Short: "Whether a workload can take mTLS alone, and who would break",
		Long: `Strict looks at the recorded connections of a workload (NAMESPACE/NAME of its
registration, or its SPIFFE ID), of a namespace's, or of all. It lists the
plaintext ledger: who came without identity to which port, when last, how
often, what it probably is, and what to do.

A workload is ready where, over the whole window, connections were recorded,
none of them without identity was let in, and no record was lost. Callers that
a policy names and that never came are listed: nobody knows how they will come.
It exits with 1 where a workload is not ready.`,
		Example: `  aval explain strict shop/api
  aval explain strict shop --window 7d
  aval explain strict -o json`,
		Args: takes("[WORKLOAD|NAMESPACE]"),
	}
	cmd.Flags().StringVar(&window, "window", "24h", "how long it must have been clean, such as 24h or 7d")
	c.adminFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, args []string) error {
		length, err := span(window)
		if err != nil {
			return usage(fmt.Errorf("--window: %w", err))
		}
		req := &wire.ExplainStrictRequest{Window: length.Milliseconds()}
		if len(args) > 0 {
			req.Target = args[0]
		}
		return c.admin(ctx, func(admin wire.AdminClient) error { return c.explainStrict(ctx, admin, req) })
	})
	return cmd
}

// span reads a length of time: a duration, or days as in 7d.
func span(text string) (time.Duration, error) {
	now := time.Now()
	then, err := moment(text, now)
	if err != nil || text == "" || !then.Before(now) || strings.Contains(text, ":") {
		return 0, fmt.Errorf("%q is not a length of time such as 24h or 7d", text)
	}
	return now.Sub(then), nil
}

// strictness is the answer in JSON and YAML.
type strictness struct {
	Ready     bool             `json:"ready"` // all of them
	Window    string           `json:"window"`
	At        time.Time        `json:"at"`
	Reading   bool             `json:"reading,omitempty"` // the older record is still being read
	Fault     string           `json:"fault,omitempty"`
	Overflow  uint64           `json:"overflow,omitempty"`
	Workloads []strictWorkload `json:"workloads"`
}

type strictWorkload struct {
	Registration  string       `json:"registration"`
	SPIFFEID      string       `json:"spiffe_id"`
	Ready         bool         `json:"ready"`
	Missing       []string     `json:"missing,omitempty"`
	CleanSince    time.Time    `json:"clean_since,omitzero"`
	ObservedSince time.Time    `json:"observed_since,omitzero"`
	LastSeen      time.Time    `json:"last_seen,omitzero"`
	Connections   uint64       `json:"connections"`
	Ports         []strictPort `json:"ports"`
	NeverObserved []string     `json:"never_observed,omitempty"`
	Nodes         []string     `json:"nodes,omitempty"`
	Lost          uint64       `json:"lost,omitempty"`
	Untrusted     uint64       `json:"untrusted,omitempty"`

	Exceptions []strictException `json:"exceptions,omitempty"`
}

type strictException struct {
	Name   string    `json:"name"`
	Reason string    `json:"reason"`
	Until  time.Time `json:"until"`
	Holds  bool      `json:"holds"`
}

type strictPort struct {
	Port        uint32         `json:"port"` // 0 for those beyond what the ledger tells apart
	Mode        string         `json:"mode"`
	ModeSource  string         `json:"mode_source,omitempty"`
	Ready       bool           `json:"ready"`
	CleanSince  time.Time      `json:"clean_since,omitzero"`
	Connections uint64         `json:"connections"`
	Clients     []strictClient `json:"clients"`
}

type strictClient struct {
	Cause     string    `json:"cause"`
	Admitted  bool      `json:"admitted"`
	Breaks    bool      `json:"breaks"`
	SPIFFEID  string    `json:"spiffe_id,omitempty"`
	Source    string    `json:"source,omitempty"`
	Protocol  string    `json:"protocol,omitempty"`
	Known     string    `json:"known,omitempty"`
	Fix       string    `json:"fix,omitempty"`
	FirstSeen time.Time `json:"first_seen"`
	LastSeen  time.Time `json:"last_seen"`
	Count     uint64    `json:"count"`
	Exception string    `json:"exception,omitempty"`     // that lets it in until it ends
	Processes []string  `json:"processes,omitempty"`     // on the machine of its proxy
	Requests  []string  `json:"requests,omitempty"`      // what it asks for, the most first
	Asked     uint64    `json:"request_count,omitempty"` // requests of its address on the port, in all
	Several   bool      `json:"several,omitempty"`       // it stands for clients beyond what the ledger tells apart
}

func (c *cli) explainStrict(ctx context.Context, admin wire.AdminClient, req *wire.ExplainStrictRequest) error {
	resp, err := admin.ExplainStrict(ctx, req)
	if err != nil {
		return called("explain strict", err)
	}
	s := strictness{
		Ready: len(resp.GetWorkloads()) > 0, Window: (time.Duration(resp.GetWindow()) * time.Millisecond).String(), At: stamp(resp.GetClock()),
		Reading: resp.GetReading(), Fault: resp.GetFault(), Overflow: resp.GetOverflow(), Workloads: []strictWorkload{},
	}
	for _, w := range resp.GetWorkloads() {
		s.Ready = s.Ready && w.GetReady()
		s.Workloads = append(s.Workloads, toStrictWorkload(w))
	}
	if err := c.show(s, func() error { c.printStrictness(s); return nil }); err != nil {
		return err
	}
	if !s.Ready {
		return negative()
	}
	return nil
}

func toStrictWorkload(w *wire.StrictWorkload) strictWorkload {
	out := strictWorkload{
		Registration: w.GetRegistration(), SPIFFEID: w.GetSpiffeId(), Ready: w.GetReady(), Missing: w.GetMissing(),
		CleanSince: stamp(w.GetCleanSince()), ObservedSince: stamp(w.GetObservedSince()), LastSeen: stamp(w.GetLastSeen()),
		Connections: w.GetConnections(), Ports: []strictPort{}, NeverObserved: w.GetNeverObserved(), Nodes: w.GetNodes(),
		Lost: w.GetLost(), Untrusted: w.GetUntrusted(),
	}
	for _, x := range w.GetExceptions() {
		out.Exceptions = append(out.Exceptions, strictException{x.GetName(), x.GetReason(), stamp(x.GetUntil()), x.GetHolds()})
	}
	for _, p := range w.GetPorts() {
		port := strictPort{Port: p.GetPort(), Mode: p.GetMode(), ModeSource: p.GetModeSource(), Ready: p.GetReady(),
			CleanSince: stamp(p.GetCleanSince()), Connections: p.GetConnections(), Clients: []strictClient{}}
		for _, v := range p.GetClients() {
			port.Clients = append(port.Clients, strictClient{
				Cause: v.GetCause(), Admitted: v.GetAdmitted(), Breaks: v.GetBreaks(), SPIFFEID: v.GetSpiffeId(), Source: v.GetSource(),
				Protocol: v.GetProtocol(), Known: v.GetKnown(), Fix: v.GetFix(), FirstSeen: stamp(v.GetFirstSeen()),
				LastSeen: stamp(v.GetLastSeen()), Count: v.GetCount(), Several: v.GetUnnamed(),
				Exception: v.GetException(), Processes: v.GetProcesses(), Requests: v.GetRequests(), Asked: v.GetRequestCount(),
			})
		}
		out.Ports = append(out.Ports, port)
	}
	return out
}

func (c *cli) printStrictness(s strictness) {
	if len(s.Workloads) == 0 {
		fmt.Fprintln(c.err, "no workload is registered")
		return
	}
	for i, w := range s.Workloads {
		if i > 0 {
			fmt.Fprintln(c.out)
		}
		verdict := c.paint(green, "ready")
		if !w.Ready {
			verdict = c.paint(red, "not ready")
		}
		fmt.Fprintf(c.out, "%s  %s  %s\n", verdict, w.Registration, w.SPIFFEID)
		for _, text := range w.Missing {
			fmt.Fprintf(c.out, "  %s\n", plain(text))
		}
		if w.Connections > 0 {
			fmt.Fprintf(c.out, "  clean since %s, observed since %s, %s in all; the window is %s\n",
				ago(w.CleanSince, s.At), ago(w.ObservedSince, s.At), plural(int(w.Connections), "connection"), s.Window)
		}
		for _, p := range w.Ports {
			c.printStrictPort(p, s.At)
		}
		for _, x := range w.Exceptions {
			end := "ends " + ago(x.Until, s.At)
			if !x.Holds {
				end = "ended " + ago(x.Until, s.At) + ": delete it"
			}
			fmt.Fprintf(c.out, "  exception %s %s: %s\n", x.Name, end, plain(x.Reason))
		}
		if len(w.NeverObserved) > 0 {
			fmt.Fprintf(c.out, "  named by a policy and never observed within the window:\n    %s\n", strings.Join(w.NeverObserved, "\n    "))
		}
		if w.Untrusted > 0 {
			fmt.Fprintf(c.out, "  left out: %s of nodes that may not hold this identity\n", plural(int(w.Untrusted), "record"))
		}
	}
}

func (c *cli) printStrictPort(p strictPort, now time.Time) {
	by := ""
	if p.ModeSource != "" {
		by = " by " + p.ModeSource
	}
	name := fmt.Sprintf("port %d", p.Port)
	if p.Port == 0 {
		name = "further ports"
	}
	fmt.Fprintf(c.out, "  %s: %s%s, %s\n", name, p.Mode, by, plural(int(p.Connections), "connection"))
	for _, v := range p.Clients {
		state := "came before the window"
		switch {
		case v.Cause == "mtls":
			state = c.paint(green, "stays")
		case v.Exception != "":
			state = c.paint(yellow, "excepted by "+v.Exception)
		case v.Breaks && p.Mode == policy.Strict.String():
			state = c.paint(red, "refused since strict")
		case v.Breaks:
			state = c.paint(red, "would break")
		case !v.Admitted:
			state = c.paint(yellow, "not let in")
		}
		who := strings.TrimSpace(v.SPIFFEID + " " + v.Source)
		if v.SPIFFEID != "" && v.Cause != "mtls" {
			who = v.Source + " claiming " + v.SPIFFEID
		}
		if v.Several {
			who = "several"
		}
		fmt.Fprintf(c.out, "    %s: %s, %s, %d times, last %s\n", state, plain(orDash(who)), v.Cause, v.Count, ago(v.LastSeen, now))
		if v.Known != "" {
			fmt.Fprintf(c.out, "      %s\n", plain(v.Known))
		}
		for _, process := range v.Processes {
			fmt.Fprintf(c.out, "      %s\n", plain(process))
		}
		if len(v.Requests) > 0 {
			fmt.Fprintf(c.out, "      asks for %s (%s of this address)\n", plain(strings.Join(v.Requests, ", ")), plural(int(v.Asked), "request"))
		}
		if v.Fix != "" {
			fmt.Fprintf(c.out, "      to do: %s\n", plain(v.Fix))
		}
	}
}
