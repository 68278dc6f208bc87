package shift_test

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/meshtest/effort"
	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// ramps is how many ramps a world is simulated for. The figures in
// docs/shift-guard.md are of -ramps 2000.
var ramps = flag.Int("ramps", effort.Rounds(500), "simulated ramps of each world")

// noon is when simulations begin, a Monday at noon.
var noon = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)

var pair = shift.Pair{Source: "storefront", Destination: "catalog"}

// world makes a second of a pair's traffic. Each request draws its way by chance,
// as Envoy does.
type world struct {
	rng     *rand.Rand
	rate    func(second int) float64                       // requests
	failing func(second int, new bool) float64             // part of attempts
	latency func(second int, new bool) *[1 << 10]shift.Bin // 1,024 evenly likely bins
	retries int                                            // on the same way, of what failed; a retry fails nine times of ten
}

// latencies are bins of a log-normal distribution with median and sigma.
func latencies(median, sigma float64) *[1 << 10]shift.Bin {
	var out [1 << 10]shift.Bin
	for i := range out {
		p := (float64(i) + 0.5) / float64(len(out))
		out[i] = shift.BinOf(median * math.Exp(sigma*math.Sqrt2*math.Erfinv(2*p-1)))
	}
	return &out
}

// poisson draws a count.
func poisson(r *rand.Rand, mean float64) int {
	if mean > 50 {
		return max(0, int(math.Round(mean+math.Sqrt(mean)*r.NormFloat64())))
	}
	n := 0
	for limit, p := math.Exp(-mean), r.Float64(); p > limit; p *= r.Float64() {
		n++
	}
	return n
}

// second makes telemetry of the old and the new way.
func (w world) second(at int, share shift.Share) (old, new shift.Telemetry) {
	var bins [2][700]float64
	var out [2]shift.Telemetry
	n := poisson(w.rng, w.rate(at))
	fail := [2]float64{w.failing(at, false), w.failing(at, true)}
	slow := [2]*[1 << 10]shift.Bin{w.latency(at, false), w.latency(at, true)}
	for range n {
		way := 0
		if w.rng.IntN(int(shift.Whole)) < int(share) {
			way = 1
		}
		failed := w.rng.Float64() < fail[way]
		for try := 0; ; try++ {
			out[way].Attempts++
			bins[way][slow[way][w.rng.IntN(1<<10)]+100]++
			if !failed {
				break
			}
			out[way].Failed++
			if try == w.retries {
				break
			}
			failed = w.rng.Float64() < 0.9
		}
	}
	for way := range bins {
		out[way].Latency.Bins = make([]shift.BinCount, 0, 48)
		for b, n := range bins[way] {
			if n > 0 {
				out[way].Latency.Bins = append(out[way].Latency.Bins, shift.BinCount{Bin: shift.Bin(b - 100), Count: n})
			}
		}
	}
	return out[0], out[1]
}

// ramp is how one shift went.
type ramp struct {
	end    shift.Status
	second int // of the end
	share  shift.Share
	breach *shift.Breach
}

// run lets a shift go its way in a world, at most for so many seconds. A cheap
// store does at once what actions say.
func (w world) run(plan shift.Plan, seconds int) ramp {
	stage, start := shift.PlainStage, shift.Command{Verb: shift.CommandStart, Pair: pair, Plan: plan}
	obs := shift.Observed{
		Commands: []shift.Command{start},
		Callees:  []shift.Callee{{Service: pair.Destination, Ways: []shift.Reach{{Way: plan.To, Ready: 4, Total: 4}}}},
	}
	held := shift.Setting{Shares: shift.AllOn(plan.From)}
	var state shift.State
	for at := range seconds {
		o := shift.PairObserved{Pair: pair, Stage: stage, Shares: held.Shares, Generation: held.Generation, Applied: held.Generation}
		old, new := w.second(at, held.Shares.Of(plan.To))
		o.Ways = []shift.WayTelemetry{{Way: plan.From, Telemetry: old}, {Way: plan.To, Telemetry: new}}
		obs.Pairs = []shift.PairObserved{o}
		var actions []shift.Action
		state, actions = shift.Step(noon.Add(time.Duration(at)*time.Second), state, obs)
		obs.Commands = nil
		for _, a := range actions {
			if a.Kind == shift.SetShares {
				held = shift.Newer(held, shift.Setting{Shares: a.Shares, Generation: a.Generation, Back: a.Back})
			}
		}
		if s := state.Shifts[0]; s.Status != shift.Running && s.Status != shift.Queued {
			r := ramp{end: s.Status, second: at, breach: s.Breach}
			if s.Breach != nil {
				r.share = s.Breach.Share
			} else {
				r.share = held.Shares.Of(plan.To)
			}
			return r
		}
	}
	return ramp{end: state.Shifts[0].Status, second: seconds, share: held.Shares.Of(plan.To)}
}

// many runs n seeded worlds, on as many processors as there are.
func many(n int, in func(rng *rand.Rand) world, plan shift.Plan, seconds int) []ramp {
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // short-lived worlds, millions of seconds
	out := make([]ramp, n)
	var wg sync.WaitGroup
	for part := range 4 {
		wg.Go(func() {
			for i := part; i < n; i += 4 {
				out[i] = in(rand.New(rand.NewPCG(uint64(i), 1))).run(plan, seconds)
			}
		})
	}
	wg.Wait()
	return out
}

func constant(v float64) func(int) float64 { return func(int) float64 { return v } }

var (
	usual    = latencies(20, 0.5)
	usual3   = latencies(60, 0.5)
	usual15  = latencies(30, 0.5)
	usual5   = latencies(100, 0.5)
	longTail = latencies(20, 0.5+math.Log(1.5)/2.326) // p99 × 1.5, the same median
)

// fast is a plan with two minutes a step.
var fast = shift.Plan{From: shift.Direct, To: shift.Plain, Dwell: 2 * time.Minute}

// equal are worlds in which the way makes no difference.
var equal = []struct {
	name string
	plan func(*shift.Plan)
	make func(*rand.Rand) world
}{
	{name: "steady, 50 rps, 1 % errors", make: func(r *rand.Rand) world {
		return alike(r, constant(50), func(int) float64 { return 0.01 }, nil)
	}},
	{name: "bursts of 0 to 400 rps, errors in bursts", make: func(r *rand.Rand) world {
		burst := make([]bool, 4000)
		for i := range burst {
			burst[i] = r.IntN(10) == 0
		}
		return alike(r,
			func(s int) float64 { return map[bool]float64{true: 400, false: 8}[burst[s%4000]] },
			func(s int) float64 { return map[bool]float64{true: 0.3, false: 0.001}[burst[(s*7)%4000]] },
			func(s int) *[1 << 10]shift.Bin {
				return map[bool]*[1 << 10]shift.Bin{true: usual3, false: usual}[burst[(s*3)%4000]]
			})
	}},
	{name: "a daily wave, in ten minutes", make: func(r *rand.Rand) world {
		wave := func(s int) float64 { return 0.5 - 0.5*math.Cos(float64(s)/600*2*math.Pi) }
		return alike(r, func(s int) float64 { return 5 + 95*wave(s) }, func(s int) float64 { return 0.05 * wave(s) },
			func(s int) *[1 << 10]shift.Bin {
				if wave(s) > 0.7 {
					return usual15
				}
				return usual
			})
	}},
	{name: "both ways degrade together, again and again", make: func(r *rand.Rand) world {
		bad := func(s int) bool { return s%200 > 120 }
		return alike(r, constant(50), func(s int) float64 { return map[bool]float64{true: 0.4, false: 0.001}[bad(s)] },
			func(s int) *[1 << 10]shift.Bin {
				return map[bool]*[1 << 10]shift.Bin{true: usual5, false: usual}[bad(s)]
			})
	}},
	{name: "small samples, 1 rps, 5 % errors", plan: func(p *shift.Plan) {
		p.Steps, p.Limits.Attempts = []shift.Share{1000, 3000, 5000, 10000}, 10
	}, make: func(r *rand.Rand) world {
		return alike(r, constant(1), func(int) float64 { return 0.05 }, nil)
	}},
	{name: "failures retried, 50 rps, 5 % errors", plan: func(p *shift.Plan) { p.Limits.Cluster = 3 }, make: func(r *rand.Rand) world {
		w := alike(r, constant(50), func(int) float64 { return 0.05 }, nil)
		w.retries = 2
		return w
	}},
}

func alike(r *rand.Rand, rate, failing func(int) float64, slow func(int) *[1 << 10]shift.Bin) world {
	if slow == nil {
		slow = func(int) *[1 << 10]shift.Bin { return usual }
	}
	return world{rng: r, rate: rate,
		failing: func(s int, _ bool) float64 { return failing(s) },
		latency: func(s int, _ bool) *[1 << 10]shift.Bin { return slow(s) }}
}

// TestGuardLeavesEqualWaysAlone holds false trips, per whole ramp, to 1 % in each world.
func TestGuardLeavesEqualWaysAlone(t *testing.T) {
	for _, w := range equal {
		t.Run(w.name, func(t *testing.T) {
			plan := fast
			plan.Dwell = time.Minute
			if w.plan != nil {
				w.plan(&plan)
			}
			began := time.Now()
			trips, done := 0, 0
			for _, r := range many(*ramps, w.make, plan, 600) {
				if r.breach != nil {
					trips++
					t.Log(r.breach)
				}
				if r.end == shift.Done {
					done++
				}
			}
			t.Logf("%d of %d ramps stopped for nothing, %d done within 10 minutes (%v)", trips, *ramps, done, time.Since(began))
			if trips*100 > *ramps {
				t.Errorf("%d of %d ramps of equal ways were stopped, at most 1 %% may be", trips, *ramps)
			}
		})
	}
}

// faulty are worlds whose new way is worse from a second on.
func faulty(rate, base, extra float64, slow *[1 << 10]shift.Bin, from int) func(*rand.Rand) world {
	return func(r *rand.Rand) world {
		return world{rng: r, rate: constant(rate),
			failing: func(s int, new bool) float64 {
				if new && s >= from {
					return base + extra
				}
				return base
			},
			latency: func(s int, new bool) *[1 << 10]shift.Bin {
				if new && s >= from {
					return slow
				}
				return usual
			}}
	}
}

// caught says how many ramps tripped at or after a second, and the seconds from
// there at the median and at 99 of 100; what was not caught counts as never.
func caught(ramps []ramp, from int) (n, early int, median, most float64) {
	var after []float64
	for _, r := range ramps {
		switch {
		case r.breach != nil && r.second < from:
			early++
		case r.breach != nil:
			n++
			after = append(after, float64(r.second-from+1))
		default:
			after = append(after, math.Inf(1))
		}
	}
	slices.Sort(after)
	at := func(q float64) float64 { return after[min(len(after)-1, int(q*float64(len(after))))] }
	return n, early, at(0.5), at(0.99)
}

// TestGuardCatches holds that a worse way is caught in a whole ramp at 50 rps.
func TestGuardCatches(t *testing.T) {
	for _, c := range []struct {
		name        string
		base, extra float64
		slow        *[1 << 10]shift.Bin
	}{
		{"+2 % errors over 0.1 %", 0.001, 0.02, usual},
		{"+2 % errors over 1 %", 0.01, 0.02, usual},
		{"everything 1.5 times slower", 0.01, 0, usual15},
		{"p99 1.5 times slower, the same median", 0.01, 0, longTail},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := many(*ramps, faulty(50, c.base, c.extra, c.slow, 0), fast, 720)
			n, _, median, most := caught(out, 0)
			shares := map[shift.Share]int{}
			for _, r := range out {
				shares[r.share]++
			}
			t.Logf("caught in %d of %d, after %v s at the median, %v s at 99 of 100, at %s", n, *ramps, median, most, sorted(shares))
			if n*100 < *ramps*99 {
				t.Errorf("caught in %d of %d ramps, at least 99 %% are wanted", n, *ramps)
			}
		})
	}
}

func sorted(m map[shift.Share]int) string {
	var keys []shift.Share
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var out []string
	for _, k := range keys {
		out = append(out, fmt.Sprintf("%v: %d", k, m[k]))
	}
	return strings.Join(out, ", ")
}

// TestGuardLeavesANewWayAlone holds false trips to 1 % where all went to the new way and
// stays there, so that nothing but the past is there to compare with.
func TestGuardLeavesANewWayAlone(t *testing.T) {
	worlds := equal
	for _, start := range []int{150, 300} {
		worlds = append(slices.Clip(worlds), equal[2])
		w := &worlds[len(worlds)-1]
		w.name, w.make = fmt.Sprintf("the same wave, from second %d on", start), func(r *rand.Rand) world { return equal[2].make(r).from(start) }
	}
	for _, w := range worlds {
		t.Run(w.name, func(t *testing.T) {
			plan := fast
			if w.plan != nil {
				w.plan(&plan)
			}
			plan.Steps, plan.Dwell = []shift.Share{5000, 10000}, 3*time.Minute
			trips, done := 0, 0
			for _, r := range many(*ramps, w.make, plan, 900) {
				if r.breach != nil {
					trips++
					t.Log(r.breach)
				}
				if r.end == shift.Done {
					done++
				}
			}
			t.Logf("%d of %d ramps stopped for nothing, %d done", trips, *ramps, done)
			if trips*100 > *ramps || done+trips < *ramps*9/10 {
				t.Errorf("%d of %d ramps of equal ways were stopped, at most 1 %% may be; %d done", trips, *ramps, done)
			}
		})
	}
}

// from is a world that begins later.
func (w world) from(start int) world {
	rate, failing, latency := w.rate, w.failing, w.latency
	w.rate = func(s int) float64 { return rate(s + start) }
	w.failing = func(s int, new bool) float64 { return failing(s+start, new) }
	w.latency = func(s int, new bool) *[1 << 10]shift.Bin { return latency(s+start, new) }
	return w
}

// TestGuardCatchesANewWayAlone measures how long a fault lasts that begins once all is on the
// new way.
func TestGuardCatchesANewWayAlone(t *testing.T) {
	for _, c := range []struct {
		name  string
		rate  float64
		extra float64
		slow  *[1 << 10]shift.Bin
		from  int
	}{
		{"20 % errors, at once, 50 rps", 50, 0.2, usual, 62},
		{"20 % errors, 50 rps", 50, 0.2, usual, 100},
		{"50 % errors, 20 rps", 20, 0.5, usual, 100},
		{"10 % errors, 200 rps", 200, 0.1, usual, 100},
		{"5 times slower, 50 rps", 50, 0, usual5, 100},
	} {
		t.Run(c.name, func(t *testing.T) {
			ramps := max(10, *ramps/10)
			plan := shift.Plan{From: shift.Direct, To: shift.Plain, Steps: []shift.Share{5000, 10000}, Dwell: time.Minute}
			out := many(ramps, faulty(c.rate, 0.01, c.extra, c.slow, c.from), plan, 300)
			n, early, median, most := caught(out, c.from)
			shares := map[shift.Share]int{}
			for _, r := range out {
				shares[r.share]++
			}
			t.Logf("caught in %d of %d, after %v s at the median, %v s at 99 of 100 (%d before the fault), at %s", n, ramps, median, most, early, sorted(shares))
			if !(most <= 15) || shares[shift.Whole] < ramps*9/10 {
				t.Errorf("99 of 100 are caught after %v s, at %s; 15 s are wanted, at 100%%", most, sorted(shares))
			}
		})
	}
}

// TestGuardIsQuick measures how long a fault lasts until it is caught, on one step.
func TestGuardIsQuick(t *testing.T) {
	for _, c := range []struct {
		name  string
		share shift.Share
		rate  float64
		extra float64
		slow  *[1 << 10]shift.Bin
		from  int
		bound float64 // seconds, at 99 of 100; 0 is only told
	}{
		{"50 % errors, 1 % of 2,000 rps", 100, 2000, 0.5, usual, 100, 10},
		{"50 % errors, 5 % of 400 rps", 500, 400, 0.5, usual, 100, 10},
		{"50 % errors, 25 % of 80 rps", 2500, 80, 0.5, usual, 100, 10},
		{"50 % errors, 50 % of 40 rps", 5000, 40, 0.5, usual, 100, 10},
		{"50 % errors, 50 % of 40 rps, at once", 5000, 40, 0.5, usual, 1, 10},
		{"50 % errors, 50 % of 40 rps, after an hour", 5000, 40, 0.5, usual, 3600, 10},
		{"5 times slower, 1 % of 2,000 rps", 100, 2000, 0, usual5, 100, 10},
		{"5 times slower, 5 % of 400 rps", 500, 400, 0, usual5, 100, 10},
		{"5 times slower, 25 % of 80 rps", 2500, 80, 0, usual5, 100, 10},
		{"5 times slower, 50 % of 40 rps", 5000, 40, 0, usual5, 100, 10},
		{"+2 % errors, 5 % of 50 rps", 500, 50, 0.02, usual, 100, 0},
		{"+2 % errors, 25 % of 50 rps", 2500, 50, 0.02, usual, 100, 0},
		{"+2 % errors, 50 % of 50 rps", 5000, 50, 0.02, usual, 100, 0},
		{"p99 1.5 times slower, 25 % of 50 rps", 2500, 50, 0, longTail, 100, 0},
		{"p99 1.5 times slower, 50 % of 50 rps", 5000, 50, 0, longTail, 100, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			ramps := max(20, *ramps/10)
			plan := shift.Plan{From: shift.Direct, To: shift.Plain, Steps: []shift.Share{c.share}, Dwell: 100 * time.Hour}
			out := many(ramps, faulty(c.rate, 0.01, c.extra, c.slow, c.from), plan, c.from+900)
			n, early, median, most := caught(out, c.from)
			t.Logf("caught in %d of %d, after %v s at the median, %v s at 99 of 100 (%d before the fault)", n, ramps, median, most, early)
			if c.bound > 0 && !(most <= c.bound) {
				t.Errorf("99 of 100 are caught after %v s, %v s are wanted", most, c.bound)
			}
		})
	}
}

// TestGuardAcceptsWhatIsWithinLimits holds that a way which is surely worse, but
// by less than the limits, is left alone: a sidecar costs something.
func TestGuardAcceptsWhatIsWithinLimits(t *testing.T) {
	slightly := latencies(21, 0.5)
	ramps, plan := max(20, *ramps/10), fast
	plan.Dwell = time.Minute
	trips := 0
	for _, r := range many(ramps, faulty(300, 0.01, 0.001, slightly, 0), plan, 600) {
		if r.breach != nil {
			trips++
			t.Log(r.breach)
		}
	}
	t.Logf("%d of %d ramps stopped", trips, ramps)
	if trips*20 > ramps {
		t.Errorf("%d of %d ramps were stopped by a difference within the limits", trips, ramps)
	}
}

// TestRepeatedTestsLie shows what the guard's kind of test is for: a usual test
// of one in a hundred, looked at each second, stops many a ramp of equal ways.
func TestRepeatedTestsLie(t *testing.T) {
	const n = 100
	stopped := 0
	for i := range n {
		w := equal[0].make(rand.New(rand.NewPCG(uint64(i), 2)))
		var old, new shift.Telemetry
		for at := range 600 {
			o, n := w.second(at, 2500)
			old, new = old.Merge(o), new.Merge(n)
			a, b := float64(new.Attempts), float64(old.Attempts)
			pooled := float64(new.Failed+old.Failed) / (a + b)
			z := (float64(new.Failed)/a - float64(old.Failed)/b) / math.Sqrt(pooled*(1-pooled)*(1/a+1/b))
			if at > 30 && z > 2.326 {
				stopped++
				break
			}
		}
	}
	t.Logf("%d of %d ramps stopped for nothing", stopped, n)
	if stopped < 5 {
		t.Errorf("%d of %d ramps stopped for nothing: the worlds are too easy to show anything", stopped, n)
	}
}
