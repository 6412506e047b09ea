// This file holds policy simulate: a set of documents tried on what was
// recorded.

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/wire"
	"github.com/spf13/cobra"
)

func (c *cli) policySimulateCommand() *cobra.Command {
	var files []string
	var since, until string
	var only bool
	cmd := &cobra.Command{
		Use:   "simulate -f FILE|DIR|-",
		Short: "Try policies on the recorded connections and requests: what would break or open",
		Long: `Simulate judges the connections and the requests that were recorded in a window
of time anew, by the evaluator that proxies use: with the server's documents in
which those of the files replace the ones of the same kind, namespace and name,
or with --only by the policies of the files alone. Nothing is changed.

A connection or a request breaks where it was let in and would be refused,
opens where it was refused and would be let in, and else stays. It is undecided
where that depends on what was not recorded: on a header or a claim, on a path
that was not told apart from others, on requests that no policy asked about.
Handshakes that failed before any policy was asked are counted apart. It exits
with 1 where something would break.`,
		Example: `  aval policy simulate -f strict.yaml --since 24h
  aval policy simulate -f policies/ --only --since 7d -o json`,
		Args: takes(),
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, directory, or - for the standard input; may be repeated")
	cmd.Flags().StringVar(&since, "since", "24h", "not before: a duration back from now such as 24h or 7d, or a time (RFC 3339)")
	cmd.Flags().StringVar(&until, "until", "", "before: a duration back from now, or a time (RFC 3339)")
	cmd.Flags().BoolVar(&only, "only", false, "the policies of the files alone, without the server's")
	c.namespaceFlag(cmd, defaultNamespace, "namespace of documents that name none")
	c.adminFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		if len(files) == 0 {
			return usage(errors.New("policy simulate: -f is missing"))
		}
		f := entryFilter{log: logConnections, kinds: []string{string(audit.KindConnection), string(audit.KindRequest), string(audit.KindLoss)}, since: since, until: until}
		filter, err := f.filter(time.Now())
		if err != nil {
			return err
		}
		docs, err := c.readDocuments(files)
		if err != nil {
			return err
		}
		if len(docs) == 0 {
			return usage(fmt.Errorf("policy simulate: no document in %s", strings.Join(files, ", ")))
		}
		return c.admin(ctx, func(admin wire.AdminClient) error {
			return c.simulate(ctx, admin, docs, only, f.request(filter), filter)
		})
	})
	return cmd
}

// simulation is the answer in JSON and YAML.
type simulation struct {
	Since     time.Time         `json:"since,omitzero"`
	Until     time.Time         `json:"until,omitzero"`
	Breaks    uint64            `json:"breaks"`
	Opens     uint64            `json:"opens"`
	Stays     uint64            `json:"stays"`
	Undecided uint64            `json:"undecided"`
	Requests  effects           `json:"requests"`             // the same four of requests; those above are of connections
	DependsOn map[string]uint64 `json:"depends_on,omitempty"` // of what is undecided, by what it depends on
	Changes   []replayed        `json:"changes"`
	Clients   []effects         `json:"clients"`
	Policies  []effects         `json:"policies"`           // by what would decide
	Unjudged  map[string]uint64 `json:"unjudged,omitempty"` // what no policy decided, by reason
	Lost      uint64            `json:"lost,omitempty"`     // records of the window that were dropped
}

func (c *cli) simulate(ctx context.Context, admin wire.AdminClient, docs []document.Document, only bool, req *wire.EntriesRequest, window audit.Filter) error {
	s, err := policySettings(ctx, admin)
	if err != nil {
		return err
	}
	warnings, err := checkDocuments(docs, s)
	if err != nil {
		return err
	}
	c.warn(warnings, nil)
	resp, err := admin.Get(ctx, &wire.GetRequest{})
	if err != nil {
		return called("policy simulate", err)
	}
	held, err := documentsOf(resp)
	if err != nil {
		return err
	}
	r, err := newReplay(replaced(held, docs, only), s, time.Now())
	if err != nil {
		return fmt.Errorf("policy simulate: %w", err)
	}
	err = stream(ctx, admin, req, func(_ string, raw []byte) error {
		var e audit.Entry
		if err := json.Unmarshal(raw, &e); err != nil {
			return fmt.Errorf("entry of %s: %w", logConnections, err)
		}
		r.add(&e.Event)
		return nil
	})
	if err != nil {
		return err
	}
	out := r.result()
	out.Since, out.Until = window.Since, window.Until
	if err := c.show(out, func() error { return c.printSimulation(out) }); err != nil {
		return err
	}
	if out.Breaks+out.Requests.Breaks > 0 {
		return negative()
	}
	return nil
}

// replaced returns the server's documents with others in their place. A
// document keeps the time at which its key was first stored, as at an apply;
// a new one counts as the youngest. With only, the server's policies go.
func replaced(held, docs []document.Document, only bool) []document.Document {
	all := map[document.Key]document.Document{}
	created := map[document.Key]time.Time{}
	for _, d := range held {
		created[d.Key()] = d.Metadata().CreationTimestamp
		if !only || d.Kind() == document.Registration {
			all[d.Key()] = d
		}
	}
	for _, d := range docs {
		all[d.Key()] = d.WithCreationTimestamp(created[d.Key()])
	}
	return slices.SortedFunc(maps.Values(all), func(a, b document.Document) int { return a.Key().Compare(b.Key()) })
}

// result sorts what was counted: what breaks most comes first.
func (r *replay) result() simulation {
	out := simulation{Breaks: r.total.Breaks, Opens: r.total.Opens, Stays: r.total.Stays, Undecided: r.total.Undecided,
		Requests: r.requests, DependsOn: r.undecided, Changes: []replayed{},
		Clients: sortedEffects(r.clients), Policies: sortedEffects(r.policies), Unjudged: r.unjudged, Lost: r.lost}
	for _, c := range r.changes {
		c.Requests = c.mostAsked()
		out.Changes = append(out.Changes, *c)
	}
	slices.SortFunc(out.Changes, func(a, b replayed) int {
		return cmp.Or(strings.Compare(a.Effect, b.Effect), strings.Compare(a.Of, b.Of), cmp.Compare(b.Count, a.Count), strings.Compare(a.Workload, b.Workload),
			strings.Compare(a.Client, b.Client), cmp.Compare(a.Port, b.Port), strings.Compare(a.Transport, b.Transport),
			strings.Compare(a.Was.Policy, b.Was.Policy))
	})
	return out
}

func sortedEffects(m map[effectKey]*effects) []effects {
	out := []effects{}
	for _, e := range m {
		out = append(out, *e)
	}
	slices.SortFunc(out, func(a, b effects) int {
		return cmp.Or(cmp.Compare(b.Breaks, a.Breaks), cmp.Compare(b.Opens, a.Opens), cmp.Compare(b.Stays, a.Stays),
			cmp.Compare(b.Undecided, a.Undecided), strings.Compare(a.Name, b.Name), strings.Compare(a.Of, b.Of))
	})
	return out
}

func (c *cli) printSimulation(s simulation) error {
	c.printTotal("connections", effects{Breaks: s.Breaks, Opens: s.Opens, Stays: s.Stays, Undecided: s.Undecided})
	c.printTotal("requests", s.Requests)
	if len(s.Changes) > 0 {
		t := table{heading: []string{"EFFECT", "OF", "WORKLOAD", "PORT", "CLIENT", "COUNT", "LAST", "WAS", "WOULD BE"}}
		for _, x := range s.Changes {
			t.add(x.Effect, x.Of, x.Workload, fmt.Sprint(x.Port), plain(x.Client), fmt.Sprint(x.Count), ago(x.Last, time.Now()),
				x.Was.Reason+" ("+plain(x.Was.decider())+")", x.WouldBe.Reason+" ("+x.WouldBe.decider()+")")
		}
		fmt.Fprintln(c.out)
		if err := t.print(c.out); err != nil {
			return err
		}
		c.printTargets(s.Changes)
	}
	for _, part := range []struct {
		heading string
		all     []effects
	}{{"CLIENT", s.Clients}, {"DECIDED BY", s.Policies}} {
		if len(part.all) == 0 {
			continue
		}
		t := table{heading: []string{part.heading, "OF", "BREAKS", "OPENS", "STAYS", "UNDECIDED"}}
		for _, e := range part.all {
			t.add(plain(e.Name), e.Of, fmt.Sprint(e.Breaks), fmt.Sprint(e.Opens), fmt.Sprint(e.Stays), fmt.Sprint(e.Undecided))
		}
		fmt.Fprintln(c.out)
		if err := t.print(c.out); err != nil {
			return err
		}
	}
	if len(s.Unjudged) > 0 {
		fmt.Fprintln(c.out, "\nno policy decided:")
		for _, reason := range slices.Sorted(maps.Keys(s.Unjudged)) {
			fmt.Fprintf(c.out, "  %s: %d\n", plain(reason), s.Unjudged[reason])
		}
	}
	if len(s.DependsOn) > 0 {
		fmt.Fprintln(c.out, "\nundecided, as it depends on:")
		for _, what := range slices.Sorted(maps.Keys(s.DependsOn)) {
			fmt.Fprintf(c.out, "  %s: %d\n", plain(what), s.DependsOn[what])
		}
	}
	if s.Requests.Breaks+s.Requests.Opens+s.Requests.Stays+s.Requests.Undecided+s.Breaks+s.Opens+s.Stays+s.Undecided == 0 {
		fmt.Fprintln(c.err, "no connection was recorded in that time: this proves nothing")
	}
	if s.Lost > 0 {
		fmt.Fprintf(c.err, "%d records of that time were lost: this is not the whole traffic\n", s.Lost)
	}
	return nil
}

func (c *cli) printTotal(what string, e effects) {
	fmt.Fprintf(c.out, "%s: %s would break, %s would open, %d stay, %d undecided\n", what, c.counted(red, e.Breaks), c.counted(yellow, e.Opens), e.Stays, e.Undecided)
}

// printTargets names what the requests of changes were for.
func (c *cli) printTargets(changes []replayed) {
	for _, x := range changes {
		if len(x.Requests) == 0 {
			continue
		}
		fmt.Fprintf(c.out, "\n%s of %s to %s:\n", x.Effect, plain(x.Client), x.Workload)
		for _, a := range x.Requests {
			fmt.Fprintf(c.out, "  %s: %d\n", plain(a.Target), a.Count)
		}
	}
}

func (c *cli) counted(color string, n uint64) string {
	if n == 0 {
		return "0"
	}
	return c.paint(color, fmt.Sprint(n))
}
