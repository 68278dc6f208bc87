package server

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// whole is 100 % in the hundredths that shares are counted in.
const whole = 100_00

// unshifted is how a pair's requests travel that no traffic-shift decides for.
func unshifted() config.Shares { return config.Shares{MTLS: 100} }

// oldWay is the way that a revert goes back to.
func oldWay(e *config.TrafficShift) string {
	if e != nil && e.Legacy != nil {
		return api.Legacy
	}
	return api.Direct
}

// allOn is everything on one way.
func allOn(way string) config.Shares { return sharesOf(map[string]int{way: whole}) }

func sharesOf(hundredths map[string]int) config.Shares {
	percent := func(way string) float64 { return float64(hundredths[way]) / 100 }
	return config.Shares{Legacy: percent(api.Legacy), Direct: percent(api.Direct), Plain: percent(api.Plain), MTLS: percent(api.MTLS)}
}

// reshare gives ways the percents of via. Of several the others have nothing. One alone takes
// from the way that has the largest share of the others, then the next, and gives to the
// largest; of equals the earlier counts. Where no other has any, the old way is meant.
func reshare(before config.Shares, old string, via map[string]float64) (config.Shares, error) {
	wanted := map[string]int{}
	sum := 0
	for _, way := range slices.Sorted(maps.Keys(via)) {
		if !slices.Contains(api.Ways(), way) {
			return before, fmt.Errorf("via %.40q: no such way: want one of %s", way, strings.Join(api.Ways(), ", "))
		}
		p := via[way]
		n := math.Round(p * 100)
		if !(p >= 0 && p <= 100) || math.Abs(p*100-n) > 1e-6 {
			return before, fmt.Errorf("via %s=%v: want a percentage, 0 to 100 in steps of 0.01", way, p)
		}
		wanted[way] = int(n)
		sum += int(n)
	}
	switch len(wanted) {
	case 0:
		return before, nil
	case 1:
	default:
		if sum != whole {
			return before, fmt.Errorf("via %s: they add up to %v, want 100", viaText(via), float64(sum)/100)
		}
		return sharesOf(wanted), nil
	}
	for way := range wanted {
		return moved(before, old, way, wanted[way])
	}
	return before, nil
}

// moved is the rule for one way alone.
func moved(before config.Shares, old, way string, to int) (config.Shares, error) {
	shares := map[string]int{way: to}
	var others []string
	for _, w := range api.Ways() {
		if w == way {
			continue
		}
		shares[w] = before.Hundredths(w)
		if shares[w] > 0 {
			others = append(others, w)
		}
	}
	slices.SortStableFunc(others, func(a, b string) int { return cmp.Compare(shares[b], shares[a]) })
	more := to - before.Hundredths(way) // to be taken from the others
	switch {
	case more == 0:
		return before, nil
	case len(others) == 0 && old == way: // all is on it, and some is to go
		return before, fmt.Errorf("via %s=%v: no other way has a share, and %s is the old way: say which way the rest goes, as in --via %s=%v --via %s=%v",
			way, float64(to)/100, way, way, float64(to)/100, api.MTLS, float64(whole-to)/100)
	case len(others) == 0:
		others = []string{old}
	}
	if more < 0 {
		shares[others[0]] -= more
		return sharesOf(shares), nil
	}
	for _, w := range others {
		taken := min(more, shares[w])
		shares[w] -= taken
		more -= taken
	}
	return sharesOf(shares), nil
}

// viaText is "legacy=60, mtls=30", in the order of ways.
func viaText(via map[string]float64) string {
	var out []string
	for _, way := range api.Ways() {
		if p, ok := via[way]; ok {
			out = append(out, fmt.Sprintf("%s=%v", way, p))
		}
	}
	return strings.Join(out, ", ")
}
