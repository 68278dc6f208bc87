package config_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// places is the way of each place.
func places(e *config.TrafficShift) (out []string) {
	for _, s := range e.SlotsFor(e.Shares.Hundredths) {
		for range s.Width {
			out = append(out, s.Way)
		}
	}
	return out
}

// sharesGen draws shares of so many ways at most.
func sharesGen(t *rapid.T) config.Shares {
	left, parts := 100, [4]float64{}
	for i := range 3 {
		n := rapid.IntRange(0, left).Draw(t, "share")
		parts[i], left = float64(n), left-n
	}
	parts[3] = float64(left)
	at := rapid.Permutation([]int{0, 1, 2, 3}).Draw(t, "order")
	return config.Shares{Legacy: parts[at[0]], Direct: parts[at[1]], Plain: parts[at[2]], MTLS: parts[at[3]]}
}

// However shares go, no caller changes its way that need not, and slots stay few.
func TestSlotsMoveNobodyElse(t *testing.T) {
	most := 0
	rapid.Check(t, func(t *rapid.T) {
		next := func(shares config.Shares) *config.TrafficShift {
			e := &config.TrafficShift{Source: "a", Destination: "b", Shares: shares, Sticky: &config.Sticky{Header: "x-user"}}
			e.Legacy = &config.LegacyWay{Address: "old.example:80"}
			e.Normalize()
			return e
		}
		var now config.Entry = next(sharesGen(t))
		now = config.Succeed(nil, now)
		for range rapid.IntRange(1, 30).Draw(t, "moves") {
			was := now.(*config.TrafficShift)
			e := next(sharesGen(t))
			e.Slots = rapid.SampledFrom([]string{"", "legacy=10000", was.Slots}).Draw(t, "said")
			now = config.Succeed(was, e)
			e = now.(*config.TrafficShift)
			before, after := places(was), places(e)
			needed, moved := 0, 0
			count := map[string]int{}
			for i := range before {
				count[after[i]]++
				if before[i] != after[i] {
					moved++
				}
			}
			for _, way := range []string{config.WayLegacy, config.WayDirect, config.WayPlain, config.WayMTLS} {
				if count[way] != e.Shares.Hundredths(way) {
					t.Fatalf("%+v: %d places of %s: %s", e.Shares, count[way], way, e.Slots)
				}
				needed += max(0, e.Shares.Hundredths(way)-was.Shares.Hundredths(way))
			}
			if moved != needed {
				t.Fatalf("from %+v to %+v: %d places moved, %d have to: %q to %q", was.Shares, e.Shares, moved, needed, was.Slots, e.Slots)
			}
			if err := e.Validate(); err != nil {
				t.Fatal(err)
			}
			most = max(most, 1+strings.Count(e.Slots, ","))
		}
	})
	t.Logf("at most %d slots", most)
	if most > 40 {
		t.Errorf("%d slots: they break up", most)
	}
}

// What nobody need remember is not: shares in order, and those of an entry that is not sticky.
func TestSlotsAreRemembered(t *testing.T) {
	e := func(slots string, sticky bool, legacy, direct, mtls float64) *config.TrafficShift {
		out := &config.TrafficShift{Source: "a", Destination: "b", Shares: config.Shares{Legacy: legacy, Direct: direct, MTLS: mtls}, Slots: slots, Legacy: &config.LegacyWay{Address: "old.example:80"}}
		out.Normalize()
		if sticky {
			out.Sticky = &config.Sticky{Header: "x-user"}
		}
		return out
	}
	for _, c := range []struct {
		before *config.TrafficShift
		next   *config.TrafficShift
		want   string
	}{
		{nil, e("", true, 70, 10, 20), ""},
		{nil, e("mtls=2000,legacy=7000,direct=1000", true, 70, 10, 20), "mtls=2000,legacy=7000,direct=1000"},
		{nil, e("mtls=2000,legacy=7000,direct=1000", false, 70, 10, 20), ""},
		{e("", true, 70, 10, 20), e("", true, 60, 10, 30), "legacy=6000,mtls=1000,direct=1000,mtls=2000"},
		{e("legacy=6000,mtls=1000,direct=1000,mtls=2000", true, 60, 10, 30), e("", true, 60, 10, 30), "legacy=6000,mtls=1000,direct=1000,mtls=2000"},
		{e("legacy=6000,mtls=1000,direct=1000,mtls=2000", true, 60, 10, 30), e("", true, 50, 10, 40), "legacy=5000,mtls=2000,direct=1000,mtls=2000"},
		{e("legacy=6000,mtls=1000,direct=1000,mtls=2000", true, 60, 10, 30), e("", true, 0, 0, 100), ""},
		{e("legacy=6000,mtls=1000,direct=1000,mtls=2000", true, 60, 10, 30), e("", false, 50, 10, 40), ""},
	} {
		var before config.Entry
		if c.before != nil {
			before = c.before
		}
		if got := config.Succeed(before, c.next).(*config.TrafficShift).Slots; got != c.want {
			t.Errorf("%+v after %+v: %q, want %q", c.next, c.before, got, c.want)
		}
	}
	for _, bad := range []string{"legacy", "new=10000", "legacy=9999", "legacy=-1,mtls=10001", "legacy=1e4", strings.Repeat("legacy=10,mtls=10,", 500) + "mtls=0"} {
		if err := e(bad, true, 70, 10, 20).Validate(); err == nil || !strings.Contains(err.Error(), "Slots") {
			t.Errorf("%.30q: %v", bad, err)
		}
	}
}
