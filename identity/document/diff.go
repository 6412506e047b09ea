// This file holds Diff: what would change, line by line, for people.

package document

import (
	"bytes"
	"strings"
)

const (
	diffContext  = 3
	maxDiffCells = 4 << 20 // above it a changed middle is shown whole
)

// Diff returns how the YAML form of the document changes from old to new,
// each canonical JSON as JSON returns it, or empty where there is none: lines
// with ' ', '-' and '+', three lines of context, and "@@" between parts that
// lie apart. Equal documents give "". What is not a document is compared as
// the text it is.
func Diff(old, new []byte) string {
	a, b := yamlLines(old), yamlLines(new)
	var ops []diffLine
	start := 0
	for start < len(a) && start < len(b) && a[start] == b[start] {
		ops = append(ops, diffLine{' ', a[start]})
		start++
	}
	endA, endB := len(a), len(b)
	for endA > start && endB > start && a[endA-1] == b[endB-1] {
		endA--
		endB--
	}
	ops = append(ops, diffMiddle(a[start:endA], b[start:endB])...)
	for _, line := range a[endA:] {
		ops = append(ops, diffLine{' ', line})
	}
	return printDiff(ops)
}

type diffLine struct {
	sign byte
	text string
}

func yamlLines(data []byte) []string {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil
	}
	text := string(data)
	if d, err := FromJSON(data); err == nil {
		if y, err := d.YAML(); err == nil {
			text = string(y)
		}
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

// diffMiddle finds the longest common subsequence of a and b.
func diffMiddle(a, b []string) []diffLine {
	var ops []diffLine
	i, j := 0, 0
	if len(a)*len(b) <= maxDiffCells {
		width := len(b) + 1
		common := make([]int32, (len(a)+1)*width)
		for i := len(a) - 1; i >= 0; i-- {
			for j := len(b) - 1; j >= 0; j-- {
				if a[i] == b[j] {
					common[i*width+j] = common[(i+1)*width+j+1] + 1
				} else {
					common[i*width+j] = max(common[(i+1)*width+j], common[i*width+j+1])
				}
			}
		}
		for i < len(a) && j < len(b) {
			switch {
			case a[i] == b[j]:
				ops = append(ops, diffLine{' ', a[i]})
				i++
				j++
			case common[(i+1)*width+j] >= common[i*width+j+1]:
				ops = append(ops, diffLine{'-', a[i]})
				i++
			default:
				ops = append(ops, diffLine{'+', b[j]})
				j++
			}
		}
	}
	for ; i < len(a); i++ {
		ops = append(ops, diffLine{'-', a[i]})
	}
	for ; j < len(b); j++ {
		ops = append(ops, diffLine{'+', b[j]})
	}
	return ops
}

// printDiff prints the changed lines and those near them.
func printDiff(ops []diffLine) string {
	show := make([]bool, len(ops))
	for i, op := range ops {
		if op.sign != ' ' {
			for k := max(0, i-diffContext); k < min(len(ops), i+diffContext+1); k++ {
				show[k] = true
			}
		}
	}
	var out strings.Builder
	for i, op := range ops {
		if !show[i] {
			continue
		}
		if i > 0 && !show[i-1] {
			out.WriteString("@@\n")
		}
		out.WriteByte(op.sign)
		out.WriteByte(' ')
		out.WriteString(op.text)
		out.WriteByte('\n')
	}
	return out.String()
}
