package load

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Median of an empty slice is 0.
func Median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// Spread is the least and the greatest.
func Spread(v []float64) [2]float64 {
	if len(v) == 0 {
		return [2]float64{}
	}
	return [2]float64{Round(slices.Min(v)), Round(slices.Max(v))}
}

// Quantile by nearest rank; it sorts v. 0 when v is empty.
func Quantile[T cmp.Ordered](v []T, q float64) T {
	var zero T
	if len(v) == 0 {
		return zero
	}
	slices.Sort(v)
	return v[min(len(v)-1, max(0, int(math.Ceil(q*float64(len(v))))-1))]
}

// Milliseconds are d's.
func Milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Round keeps three decimals.
func Round(v float64) float64 { return math.Round(v*1000) / 1000 }
