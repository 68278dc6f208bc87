package load

import (
	"math/bits"
	"time"
)

// Values are counted in microseconds. Below subBuckets each has a bucket of its
// own; above, every power of two is divided into subBuckets/2 equal buckets, so
// that a quantile is at most 1/32 above the true value.
const (
	subBits    = 6
	subBuckets = 1 << subBits
	half       = subBuckets / 2
	buckets    = subBuckets + half*(36-subBits) // up to 2^36 µs, 19 hours
)

// Histogram counts durations in log-linear buckets. The zero value is empty. It
// is not safe for concurrent use.
type Histogram struct {
	counts [buckets]uint64
	total  uint64
	max    time.Duration
}

// Add counts d; below zero counts as zero.
func (h *Histogram) Add(d time.Duration) {
	h.counts[bucket(uint64(max(0, d.Microseconds())))]++
	h.total++
	h.max = max(h.max, d)
}

// Count is how many durations were added.
func (h *Histogram) Count() uint64 { return h.total }

// Max is the longest duration added, exactly.
func (h *Histogram) Max() time.Duration { return h.max }

// Quantile is the upper edge of the bucket below which a share q (0 to 1) of the
// durations lies, and never above [Histogram.Max]; 0 when nothing was added.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.total == 0 {
		return 0
	}
	rank := max(1, uint64(q*float64(h.total)+0.5))
	var seen uint64
	for i, n := range h.counts {
		if seen += n; seen >= rank {
			return min(h.max, time.Duration(upperEdge(i))*time.Microsecond)
		}
	}
	return h.max
}

func bucket(us uint64) int {
	if us < subBuckets {
		return int(us)
	}
	exp := bits.Len64(us) - subBits // ≥ 1; us>>exp is in [half, subBuckets)
	return min(buckets-1, subBuckets+half*(exp-1)+int(us>>exp)-half)
}

// upperEdge is the largest value, in microseconds, that falls into bucket i.
func upperEdge(i int) uint64 {
	if i < subBuckets {
		return uint64(i)
	}
	exp := (i-subBuckets)/half + 1
	return (uint64((i-subBuckets)%half+half)+1)<<exp - 1
}
