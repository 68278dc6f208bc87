package server

import (
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

func TestWhereTheRestComesFrom(t *testing.T) {
	type shares = config.Shares
	type via = map[string]float64
	for _, tt := range []struct {
		name   string
		before shares
		old    string
		via    via
		want   string // shares, or what the error has
	}{
		{"the first percent from the only other", shares{Legacy: 100}, "legacy", via{"mtls": 1}, "legacy 99%, mtls 1%"},
		{"from the largest of the others", shares{Legacy: 20, Direct: 70, MTLS: 10}, "legacy", via{"mtls": 30}, "legacy 20%, direct 50%, mtls 30%"},
		{"then from the next", shares{Legacy: 20, Direct: 70, MTLS: 10}, "legacy", via{"mtls": 90}, "legacy 10%, mtls 90%"},
		{"all of it", shares{Legacy: 20, Direct: 70, MTLS: 10}, "legacy", via{"mtls": 100}, "mtls 100%"},
		{"equals: the earlier way", shares{Legacy: 45, Direct: 45, MTLS: 10}, "legacy", via{"mtls": 20}, "legacy 35%, direct 45%, mtls 20%"},
		{"back to the largest of the others", shares{Legacy: 20, Direct: 30, MTLS: 50}, "legacy", via{"mtls": 10}, "legacy 20%, direct 70%, mtls 10%"},
		{"to the old way where no other has any", shares{MTLS: 100}, "legacy", via{"mtls": 10}, "legacy 90%, mtls 10%"},
		{"to direct where that is the old way", shares{MTLS: 100}, "direct", via{"mtls": 99.99}, "direct 0.01%, mtls 99.99%"},
		{"the old way, from where all is", shares{MTLS: 100}, "direct", via{"direct": 25}, "direct 25%, mtls 75%"},
		{"plain from the only other", shares{Direct: 100}, "direct", via{"plain": 5}, "direct 95%, plain 5%"},
		{"mtls from plain", shares{Direct: 10, Plain: 90}, "direct", via{"mtls": 20}, "direct 10%, plain 70%, mtls 20%"},
		{"three of four ways", shares{MTLS: 100}, "legacy", via{"legacy": 10, "plain": 60, "mtls": 30}, "legacy 10%, plain 60%, mtls 30%"},
		{"nowhere to go", shares{Legacy: 100}, "legacy", via{"legacy": 90}, "via legacy=90: no other way has a share, and legacy is the old way: say which way the rest goes, as in --via legacy=90 --via mtls=10"},
		{"as it was", shares{Legacy: 90, MTLS: 10}, "legacy", via{"mtls": 10}, "legacy 90%, mtls 10%"},
		{"nothing said", shares{Legacy: 90, MTLS: 10}, "legacy", nil, "legacy 90%, mtls 10%"},
		{"several: the others have nothing", shares{Legacy: 90, MTLS: 10}, "legacy", via{"direct": 60, "mtls": 40}, "direct 60%, mtls 40%"},
		{"several, in small steps", shares{Legacy: 100}, "legacy", via{"legacy": 33.33, "direct": 33.33, "mtls": 33.34}, "legacy 33.33%, direct 33.33%, mtls 33.34%"},
		{"several that do not add up", shares{Legacy: 100}, "legacy", via{"legacy": 33.33, "mtls": 33.34}, "via legacy=33.33, mtls=33.34: they add up to 66.67, want 100"},
		{"no way", shares{Legacy: 100}, "legacy", via{"tls": 10}, `via "tls": no such way: want one of legacy, direct, plain, mtls`},
		{"too much", shares{Legacy: 100}, "legacy", via{"mtls": 101}, "via mtls=101: want a percentage, 0 to 100 in steps of 0.01"},
		{"too little", shares{Legacy: 100}, "legacy", via{"mtls": -1}, "want a percentage"},
		{"too fine", shares{Legacy: 100}, "legacy", via{"mtls": 0.001}, "in steps of 0.01"},
	} {
		got, err := reshare(tt.before, tt.old, tt.via)
		if err != nil {
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if text := api.Shares(got).String(); text != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, text, tt.want)
		}
	}
}

// Whatever is asked of whatever there was, shares add up to 100, none is negative, and the
// way has what was asked for.
func TestSharesAlwaysAddUp(t *testing.T) {
	for legacy := 0; legacy <= whole; legacy += 1250 {
		for direct := 0; legacy+direct <= whole; direct += 1250 {
			before := sharesOf(map[string]int{api.Legacy: legacy, api.Direct: direct, api.MTLS: whole - legacy - direct})
			for _, way := range api.Ways() {
				for _, old := range []string{api.Legacy, api.Direct} {
					for to := 0; to <= whole; to += 833 {
						got, err := reshare(before, old, map[string]float64{way: float64(to) / 100})
						if err != nil {
							if before.Hundredths(way) != whole || way != old {
								t.Errorf("%v, %s=%d: %v", before, way, to, err)
							}
							continue
						}
						sum := 0
						for _, w := range api.Ways() {
							sum += got.Hundredths(w)
							if got.Hundredths(w) < 0 {
								t.Errorf("%v, %s=%d: %v", before, way, to, got)
							}
						}
						if sum != whole || got.Hundredths(way) != to {
							t.Errorf("%v, %s=%d: %v", before, way, to, got)
						}
					}
				}
			}
		}
	}
}
