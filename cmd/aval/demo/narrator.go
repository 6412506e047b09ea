// This file holds how the story is told: titles, steps, the commands that do
// the same by hand, and tables.

package demo

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

const (
	bold  = "\x1b[1m"
	dim   = "\x1b[2m"
	cyan  = "\x1b[36m"
	green = "\x1b[32m"
	reset = "\x1b[0m"
)

// narrator writes the story. A reader that went away stops nothing: errors
// of the writer are left to the JSON object, which counts.
type narrator struct {
	w     io.Writer
	color bool
	dir   string // where a person who types along is
}

// paint puts text between a colour and its end, where colours are wanted.
func (n *narrator) paint(color, text string) string {
	if !n.color {
		return text
	}
	return color + text + reset
}

func (n *narrator) title(text string) {
	fmt.Fprintf(n.w, "%s\n", n.paint(bold, text))
}

func (n *narrator) step(number int, text string) {
	fmt.Fprintf(n.w, "\n%s\n", n.paint(bold, fmt.Sprintf("%2d. %s", number, text)))
}

// say writes one indented line of the story.
func (n *narrator) say(format string, args ...any) {
	fmt.Fprintf(n.w, "    %s\n", fmt.Sprintf(format, args...))
}

// good writes what was found as it should be.
func (n *narrator) good(format string, args ...any) {
	fmt.Fprintf(n.w, "    %s %s\n", n.paint(green, "✓"), fmt.Sprintf(format, args...))
}

// command shows what a person in the demo's directory would type.
func (n *narrator) command(words ...string) {
	near := make([]string, len(words))
	for i, w := range words {
		near[i] = strings.TrimPrefix(w, n.dir+"/")
	}
	n.shell(shellLine(near))
}

// shell shows a line for a shell as it is.
func (n *narrator) shell(line string) {
	fmt.Fprintf(n.w, "    %s\n", n.paint(cyan, "$ "+line))
}

// comment writes an aside.
func (n *narrator) comment(format string, args ...any) {
	fmt.Fprintf(n.w, "    %s\n", n.paint(dim, fmt.Sprintf(format, args...)))
}

// table writes rows below a heading.
func (n *narrator) table(rows [][]string) {
	t := tabwriter.NewWriter(n.w, 0, 0, 3, ' ', 0)
	for _, row := range rows {
		fmt.Fprintf(t, "    %s\n", strings.Join(row, "\t"))
	}
	t.Flush()
}

// shellLine joins words so that a shell reads them back.
func shellLine(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = w
		if w == "" || strings.ContainsAny(w, " \t\n\"'\\$`*?[]{}()<>|&;#~!") {
			quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}
