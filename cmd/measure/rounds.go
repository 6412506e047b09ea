// This file holds rounds, medians and quantiles.

package measure

import "slices"

// Rounds is how often each side is measured, unless a benchmark has reason
// for another number.
const Rounds = 5

// Interleave measures every side once in each of n rounds, one after the
// other, and returns their medians: what the machine does meanwhile falls on
// all alike.
func Interleave(n int, sides ...func() float64) []float64 {
	samples := make([][]float64, len(sides))
	for range n {
		for i, side := range sides {
			samples[i] = append(samples[i], side())
		}
	}
	medians := make([]float64, len(sides))
	for i, s := range samples {
		medians[i] = Median(s)
	}
	return medians
}

// Median returns the middle of v, and zero of nothing.
func Median(v []float64) float64 { return Quantile(v, 50) }

// Quantile returns the pth percentile of v, and zero of nothing.
func Quantile(v []float64, p int) float64 {
	s := slices.Sorted(slices.Values(v))
	if len(s) == 0 {
		return 0
	}
	return s[min(len(s)-1, len(s)*p/100)]
}
