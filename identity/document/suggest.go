// This file holds Nearest: the name that a misspelt one was probably meant to
// be.

package document

import "strings"

// Nearest returns the allowed name with the smallest edit distance to found,
// or "" if none is near enough to be a misspelling: at most a third of its
// length, at least two edits. Case does not count. Among equally near names
// the first wins.
func Nearest(found string, allowed []string) string {
	best, bestDistance := "", 0
	for _, name := range allowed {
		limit := max(2, len(name)/3)
		if len(name) <= 2 {
			limit = 1
		}
		d := distance(strings.ToLower(found), strings.ToLower(name), limit)
		if d <= limit && (best == "" || d < bestDistance) {
			best, bestDistance = name, d
		}
	}
	return best
}

// distance is the number of insertions, deletions, substitutions and swaps of
// neighbours between a and b, or limit+1 where it is more than limit.
func distance(a, b string, limit int) int {
	if len(a)-len(b) > limit || len(b)-len(a) > limit {
		return limit + 1
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(last[j]+cost, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last, row = last, row, before
	}
	return min(last[len(b)], limit+1)
}
