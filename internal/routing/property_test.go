package routing_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

func drawn(t *rapid.T) []config.Entry {
	return meshtest.Entries(rapid.Uint64().Draw(t, "seed"))
}

// all compiles every service, and those that a caller takes for another protocol.
func all(set *config.Set) (out []routing.Chain) {
	for _, service := range append(meshtest.Services(), "nobody") {
		for _, protocol := range []string{"", config.TCP, config.HTTP} {
			c, _ := routing.Compile(routing.Request{Config: set, Service: service, Datacenter: "dc1", Protocol: protocol})
			out = append(out, c)
		}
	}
	return out
}

// TestCompileOfAnything holds what every chain has to be, whatever it is made of.
func TestCompileOfAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entries := drawn(t)
		chains := all(config.NewSet(entries...))
		slices.Reverse(entries)
		if diff := cmp.Diff(chains, all(config.NewSet(entries...))); diff != "" {
			t.Fatalf("the order of entries matters:\n%s", diff)
		}
		for _, c := range chains {
			whole(t, c)
		}
	})
}

func whole(t *rapid.T, c routing.Chain) {
	if len(c.Routes) == 0 || c.Routes[len(c.Routes)-1].Rule != nil {
		t.Fatalf("no last route:\n%s", c.Describe())
	}
	if c.Protocol == config.TCP && len(c.Routes) != 1 {
		t.Fatalf("connections are routed:\n%s", c.Describe())
	}
	if !slices.IsSortedFunc(c.Reads, config.Key.Compare) {
		t.Fatalf("reads %v", c.Reads)
	}
	for _, r := range c.Routes {
		var sum uint32
		for _, l := range r.Legs {
			sum += l.Weight
			if slices.Contains(l.Failover, l.Target) {
				t.Fatalf("stands in for itself:\n%s", c.Describe())
			}
		}
		if sum != routing.TotalWeight {
			t.Fatalf("weights add up to %d:\n%s", sum, c.Describe())
		}
	}
}

// TestReadsAreAllThatMatters changes one entry: chains that do not read it stay.
func TestReadsAreAllThatMatters(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before := config.NewSet(drawn(t)...)
		after := changed(t, before)
		keys := config.Changed(before, after)
		was, is := all(before), all(after)
		for i := range was {
			if slices.ContainsFunc(keys, was[i].Read) {
				continue
			}
			if diff := cmp.Diff(was[i], is[i]); diff != "" {
				t.Fatalf("%v changed what does not read it:\n%s", keys, diff)
			}
		}
	})
}

// changed is a set in which some entries are others', or gone.
func changed(t *rapid.T, set *config.Set) *config.Set {
	others := drawn(t)
	n := rapid.IntRange(0, min(2, len(others))).Draw(t, "taken")
	var drop []config.Key
	if keys := set.Keys(); len(keys) > 0 && rapid.Bool().Draw(t, "drop") {
		drop = append(drop, rapid.SampledFrom(keys).Draw(t, "dropped"))
	}
	return set.With(others[:n], drop)
}

// TestCheckFindsWhatBreaks compares it with a look at every service.
func TestCheckFindsWhatBreaks(t *testing.T) {
	broken := func(set *config.Set) (out []string) {
		for _, p := range routing.Broken(set, "dc1") {
			out = append(out, p.Service)
		}
		return out
	}
	rapid.Check(t, func(t *rapid.T) {
		before := config.NewSet(drawn(t)...)
		after := changed(t, before)
		was := broken(before)
		var want []string
		for _, service := range broken(after) {
			if !slices.Contains(was, service) {
				want = append(want, service)
			}
		}
		err := routing.Check(before, after, "dc1")
		if (err != nil) != (len(want) > 0) {
			t.Fatalf("Check: %v; these break: %v", err, want)
		}
		for _, service := range want {
			if !strings.Contains(err.Error(), fmt.Sprintf("service %q: ", service)) {
				t.Fatalf("Check: %v; it does not name %q", err, service)
			}
		}
	})
}

// weights draws n that add up to the total.
func weights(t *rapid.T, n int) []uint32 {
	out := make([]uint32, n)
	left := uint32(routing.TotalWeight)
	for i := range out[:n-1] {
		out[i] = rapid.Uint32Range(0, left).Draw(t, "weight")
		left -= out[i]
	}
	out[n-1] = left
	return out
}

func legNames(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("v%d.catalog.default.default.dc1", i+1))
	}
	return out
}

// owners is the leg of each hundredth of a percent of the hash space.
func owners(ranges []routing.Range) (out []int) {
	for _, r := range ranges {
		out = append(out, slices.Repeat([]int{r.Leg}, int(r.Weight))...)
	}
	return out
}

func TestRangesAreExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "legs")
		w := weights(t, n)
		got := make([]uint32, n)
		for _, r := range routing.Ranges(legNames(n), w) {
			if r.Weight == 0 {
				t.Fatal("an empty range")
			}
			got[r.Leg] += r.Weight
		}
		if !slices.Equal(got, w) {
			t.Fatalf("shares %v, want %v", got, w)
		}
	})
}

// TestRangesMoveLittle: of two legs exactly the difference changes hands when weights
// do, of more at most twice that, and the slots' grain.
func TestRangesMoveLittle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 8).Draw(t, "legs")
		before, after := weights(t, n), weights(t, n)
		needed := 0
		for i := range before {
			if after[i] > before[i] {
				needed += int(after[i] - before[i])
			}
		}
		x, y := owners(routing.Ranges(legNames(n), before)), owners(routing.Ranges(legNames(n), after))
		moved := 0
		for i := range x {
			if x[i] != y[i] {
				moved++
			}
		}
		limit := needed
		if n > 2 {
			limit = 2*needed + 2*grain*n
		}
		if moved > limit || n == 2 && moved != needed {
			t.Fatalf("%v to %v: %d moved, %d needed", before, after, moved, needed)
		}
	})
}

// grain is the size of a slot: of each leg one and the rest that is none may lie
// elsewhere.
const grain = 10

// TestPickAgreesWithRanges draws many hashes.
func TestPickAgreesWithRanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 5).Draw(t, "legs")
		w := weights(t, n)
		ranges := routing.Ranges(legNames(n), w)
		const draws = 20_000
		got := make([]float64, n)
		for i := range uint64(draws) {
			got[routing.Pick(ranges, i)]++
		}
		for leg := range got {
			share, want := got[leg]/draws, float64(w[leg])/routing.TotalWeight
			if share < want-0.03 || share > want+0.03 || w[leg] == 0 && share > 0 {
				t.Fatalf("leg %d gets %.4f of callers, want %.4f", leg, share, want)
			}
		}
	})
}
