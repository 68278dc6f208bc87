package shift

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Bin is a fixed stretch of values: two significant decimal digits, as in
// Envoy's own histograms, so 90 bins per power of ten, none wider than 10 % of
// its lower end. Bins of any two histograms are the same, which is what makes
// histograms add up.
type Bin int32

const (
	binsPerDecade = 90
	zeroBin       = Bin(-9 * binsPerDecade) // all below 1e-9, among it 0
	lastBin       = Bin(12*binsPerDecade - 1)
)

// BinOf is the bin that holds v. Values out of range fall into the first or
// the last bin; what is no number counts as 0.
func BinOf(v float64) Bin {
	if !(v >= 1e-9) {
		return zeroBin
	}
	if v >= 1e12 {
		return lastBin
	}
	exp := int(math.Floor(math.Log10(v)))
	// Log10 is off by one beside powers of ten; the mantissa tells.
	m := mantissa(v, exp)
	for m < 10 {
		exp--
		m = mantissa(v, exp)
	}
	for m > 99 {
		exp++
		m = mantissa(v, exp)
	}
	return max(zeroBin+1, Bin(exp*binsPerDecade+m-10))
}

// mantissa is v in units of 10^(exp-1). The small addend makes a bin's own
// lower end, which has no exact binary form, fall into it.
func mantissa(v float64, exp int) int {
	return int(math.Floor(v*math.Pow10(1-exp) + 1e-9))
}

// Lower is the least value of the bin, Upper the first above it.
func (b Bin) Lower() float64 {
	if b <= zeroBin {
		return 0
	}
	exp := int(math.Floor(float64(b) / binsPerDecade))
	m := int(b) - exp*binsPerDecade + 10
	if exp >= 1 {
		return float64(m) * math.Pow10(exp-1)
	}
	return float64(m) / math.Pow10(1-exp)
}

// Upper is the first value above the bin.
func (b Bin) Upper() float64 { return (b + 1).Lower() }

// Histogram counts latencies, in milliseconds, by bin. Its zero value is empty.
// It is a value: no function here changes one that it was given.
type Histogram struct {
	Bins []BinCount `json:"bins,omitempty"` // by bin, none twice
}

// BinCount is how many values a bin holds. Old values may be forgotten in part,
// so it need not be whole.
type BinCount struct {
	Bin   Bin     `json:"b"`
	Count float64 `json:"n"`
}

// FromBins makes a histogram of bins in any order; counts of equal bins add up,
// and what is not positive is left out.
func FromBins(bins ...BinCount) Histogram {
	sorted := slices.Clone(bins)
	slices.SortStableFunc(sorted, func(a, b BinCount) int { return cmp.Compare(a.Bin, b.Bin) })
	var out []BinCount
	for _, b := range sorted {
		switch {
		case !(b.Count > 0):
		case len(out) > 0 && out[len(out)-1].Bin == b.Bin:
			out[len(out)-1].Count += b.Count
		default:
			out = append(out, b)
		}
	}
	return Histogram{Bins: out}
}

// EnvoyBucket is a bucket of Envoy's detailed histograms
// (/stats?format=json&histogram_buckets=detailed).
type EnvoyBucket struct {
	LowerBound float64 `json:"lower_bound"`
	Width      float64 `json:"width"`
	Count      uint64  `json:"count"`
}

// FromEnvoy takes buckets as Envoy prints them, in the unit that it was told to
// measure in. The middle of a bucket decides its bin, since the bounds are
// rounded in print; units that differ by a power of ten fall into the same bins.
func FromEnvoy(buckets []EnvoyBucket, unit time.Duration) Histogram {
	bins := make([]BinCount, 0, len(buckets))
	for _, b := range buckets {
		ms := (b.LowerBound + b.Width/2) * float64(unit) / float64(time.Millisecond)
		bins = append(bins, BinCount{BinOf(ms), float64(b.Count)})
	}
	return FromBins(bins...)
}

// Of counts single values.
func Of(values ...float64) Histogram {
	bins := make([]BinCount, len(values))
	for i, v := range values {
		bins[i] = BinCount{BinOf(v), 1}
	}
	return FromBins(bins...)
}

// Merge adds the counts of both.
func (h Histogram) Merge(o Histogram) Histogram {
	switch {
	case len(h.Bins)+len(o.Bins) == 0:
		return Histogram{}
	case len(h.Bins) == 0:
		return o
	case len(o.Bins) == 0:
		return h
	}
	out := make([]BinCount, 0, max(len(h.Bins), len(o.Bins))+8)
	a, b := h.Bins, o.Bins
	for len(a) > 0 && len(b) > 0 {
		switch {
		case a[0].Bin < b[0].Bin:
			out, a = append(out, a[0]), a[1:]
		case a[0].Bin > b[0].Bin:
			out, b = append(out, b[0]), b[1:]
		default:
			out = append(out, BinCount{a[0].Bin, a[0].Count + b[0].Count})
			a, b = a[1:], b[1:]
		}
	}
	return Histogram{Bins: append(append(out, a...), b...)}
}

// faded keeps a part of every count of h and adds o; what becomes too small to
// matter is dropped.
func (h Histogram) faded(keep float64, o Histogram) Histogram {
	out := make([]BinCount, 0, len(h.Bins)+len(o.Bins))
	b := o.Bins
	for _, c := range h.Bins {
		for len(b) > 0 && b[0].Bin < c.Bin {
			out, b = append(out, b[0]), b[1:]
		}
		n := c.Count * keep
		if len(b) > 0 && b[0].Bin == c.Bin {
			n += b[0].Count
			b = b[1:]
		}
		if n >= 1e-4 {
			out = append(out, BinCount{c.Bin, n})
		}
	}
	out = append(out, b...)
	if len(out) == 0 {
		return Histogram{} // one form of empty, in memory and out
	}
	return Histogram{Bins: out}
}

// Total is how many values were counted.
func (h Histogram) Total() float64 {
	sum := 0.0
	for _, b := range h.Bins {
		sum += b.Count
	}
	return sum
}

// quantileBin is the bin that holds the quantile, and how much of the bin's
// count lies at or below it, between 0 and 1. False if h is empty.
func (h Histogram) quantileBin(q float64) (Bin, float64, bool) {
	total := h.Total()
	if !(total > 0) {
		return 0, 0, false
	}
	left := q * total
	for _, b := range h.Bins {
		if left <= b.Count {
			return b.Bin, max(0, left/b.Count), true
		}
		left -= b.Count
	}
	return h.Bins[len(h.Bins)-1].Bin, 1, true
}

// Quantile is the value below which the part q of all values lies, with values
// spread evenly over their bin. 0 if h is empty.
func (h Histogram) Quantile(q float64) float64 {
	b, part, ok := h.quantileBin(q)
	if !ok {
		return 0
	}
	return b.Lower() + part*(b.Upper()-b.Lower())
}

// above counts the values in the bins above b.
func (h Histogram) above(b Bin) float64 {
	sum := 0.0
	for i := len(h.Bins) - 1; i >= 0 && h.Bins[i].Bin > b; i-- {
		sum += h.Bins[i].Count
	}
	return sum
}
