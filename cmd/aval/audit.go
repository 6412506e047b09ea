// This file holds the verbs that read the record: tail, show, export, schema.

package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/wire"
	"github.com/spf13/cobra"
)

// The logs of a server, as commands name them.
const (
	logAuthority   = "authority"
	logConnections = "connections"
)

func (c *cli) auditCommand() *cobra.Command {
	return group("audit", "The record: what was issued, who spoke to whom",
		c.auditTailCommand(), c.auditShowCommand(), c.auditProveCommand(), c.auditConsistencyCommand(),
		c.auditVerifyCommand(), c.auditExportCommand(), c.auditSchemaCommand())
}

// entryFilter is what the flags of tail and export say.
type entryFilter struct {
	log          string
	kinds        []string
	since, until string
	dataDir      string
	serial       string
	id, node     string
}

func (f *entryFilter) flags(cmd *cobra.Command) {
	cmd.Flags().Var(&choice{&f.log, []string{"", logAuthority, logConnections}}, "log", "authority or connections (default: both)")
	cmd.Flags().StringSliceVar(&f.kinds, "kind", nil, "only these kinds, such as issuance; may be repeated")
	cmd.Flags().StringVar(&f.since, "since", "", "not before: a duration back from now such as 24h, or a time (RFC 3339)")
	cmd.Flags().StringVar(&f.until, "until", "", "before: a duration back from now, or a time (RFC 3339)")
	cmd.Flags().StringVar(&f.serial, "serial", "", "about the certificate with this serial, in hexadecimal")
	cmd.Flags().StringVar(&f.id, "spiffe-id", "", "about this SPIFFE ID, as either end of a connection too")
	cmd.Flags().StringVar(&f.node, "node", "", "of this node's SPIFFE ID, such as spiffe://example.org/aval/node/n1")
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(kindNames(), cobra.ShellCompDirectiveNoFileComp))
}

func kindNames() []string {
	var names []string
	for _, k := range audit.Kinds() {
		names = append(names, string(k))
	}
	return names
}

// filter checks the flags.
func (f *entryFilter) filter(now time.Time) (audit.Filter, error) {
	var out audit.Filter
	var err error
	for _, name := range f.kinds {
		if !slices.Contains(audit.Kinds(), audit.Kind(name)) {
			if near := document.Nearest(name, kindNames()); near != "" {
				return out, usage(fmt.Errorf("kind %q is not known; did you mean %s?", name, near))
			}
			return out, usage(fmt.Errorf("kind %q is not known; there are %s", name, strings.Join(kindNames(), ", ")))
		}
		out.Kinds = append(out.Kinds, audit.Kind(name))
	}
	if f.serial != "" {
		if out.Serial, err = serialOf(f.serial); err != nil {
			return out, usage(fmt.Errorf("--serial: %w", err))
		}
	}
	for name, text := range map[string]string{"--spiffe-id": f.id, "--node": f.node} {
		if _, err := identity.ParseID(text); text != "" && err != nil {
			return out, usage(fmt.Errorf("%s: %w", name, err))
		}
	}
	out.SPIFFEID, out.Node = f.id, f.node
	if out.Since, err = moment(f.since, now); err != nil {
		return out, usage(fmt.Errorf("--since: %w", err))
	}
	if out.Until, err = moment(f.until, now); err != nil {
		return out, usage(fmt.Errorf("--until: %w", err))
	}
	return out, nil
}

// moment reads a time, or a duration back from now. Empty is no time.
func moment(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return now.Add(-time.Duration(n) * 24 * time.Hour), nil
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is neither a duration such as 24h nor a time such as 2026-01-02T15:04:05Z", text)
	}
	return t, nil
}

func (f *entryFilter) request(filter audit.Filter) *wire.EntriesRequest {
	req := &wire.EntriesRequest{Log: f.log, Kinds: f.kinds, Serial: filter.Serial, SpiffeId: filter.SPIFFEID, Node: filter.Node}
	if !filter.Since.IsZero() {
		req.Since = filter.Since.UnixMilli()
	}
	if !filter.Until.IsZero() {
		req.Until = filter.Until.UnixMilli()
	}
	return req
}

// stream calls fn with each entry of the server's answer.
func stream(ctx context.Context, admin wire.AdminClient, req *wire.EntriesRequest, fn func(log string, entry []byte) error) error {
	s, err := admin.Entries(ctx, req)
	if err != nil {
		return called("read the record", err)
	}
	for {
		resp, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			if ctx.Err() != nil && req.GetFollow() {
				return nil // the person has seen enough
			}
			return called("read the record", err)
		}
		for _, entry := range resp.GetEntries() {
			if err := fn(resp.GetLog(), entry); err != nil {
				return err
			}
		}
	}
}

func (c *cli) auditTailCommand() *cobra.Command {
	var f entryFilter
	var follow bool
	var last int64
	cmd := &cobra.Command{
		Use: "tail", Short: "Show the newest entries", Args: takes(),
		Example: `  aval audit tail
  aval audit tail -f --kind connection
  aval audit tail -n 100 --log authority -o jsonl`,
	}
	f.flags(cmd)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on as entries come")
	cmd.Flags().Int64VarP(&last, "last", "n", 10, "how many entries of each log to begin with")
	c.adminFlag(cmd)
	c.outputFlag(cmd, formTable, formJSONL)
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		filter, err := f.filter(time.Now())
		if err != nil {
			return err
		}
		if last < 0 {
			return usage(fmt.Errorf("--last %d is negative", last))
		}
		req := f.request(filter)
		req.Follow, req.Last = follow, last
		return c.admin(ctx, func(admin wire.AdminClient) error {
			return stream(ctx, admin, req, func(log string, entry []byte) error {
				if c.output == formJSONL {
					_, err := fmt.Fprintf(c.out, "%s\n", entry)
					return err
				}
				return c.printEntryLine(log, entry)
			})
		})
	})
	return cmd
}

// printEntryLine prints one entry on one line for a person.
func (c *cli) printEntryLine(log string, raw []byte) error {
	var e audit.Entry
	if err := json.Unmarshal(raw, &e); err != nil {
		return fmt.Errorf("entry of %s: %w", log, err)
	}
	verdict := string(e.Verdict)
	switch e.Verdict {
	case audit.VerdictAllowed, audit.VerdictDone:
		verdict = c.paint(green, verdict)
	case audit.VerdictDenied, audit.VerdictFailed:
		verdict = c.paint(red, verdict)
	}
	reason := e.Reason // like all that follows, as nodes and strangers worded it
	if reason == string(e.Verdict) {
		reason = "" // said already
	}
	transport := e.Transport
	if transport == audit.TransportMTLS {
		transport = "" // the rule; what is printed is the exception
	}
	parts := []string{localTime(e.Time, time.Now()), fmt.Sprintf("%s/%d", log, e.Index), string(e.Kind), verdict}
	switch {
	case e.Kind == audit.KindConnection, e.Kind == audit.KindConnectionClosed, e.Kind == audit.KindRequest:
		parts = append(parts, plain(orDash(e.ClientID)+" -> "+orDash(e.ServerID)))
	case e.ServerID != "":
		parts = append(parts, plain(e.ServerID))
	}
	if e.Kind == audit.KindRequest {
		parts = append(parts, plain(targetOf(&e.Event)))
	}
	for _, pair := range [][2]string{
		{"", e.Direction}, {"", transport}, {"", e.SPIFFEID}, {"", e.Document}, {"reason", reason}, {"policy", e.Policy}, {"mode", e.Mode},
		{"audit", e.AuditPolicy}, {"dry-run", dryRunOf(&e.Event)}, {"process", e.ClientProcess},
		{"serial", e.Serial}, {"node", e.Node}, {"actor", e.Actor}, {"", e.Detail},
	} {
		switch {
		case pair[1] == "":
		case pair[0] == "":
			parts = append(parts, plain(pair[1]))
		default:
			parts = append(parts, pair[0]+"="+plain(pair[1]))
		}
	}
	if e.Kind == audit.KindConnectionClosed {
		parts = append(parts, fmt.Sprintf("in=%d out=%d lasted=%s", e.BytesIn, e.BytesOut, time.Duration(e.DurationMS)*time.Millisecond))
	}
	if e.Count > 1 {
		parts = append(parts, fmt.Sprintf("count=%d", e.Count))
	}
	if e.Lost > 0 {
		parts = append(parts, fmt.Sprintf("lost=%d", e.Lost))
	}
	_, err := fmt.Fprintln(c.out, strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), "  "))
	return err
}

// dryRunOf says what the dry run would have decided, where that is another
// verdict.
func dryRunOf(e *audit.Event) string {
	if e.DryRun == "" || e.DryRun == e.Verdict {
		return ""
	}
	by := cmp.Or(e.DryRunPolicy, e.DryRunReason)
	return string(e.DryRun) + " by " + by
}

// localTime prints the time of day, and the day where it is another one.
func localTime(t, now time.Time) string {
	t, now = t.Local(), now.Local()
	if t.YearDay() == now.YearDay() && t.Year() == now.Year() {
		return t.Format("15:04:05.000")
	}
	return t.Format("2006-01-02 15:04:05.000")
}

func orDash(s string) string {
	if s == "" {
		return "?"
	}
	return s
}

func (c *cli) auditShowCommand() *cobra.Command {
	log, dataDir := "", ""
	cmd := &cobra.Command{
		Use: "show INDEX", Short: "Show one entry, or prove it", Args: takes("INDEX"),
		Long: `Show prints one entry. With --data-dir it reads the server's data directory or
a copy, without the server, and adds the proof that the entry is under the
signed checkpoint: the checkpoint, the audit path of RFC 6962 and the log's
verifier key. An entry is under the checkpoint within a second.`,
		Example: `  aval audit show 42
  aval audit show 7 --log connections -o json
  aval audit show 42 --data-dir /var/lib/aval/server -o json > proof.json`,
	}
	cmd.Flags().Var(&choice{&log, []string{logAuthority, logConnections}}, "log", "authority or connections")
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "read this data directory instead of asking the server, and prove the entry")
	c.adminFlag(cmd)
	c.outputFlag(cmd, formYAML, formJSON, formTable)
	cmd.MarkFlagsMutuallyExclusive("data-dir", "admin-socket")
	cmd.RunE = act(func(ctx context.Context, args []string) error {
		index, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil || index < 0 {
			return usage(fmt.Errorf("audit show: %q is not an index", args[0]))
		}
		if log == "" {
			log = logAuthority
		}
		if dataDir != "" {
			return c.proveEntry(logTarget{log, logDir(dataDir, log), keyOrNone(logKey(dataDir, log))}, index)
		}
		req := &wire.EntriesRequest{Log: log, Index: index, SetIndex: true}
		return c.admin(ctx, func(admin wire.AdminClient) error { return c.showEntry(ctx, admin, req) })
	})
	return cmd
}

func (c *cli) showEntry(ctx context.Context, admin wire.AdminClient, req *wire.EntriesRequest) error {
	found := false
	err := stream(ctx, admin, req, func(log string, entry []byte) error {
		found = true
		switch c.output {
		case formTable:
			return c.printEntryLine(log, entry)
		case formJSON:
			return printJSON(c.out, json.RawMessage(entry))
		}
		return printYAML(c.out, json.RawMessage(entry))
	})
	if err == nil && !found {
		return hinted(fmt.Errorf("audit show: the %s log has no entry %d", req.GetLog(), req.GetIndex()), exitNegative,
			"aval audit tail shows the newest")
	}
	return err
}

func (c *cli) auditExportCommand() *cobra.Command {
	var f entryFilter
	cmd := &cobra.Command{
		Use: "export", Short: "Write entries as JSON lines", Args: takes(),
		Long: `Export writes entries as JSON objects, one a line, in the form that
"aval audit schema" prints. It reads from the server, or with --data-dir from
the server's data directory or a copy, without the server.`,
		Example: `  aval audit export -o jsonl --since 24h --kind issuance
  aval audit export --spiffe-id spiffe://example.org/ns/shop/sa/web --since 30d
  aval audit export --serial 5f3c0a9be1d24c7f8a6b1e2d3c4f5a6b
  aval audit export --log connections --since 2026-01-02T15:04:05Z > connections.jsonl
  aval audit export --data-dir /backup/aval`,
	}
	f.flags(cmd)
	cmd.Flags().StringVar(&f.dataDir, "data-dir", "", "read this data directory instead of asking the server")
	c.adminFlag(cmd)
	c.outputFlag(cmd, formJSONL)
	cmd.MarkFlagsMutuallyExclusive("data-dir", "admin-socket")
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		filter, err := f.filter(time.Now())
		if err != nil {
			return err
		}
		if f.dataDir != "" {
			return c.exportOffline(f, filter)
		}
		return c.admin(ctx, func(admin wire.AdminClient) error {
			out := bufio.NewWriterSize(c.out, 64<<10)
			err := stream(ctx, admin, f.request(filter), func(_ string, entry []byte) error {
				if _, err := out.Write(entry); err != nil {
					return err
				}
				return out.WriteByte('\n')
			})
			return errors.Join(err, out.Flush())
		})
	})
	return cmd
}

func (c *cli) exportOffline(f entryFilter, filter audit.Filter) error {
	for _, log := range []string{logAuthority, logConnections} {
		if f.log != "" && f.log != log {
			continue
		}
		if _, err := audit.ExportJSONL(c.out, audit.SearchDir(logDir(f.dataDir, log), filter), filter); err != nil {
			return fmt.Errorf("%s log: %w", log, err)
		}
	}
	return nil
}

func (c *cli) auditSchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use: "schema", Short: "Print the JSON Schema of an entry", Args: takes(),
		Example: "  aval audit schema > audit.schema.json",
		RunE: act(func(context.Context, []string) error {
			_, err := c.out.Write(audit.Schema())
			return err
		}),
	}
}
