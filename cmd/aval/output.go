// This file holds the forms of output: tables, JSON and YAML.

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

const (
	formTable = "table"
	formJSON  = "json"
	formYAML  = "yaml"
	formJSONL = "jsonl"
)

// list is the form of a list in JSON and YAML.
type list[T any] struct {
	Items []T `json:"items"`
}

// items makes a list whose JSON is never null.
func items[T any](all []T) list[T] {
	if all == nil {
		all = []T{}
	}
	return list[T]{all}
}

// table is rows under a heading.
type table struct {
	heading []string
	rows    [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, strings.Join(t.heading, "\t"))
	for _, row := range t.rows {
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	return tw.Flush()
}

// show prints v as JSON or YAML where -o says so, and else calls asTable.
func (c *cli) show(v any, asTable func() error) error {
	switch c.output {
	case formJSON:
		return printJSON(c.out, v)
	case formYAML:
		return printYAML(c.out, v)
	}
	return asTable()
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printYAML prints v as YAML with its JSON names, in their order.
func printYAML(w io.Writer, v any) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	var node yaml.Node
	if err := yaml.Unmarshal(buf.Bytes(), &node); err != nil {
		return fmt.Errorf("print as YAML: %w", err)
	}
	blockStyle(&node)
	out := yaml.NewEncoder(w)
	out.SetIndent(2)
	if err := out.Encode(&node); err != nil {
		return fmt.Errorf("print as YAML: %w", err)
	}
	return out.Close()
}

// blockStyle drops the flow style and needless quotes that JSON brought along.
func blockStyle(n *yaml.Node) {
	n.Style &^= yaml.FlowStyle
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" {
		n.Style = 0 // the encoder quotes what would read as another type
	}
	for _, child := range n.Content {
		blockStyle(child)
	}
}

// colorTerminal reports whether f is a terminal whose user did not set
// NO_COLOR.
func colorTerminal(f *os.File, environ []string) bool {
	for _, pair := range environ {
		if v, ok := strings.CutPrefix(pair, "NO_COLOR="); ok && v != "" {
			return false
		}
		if pair == "TERM=dumb" {
			return false
		}
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

const (
	red    = "31"
	green  = "32"
	yellow = "33"
)

// paint colours text for a terminal.
func (c *cli) paint(color, text string) string {
	if !c.color || text == "" {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

// plain makes a text that came from elsewhere fit for a terminal: what could
// move the cursor, begin a line or change a colour is printed as an escape.
func plain(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) && utf8.ValidString(s) {
		return s
	}
	quoted := strconv.Quote(s)
	return quoted[1 : len(quoted)-1]
}

// stamp is a time in milliseconds of the Unix epoch, RFC 3339 in JSON and
// absent where it is zero.
func stamp(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// ago prints a time as a distance from now: "3m ago", "in 4h".
func ago(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := t.Sub(now)
	if d.Abs() < time.Second {
		return "just now"
	}
	if d < 0 {
		return short(-d) + " ago"
	}
	return "in " + short(d)
}

// short prints a duration in its two largest units.
func short(d time.Duration) string {
	switch {
	case d < time.Minute:
		return d.Truncate(time.Second).String()
	case d < time.Hour:
		return strings.TrimSuffix(d.Truncate(time.Second).String(), "0s")
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s")
	default:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	}
}

// plural prints a count with its noun.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
