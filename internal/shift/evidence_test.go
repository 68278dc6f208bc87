package shift

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// TestBetsAreFair holds the guard's one assumption about itself: if the ways are
// alike a bet wins on average nothing, and if the new way is better it loses.
func TestBetsAreFair(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, o := rapid.IntRange(0, 60).Draw(t, "new"), rapid.IntRange(0, 60).Draw(t, "old")
		hits := rapid.IntRange(0, n+o).Draw(t, "hits")
		power := rapid.SampledFrom([]float64{1, 0.5, 0.1}).Draw(t, "power")
		truth := rapid.Float64Range(0.05, 1).Draw(t, "truth") // the new way's odds of a hit, of the old way's
		for _, odds := range bets {
			equal, better, sum := 0.0, 0.0, 0.0
			for k := max(0, hits-o); k <= min(hits, n); k++ {
				wins := math.Exp(power * (table{k, n, hits - k, o}).logRatio(odds))
				p := math.Exp(logChoose(n, k) + logChoose(o, hits-k) - logChoose(n+o, hits))
				equal += p * wins
				better += p * math.Pow(truth, float64(k)) * wins
				sum += p * math.Pow(truth, float64(k))
			}
			if power == 1 && math.Abs(equal-1) > 1e-9 || equal > 1+1e-9 || better/sum > 1+1e-9 {
				t.Fatalf("%d and %d attempts, %d hits, odds %v: a bet wins %v, %v if the new way is better", n, o, hits, odds, equal, better/sum)
			}
		}
	})
}

// TestLargeTablesAreAsSmallOnes holds that both ways to add up agree.
func TestLargeTablesAreAsSmallOnes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := table{new: rapid.IntRange(1, 500).Draw(t, "new"), old: rapid.IntRange(1, 500).Draw(t, "old")}
		a.newHits = rapid.IntRange(0, min(40, a.new)).Draw(t, "new hits")
		a.oldHits = rapid.IntRange(0, min(20, a.old)).Draw(t, "old hits")
		lo, hi := a.support()
		if lo >= hi {
			return
		}
		for _, odds := range bets {
			small := a.logRatioSmall(odds, lo, hi)
			large := float64(a.newHits)*math.Log(odds) - a.logWeight(odds, lo, hi) + logChoose(a.new+a.old, a.newHits+a.oldHits)
			if math.Abs(small-large) > 1e-8 {
				t.Fatalf("%+v at odds %v: %v and %v", a, odds, small, large)
			}
		}
	})
}
