package shift_test

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/crossfade-mesh/crossfade/internal/shift"
)

func TestBinsHoldTheirValues(t *testing.T) {
	last := shift.BinOf(0)
	for b := shift.BinOf(1e-6); b < shift.BinOf(1e9); b++ {
		if got := shift.BinOf(b.Lower()); got != b {
			t.Fatalf("the lower end %v of bin %d falls into bin %d", b.Lower(), b, got)
		}
		inside := b.Lower() + 0.999*(b.Upper()-b.Lower())
		if got := shift.BinOf(inside); got != b {
			t.Fatalf("%v of bin %d falls into bin %d", inside, b, got)
		}
		if b <= last {
			t.Fatalf("bin %d after bin %d", b, last)
		}
		if width := (b.Upper() - b.Lower()) / b.Lower(); width > 0.1+1e-9 {
			t.Fatalf("bin %d is %.3g of its lower end wide", b, width)
		}
		last = b
	}
	for _, v := range []float64{0, -3, math.NaN(), math.Inf(-1), 1e-12} {
		if shift.BinOf(v) != shift.BinOf(0) {
			t.Errorf("%v falls into bin %d", v, shift.BinOf(v))
		}
	}
	if shift.BinOf(math.Inf(1)) != shift.BinOf(1e12) {
		t.Error("infinity is not in the last bin")
	}
}

func TestHistogram(t *testing.T) {
	a, b := shift.Of(1, 2, 3, 250), shift.Of(2, 0, 1e9)
	if diff := cmp.Diff(a.Merge(b), b.Merge(a)); diff != "" {
		t.Errorf("the order of a merge matters:\n%s", diff)
	}
	if diff := cmp.Diff(shift.Of(250, 3, 0, 2, 2, 1, 1e9), a.Merge(b)); diff != "" {
		t.Errorf("a merge is not the histogram of all values:\n%s", diff)
	}
	var hundred []float64
	for i := range 100 {
		hundred = append(hundred, float64(i+1))
	}
	h := shift.Of(hundred...)
	for q, want := range map[float64]float64{0.5: 51, 0.99: 100} {
		if got := h.Quantile(q); got < want*0.97 || got > want*1.1 {
			t.Errorf("quantile %v is %v, want about %v", q, got, want)
		}
	}
	if got := (shift.Histogram{}).Quantile(0.99); got != 0 {
		t.Errorf("quantile of nothing is %v", got)
	}
	// What Envoy prints in microseconds.
	envoy := shift.FromEnvoy([]shift.EnvoyBucket{{LowerBound: 23000, Width: 1000, Count: 7}, {LowerBound: 1.1, Width: 0.1, Count: 2}}, time.Microsecond)
	want := shift.FromBins(shift.BinCount{Bin: shift.BinOf(23.5), Count: 7}, shift.BinCount{Bin: shift.BinOf(0.00115), Count: 2})
	if diff := cmp.Diff(want, envoy); diff != "" {
		t.Errorf("Envoy's buckets:\n%s", diff)
	}
}
