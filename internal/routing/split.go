package routing

import (
	"cmp"
	"maps"
	"math"
	"slices"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// hundredths is a weight in percent as a part of [TotalWeight].
func hundredths(percent float64) uint32 { return uint32(math.Round(percent * 100)) }

// below is the legs of a splitter that a leg of the given weight leads to: they
// share that weight.
func below(legs []Leg, weight uint32, parent *config.ServiceSplit) []Leg {
	out := Portion(legs, weight)
	for i := range out {
		out[i].Split = merge(parent, out[i].Split)
	}
	return out
}

// Portion is the legs sharing a weight in their proportion, exactly, what cannot be
// divided going to those that lose most by rounding, the first ones before others.
func Portion(legs []Leg, weight uint32) []Leg {
	out := slices.Clone(legs)
	var total uint64
	for _, l := range legs {
		total += uint64(l.Weight)
	}
	order := make([]int, len(out))
	left := weight
	for i := range out {
		order[i] = i
		if total > 0 {
			out[i].Weight = uint32(uint64(weight) * uint64(legs[i].Weight) / total)
		}
		left -= out[i].Weight
	}
	rest := func(i int) uint64 {
		if total == 0 {
			return 0
		}
		return uint64(weight) * uint64(legs[i].Weight) % total
	}
	slices.SortStableFunc(order, func(a, b int) int { return -cmp.Compare(rest(a), rest(b)) })
	for _, i := range order[:min(int(left), len(order))] {
		out[i].Weight++
	}
	return out
}

// merge is a leg with the headers of the leg above it, as if a request passed that one
// first and its answer last: where both have a word, the later counts.
func merge(above, s *config.ServiceSplit) *config.ServiceSplit {
	if above.RequestHeaders == nil && above.ResponseHeaders == nil {
		return s
	}
	out := *s
	out.RequestHeaders = mergeHeaders(above.RequestHeaders, s.RequestHeaders)
	out.ResponseHeaders = mergeHeaders(s.ResponseHeaders, above.ResponseHeaders)
	return &out
}

func mergeHeaders(first, then *config.HeaderModifiers) *config.HeaderModifiers {
	switch {
	case first == nil:
		return then
	case then == nil:
		return first
	}
	out := &config.HeaderModifiers{Add: overlay(first.Add, then.Add), Set: overlay(first.Set, then.Set), Remove: slices.Clone(first.Remove)}
	for _, name := range then.Remove {
		if !slices.Contains(out.Remove, name) {
			out.Remove = append(out.Remove, name)
		}
	}
	return out
}

// overlay is both, above where they differ.
func overlay(below, above map[string]string) map[string]string {
	switch {
	case len(below) == 0:
		return above
	case len(above) == 0:
		return below
	}
	out := maps.Clone(below)
	maps.Copy(out, above)
	return out
}
