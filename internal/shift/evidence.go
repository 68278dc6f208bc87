package shift

import "math"

// table is one comparison: of New attempts on the new way NewHits were bad, of
// Old on the old way OldHits. Both in the same stretch of time.
type table struct {
	newHits, new, oldHits, old int
}

// bets are the odds ratios against which "the ways are alike" is tried. A hit
// counts as this many times likelier on the new way.
var bets = [...]float64{1.5, 3, 8, 30}

// Evidence is what has been won by betting that the new way is worse, from a
// stake of 1 at fair odds (see the package doc). Its zero value is a stake not
// yet laid.
type Evidence struct {
	Rounds int                `json:"rounds,omitempty"` // comparisons that told anything
	Spent  float64            `json:"spent,omitempty"`  // part of the stake that is not held back any more
	Bets   [len(bets)]float64 `json:"bets"`             // what each bet is worth now
}

const (
	// investStep of what is held back is bet when a step begins: faults come with steps.
	investStep = 0.2
	// investSlow sets how slowly the rest follows, by 1/(investSlow+rounds) a
	// round, so that a fault in the hundredth hour still finds a stake.
	investSlow = 1000
	// worthMost keeps a bet finite. Less is always a fair stake too.
	worthMost = 1e12
)

// Worth is what the stake of 1 has become. Under "the new way is no worse" it
// ever reaches w with probability at most 1/w.
func (e Evidence) Worth() float64 {
	sum := 1 - e.Spent
	for _, b := range e.Bets {
		sum += b
	}
	return sum
}

// invest bets a part of what is held back.
func (e Evidence) invest(part float64) Evidence {
	amount := (1 - e.Spent) * part
	e.Spent += amount
	for i := range e.Bets {
		e.Bets[i] += amount / float64(len(bets))
	}
	return e
}

// play settles one comparison. power is between 0 and 1: attempts that come in
// clusters of c (retries) tell only 1/c of what single ones tell.
func (e Evidence) play(t table, power float64) Evidence {
	lo, hi := t.support()
	if lo >= hi {
		return e // all or none were bad, or a way had no attempt: says nothing
	}
	e = e.invest(1 / (investSlow + float64(e.Rounds)))
	e.Rounds++
	for i, odds := range bets {
		e.Bets[i] = min(worthMost, e.Bets[i]*math.Exp(power*t.logRatio(odds)))
	}
	return e
}

// support is the least and the greatest number of hits that the new way can
// have, given how many hits and attempts there were in all.
func (t table) support() (lo, hi int) {
	hits := t.newHits + t.oldHits
	return max(0, hits-t.old), min(hits, t.new)
}

// logRatio is the logarithm of how much likelier it is that newHits of all hits
// fell on the new way if its odds of a hit are the given multiple of the old
// way's, than if they are the same. Given the totals of the table the first is
// Fisher's noncentral hypergeometric distribution, the second the plain one;
// neither knows how many hits are usual.
func (t table) logRatio(odds float64) float64 {
	lo, hi := t.support()
	if hi-lo <= 64 && t.new+t.old <= 2000 {
		return t.logRatioSmall(odds, lo, hi)
	}
	hits := t.newHits + t.oldHits
	return float64(t.newHits)*math.Log(odds) - t.logWeight(odds, lo, hi) + logChoose(t.new+t.old, hits)
}

// logRatioSmall sums the whole support, in weights relative to its low end.
func (t table) logRatioSmall(odds float64, lo, hi int) float64 {
	plain, tilted := 1.0, 1.0
	w, tilt := 1.0, 1.0
	for k := lo; k < hi; k++ {
		w *= t.next(k)
		tilt *= odds
		plain += w
		tilted += w * tilt
	}
	return float64(t.newHits-lo)*math.Log(odds) + math.Log(plain/tilted)
}

// next is how many times likelier k+1 hits on the new way are than k, at equal odds.
func (t table) next(k int) float64 {
	hits := t.newHits + t.oldHits
	return float64(t.new-k) * float64(hits-k) / (float64(k+1) * float64(t.old-hits+k+1))
}

// logWeight is log of the sum over k of C(new,k)·C(old,hits-k)·odds^k, summed
// outwards from the largest term until nothing more counts.
func (t table) logWeight(odds float64, lo, hi int) float64 {
	hits := t.newHits + t.oldHits
	a, c := odds-1, odds*float64(t.new)*float64(hits)
	b := odds*float64(t.new+hits) + float64(t.old-hits)
	mode := int(2 * c / (b + math.Sqrt(max(0, b*b-4*a*c))))
	mode = min(max(mode, lo), hi)
	sum := 1.0
	for k, w := mode, 1.0; k < hi && w > sum*1e-16; k++ {
		w *= t.next(k) * odds
		sum += w
	}
	for k, w := mode, 1.0; k > lo && w > sum*1e-16; k-- {
		w /= t.next(k-1) * odds
		sum += w
	}
	return logChoose(t.new, mode) + logChoose(t.old, hits-mode) + float64(mode)*math.Log(odds) + math.Log(sum)
}

// logChoose is the logarithm of n over k.
func logChoose(n, k int) float64 {
	a, _ := math.Lgamma(float64(n) + 1)
	b, _ := math.Lgamma(float64(k) + 1)
	c, _ := math.Lgamma(float64(n-k) + 1)
	return a - b - c
}
