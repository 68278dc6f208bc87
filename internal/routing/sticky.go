package routing

import (
	"hash/fnv"
	"math"
	"slices"
)

// Range is a part of the hash space that belongs to a leg.
type Range struct {
	Leg    int    // index among the names
	Weight uint32 // of TotalWeight
}

// Ranges divides the hash space, of size [TotalWeight], exactly by weights that add
// up to it, and so that little more than the difference changes hands when weights
// do. Two legs share one border. With more, borders would push each other, so that
// slots are dealt out by weighted rendezvous hashing of the legs' names and then
// evened out; a range is a run of slots of one leg.
func Ranges(names []string, weights []uint32) []Range {
	if len(names) <= 2 {
		out := make([]Range, 0, 2)
		for i, w := range weights {
			if w > 0 {
				out = append(out, Range{i, w})
			}
		}
		return out
	}
	owner := slots(names, weights)
	var out []Range
	add := func(leg int, weight uint32) {
		if n := len(out); n > 0 && out[n-1].Leg == leg {
			out[n-1].Weight += weight
		} else if weight > 0 {
			out = append(out, Range{leg, weight})
		}
	}
	for _, leg := range owner {
		add(leg, slotWeight)
	}
	for i, w := range weights { // what is no whole slot
		add(i, w%slotWeight)
	}
	return out
}

const (
	slotWeight = 10 // 0.1 %
	slotCount  = TotalWeight / slotWeight
)

// slots gives each slot its leg: weight/slotWeight slots to each.
func slots(names []string, weights []uint32) []int {
	free := make([]int, len(names)) // slots that a leg is still to get
	seed := make([]uint64, len(names))
	total := 0
	for i, name := range names {
		free[i] = int(weights[i] / slotWeight)
		total += free[i]
		seed[i] = Hash(name)
	}
	// score is lower for a leg that wants a slot more. A leg whose weight rises wants
	// every slot more, and none of the others any less.
	score := func(slot, leg int) float64 {
		return -math.Log(uniform(seed[leg]+uint64(slot)*0x9e3779b97f4a7c15)) / float64(weights[leg])
	}
	type wish struct {
		slot   int
		regret float64 // of not getting the first choice
	}
	owner := make([]int, total)
	wishes := make([][]wish, len(names)) // by first choice
	for slot := range owner {
		best, first, second := -1, math.Inf(1), math.Inf(1)
		for leg := range names {
			if weights[leg] < slotWeight {
				continue
			}
			if s := score(slot, leg); s < first {
				best, first, second = leg, s, first
			} else if s < second {
				second = s
			}
		}
		wishes[best] = append(wishes[best], wish{slot, second - first})
	}
	var rest []int
	for leg := range wishes {
		w := wishes[leg]
		slices.SortFunc(w, func(a, b wish) int {
			switch {
			case a.regret > b.regret:
				return -1
			case a.regret < b.regret:
				return 1
			default:
				return a.slot - b.slot
			}
		})
		n := min(len(w), free[leg])
		for _, at := range w[:n] {
			owner[at.slot] = leg
		}
		free[leg] -= n
		for _, at := range w[n:] {
			rest = append(rest, at.slot)
		}
	}
	slices.Sort(rest)
	for _, slot := range rest {
		best, least := -1, math.Inf(1)
		for leg := range names {
			if free[leg] == 0 {
				continue
			}
			if s := score(slot, leg); s < least {
				best, least = leg, s
			}
		}
		owner[slot] = best
		free[best]--
	}
	return owner
}

// uniform is a number above 0 and below 1 made of x.
func uniform(x uint64) float64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	x ^= x >> 31
	return (float64(x>>11) + 0.5) / (1 << 53)
}

// Hash is a stable hash of a text.
func Hash(text string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(text)) // never fails
	return h.Sum64()
}

// Pick is the leg to which a hash belongs. There is at least one range.
func Pick(ranges []Range, hash uint64) int {
	at := uint32(uniform(hash) * TotalWeight)
	for _, r := range ranges {
		if at < r.Weight {
			return r.Leg
		}
		at -= r.Weight
	}
	return ranges[len(ranges)-1].Leg
}
