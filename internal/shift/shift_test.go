package shift_test

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/crossfade-mesh/crossfade/internal/shift"
)

func TestSharesValidate(t *testing.T) {
	for _, c := range []struct {
		shares shift.Shares
		stage  shift.Stage
		want   string // "" is none
	}{
		{shift.AllOn(shift.Legacy), shift.Client, ""},
		{shift.Shares{Direct: 9_950, Plain: 50}, shift.PlainStage, ""},
		{shift.AllOn(shift.MTLS), shift.StrictStage, ""},
		{shift.Shares{Legacy: 1, Direct: 2, Plain: 3, MTLS: 9_994}, shift.Permissive, ""},
		{shift.AllOn(shift.Plain), shift.Client, `shares of "storefront -> catalog": way "plain" has 100%: stage client closes it, plain opens with stage plain`},
		{shift.AllOn(shift.MTLS), shift.PlainStage, `shares of "storefront -> catalog": way "mtls" has 100%: stage plain closes it, mtls opens with stage permissive`},
		{shift.AllOn(shift.Direct), shift.StrictStage, `shares of "storefront -> catalog": way "direct" has 100%: stage strict closes it, the callee takes nothing but mtls`},
		{shift.AllOn(shift.Legacy), shift.Outside, `shares of "storefront -> catalog": way "legacy" has 100%: stage outside opens no way, the app is not on its sidecar yet`},
		{shift.AllOn(shift.Legacy), "", `shares of "storefront -> catalog": way "legacy" has 100%: the pair's stage is not known`},
		{shift.Shares{Direct: 9_999}, shift.Client, `shares of "storefront -> catalog": they add to 99.99%: they must add to 100%`},
		{shift.Shares{Direct: 10_100, Legacy: -100}, shift.Client, `shares of "storefront -> catalog": way "legacy" has -1%: a share is between 0% and 100%`},
	} {
		got := ""
		if err := c.shares.Validate(pair, c.stage); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s in stage %q:\n got %s\nwant %s", c.shares, c.stage, got, c.want)
		}
	}
}

func TestWindow(t *testing.T) {
	office := shift.Window{Days: []time.Weekday{time.Monday, time.Friday}, From: 9 * 60, Until: 17 * 60}
	night := shift.Window{Days: []time.Weekday{time.Monday}, From: 22 * 60, Until: 6 * 60}
	always := shift.Window{}
	for _, c := range []struct {
		w    shift.Window
		day  int // of March 2026; the 2nd is a Monday
		hour int
		want bool
	}{
		{office, 2, 9, true}, {office, 2, 8, false}, {office, 2, 17, false}, {office, 3, 12, false}, {office, 6, 16, true},
		{night, 2, 22, true}, {night, 3, 5, true}, {night, 3, 6, false}, {night, 2, 5, false}, {night, 3, 23, false},
		{always, 4, 3, true},
	} {
		at := time.Date(2026, 3, c.day, c.hour, 0, 0, 0, time.UTC)
		if got := c.w.Contains(at); got != c.want {
			t.Errorf("%s contains %s: %v, want %v", c.w, at.Format("Mon 15:04"), got, c.want)
		}
	}
	if err := (shift.Window{From: 24 * 60}).Validate(); err == nil {
		t.Error("a window from 24:00 is taken")
	}
}

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

func TestPlanValidate(t *testing.T) {
	for want, p := range map[string]shift.Plan{
		"no such way":                  {From: "old", To: shift.Plain},
		"nothing would move":           {From: shift.Plain, To: shift.Plain},
		"steps rise":                   {From: shift.Direct, To: shift.Plain, Steps: []shift.Share{500, 500}},
		"step 101% after 0%":           {From: shift.Direct, To: shift.Plain, Steps: []shift.Share{10_100}},
		"at least 30s":                 {From: shift.Direct, To: shift.Plain, Dwell: time.Second},
		"no such policy":               {From: shift.Direct, To: shift.Plain, OnBreach: "hope"},
		"false trips are a part of 1":  {From: shift.Direct, To: shift.Plain, Limits: shift.Limits{FalseTrips: 1}},
		"no such time of day":          {From: shift.Direct, To: shift.Plain, Windows: []shift.Window{{From: -1}}},
		"shift of \"a -> b\": no such": {From: "", To: shift.Plain},
	} {
		err := p.Validate(shift.Pair{Source: "a", Destination: "b"})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", p, err, want)
		}
	}
	if err := fast.Validate(pair); err != nil {
		t.Error(err)
	}
}

// bench is a store and a fleet of one pair or more, around Step.
type bench struct {
	t     testing.TB
	state shift.State
	now   time.Time
	held  map[shift.Pair]shift.Setting
	stage map[shift.Pair]shift.Stage
	rate  uint64 // attempts a second and pair
	fail  float64
	ready int
	mute  bool // callers do not prove what they run
	gone  map[shift.Pair]bool
	said  []string
	log   []shift.LogEntry
}

func newBench(t testing.TB, pairs ...shift.Pair) *bench {
	b := &bench{t: t, now: noon, held: map[shift.Pair]shift.Setting{}, stage: map[shift.Pair]shift.Stage{}, rate: 1000, ready: 12, gone: map[shift.Pair]bool{}}
	for _, p := range pairs {
		b.held[p], b.stage[p] = shift.Setting{Shares: shift.AllOn(shift.Direct)}, shift.PlainStage
	}
	return b
}

func (b *bench) observed(commands ...shift.Command) shift.Observed {
	o := shift.Observed{Commands: commands}
	callees := map[string]bool{}
	for p, held := range b.held {
		if b.gone[p] {
			continue
		}
		po := shift.PairObserved{Pair: p, Stage: b.stage[p], Shares: held.Shares, Generation: held.Generation, Applied: held.Generation, Rate: float64(b.rate)}
		if b.mute {
			po.Applied = 0
		}
		for _, w := range shift.Ways() {
			n := b.rate * uint64(held.Shares.Of(w)) / uint64(shift.Whole)
			tel := shift.Telemetry{Attempts: n, Latency: shift.FromBins(shift.BinCount{Bin: 100, Count: float64(n)})}
			if w == shift.Plain {
				tel.Failed = uint64(float64(n) * b.fail)
			}
			po.Ways = append(po.Ways, shift.WayTelemetry{Way: w, Telemetry: tel})
		}
		if b.fail > 0 {
			po.Failing = []shift.FailedRequest{{At: b.now, Way: shift.Direct, ID: "d1", Reason: "500"}, {At: b.now, Way: shift.Plain, ID: "p1", Reason: "503 UF"}}
		}
		o.Pairs = append(o.Pairs, po)
		if !callees[p.Destination] {
			callees[p.Destination] = true
			o.Callees = append(o.Callees, shift.Callee{Service: p.Destination, Ways: []shift.Reach{
				{Way: shift.Direct, Ready: 12, Total: 12, Rate: float64(b.rate)}, {Way: shift.Plain, Ready: b.ready, Total: 12}}})
		}
	}
	slices.SortFunc(o.Pairs, func(a, b shift.PairObserved) int { return a.Pair.Compare(b.Pair) })
	slices.SortFunc(o.Callees, func(a, b shift.Callee) int { return strings.Compare(a.Service, b.Service) })
	return o
}

// tick lets a time pass, and does what Step says.
func (b *bench) tick(by time.Duration, commands ...shift.Command) []shift.Action {
	b.now = b.now.Add(by)
	entry := shift.LogEntry{Now: b.now, Observed: b.observed(commands...)}
	b.log = append(b.log, entry)
	var actions []shift.Action
	b.state, actions = shift.Step(entry.Now, b.state, entry.Observed)
	for _, a := range actions {
		b.said = append(b.said, fmt.Sprintf("%s %s %s%s: %s", a.Kind, a.Pair, a.Status, a.Wait, a.Reason))
		if a.Kind == shift.SetShares {
			b.held[a.Pair] = shift.Newer(b.held[a.Pair], shift.Setting{Shares: a.Shares, Generation: a.Generation, Back: a.Back})
		}
	}
	return actions
}

func (b *bench) seconds(n int) {
	for range n {
		b.tick(time.Second)
	}
}

func (b *bench) find(p shift.Pair) shift.Shift {
	b.t.Helper()
	s, ok := b.state.Find(p)
	if !ok {
		b.t.Fatalf("no shift of %s", p)
	}
	return s
}

// want holds the status, the wait and what is written down.
func (b *bench) want(status shift.Status, wait shift.Wait, plain shift.Share) {
	b.t.Helper()
	s := b.find(pair)
	if s.Status != status || s.Wait != wait || b.held[pair].Shares.Of(shift.Plain) != plain {
		b.t.Fatalf("%s %q at %v (%s), want %s %q at %v", s.Status, s.Wait, b.held[pair].Shares.Of(shift.Plain), s.Reason, status, wait, plain)
	}
}

// quick is a plan of half a minute a step.
var quick = shift.Plan{From: shift.Direct, To: shift.Plain, Dwell: 30 * time.Second}

func start(p shift.Pair, plan shift.Plan) shift.Command {
	return shift.Command{Verb: shift.CommandStart, Pair: p, Plan: plan, By: "ann"}
}

func do(v shift.Verb, p shift.Pair) shift.Command { return shift.Command{Verb: v, Pair: p, By: "ann"} }

func TestStepsRunByThemselves(t *testing.T) {
	b := newBench(t, pair)
	b.tick(time.Second, start(pair, quick))
	for _, share := range []shift.Share{100, 500, 2500, 5000, 10000} {
		b.want(shift.Running, "", share)
		b.seconds(1)
		b.want(shift.Running, shift.WaitDwell, share)
		b.seconds(29)
	}
	b.want(shift.Done, "", 10000)
	if g := b.held[pair].Generation; g != 5 {
		t.Errorf("generation %d after five steps", g)
	}
	b.tick(time.Second, do(shift.CommandRevert, pair))
	b.want(shift.Reverting, "", 0)
	b.seconds(1)
	b.want(shift.Reverted, "", 0)
	if g := b.held[pair].Generation; g != 6 {
		t.Errorf("generation %d after the revert", g)
	}
}

func TestStepWaits(t *testing.T) {
	for _, c := range []struct {
		name  string
		wait  shift.Wait
		share shift.Share // where it stays
		in    func(*bench, *shift.Plan)
		said  string
		out   func(*bench)
	}{
		{"outside the windows", shift.WaitWindow, 0, func(_ *bench, p *shift.Plan) { p.Windows = []shift.Window{{From: 13 * 60, Until: 14 * 60}} },
			"Mon 12:01 lies outside the windows [13:00-14:00]", func(b *bench) { b.now = b.now.Add(time.Hour) }},
		{"no instance takes the way", shift.WaitCapacity, 0, func(b *bench, _ *shift.Plan) { b.ready = 0 },
			`service "catalog": none of 12 instances takes way plain`, func(b *bench) { b.ready = 12 }},
		{"3 of 12 instances", shift.WaitCapacity, 500, func(b *bench, _ *shift.Plan) { b.ready = 3 },
			`service "catalog": 3 of 12 instances take way plain: each would get 1.6 times the mean load, at most 1.5`, func(b *bench) { b.ready = 6 }},
		{"a closed way", shift.WaitStage, 0, func(b *bench, _ *shift.Plan) { b.stage[pair] = shift.Client },
			`shares of "storefront -> catalog": way "plain" has 1%: stage client closes it, plain opens with stage plain`, func(b *bench) { b.stage[pair] = shift.PlainStage }},
		{"shares elsewhere", shift.WaitStage, 0, func(b *bench, _ *shift.Plan) { b.held[pair] = shift.Setting{Shares: shift.AllOn(shift.Legacy)} },
			"the pair has legacy 100%: a shift from direct to plain wants all of it on these two", func(b *bench) { b.held[pair] = shift.Setting{Shares: shift.AllOn(shift.Direct)} }},
		{"callers that do not prove it", shift.WaitCallers, 100, func(b *bench, _ *shift.Plan) { b.mute = true },
			"not every caller runs generation 1 yet", func(b *bench) { b.mute = false }},
		{"a pair of which nothing is known", shift.WaitUnseen, 0, func(b *bench, _ *shift.Plan) { b.gone[pair] = true },
			"nothing is known of the pair now", func(b *bench) { b.gone[pair] = false }},
		{"small samples", shift.WaitGuard, 100, func(b *bench, _ *shift.Plan) { b.rate = 100 },
			"91 of 100 attempts seen on the new way", func(b *bench) { b.rate = 1000 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, plan := newBench(t, pair), quick
			c.in(b, &plan)
			b.tick(time.Second, start(pair, plan))
			b.seconds(91)
			status := shift.Running
			if c.share == 0 {
				status = shift.Queued
			}
			b.want(status, c.wait, c.share)
			if s := b.find(pair); s.Reason != c.said {
				t.Errorf("reason %q, want %q", s.Reason, c.said)
			}
			c.out(b)
			b.seconds(35)
			if got := b.held[pair].Shares.Of(shift.Plain); got <= c.share {
				t.Errorf("still at %v: %s", got, b.find(pair).Reason)
			}
		})
	}
}

func TestOneShiftPerCallee(t *testing.T) {
	other := shift.Pair{Source: "search", Destination: "catalog"}
	apart := shift.Pair{Source: "search", Destination: "users"}
	b := newBench(t, pair, other, apart)
	b.tick(time.Second, start(other, quick))
	b.tick(time.Second, start(pair, quick), start(apart, quick))
	b.want(shift.Queued, shift.WaitCallee, 0)
	if got := b.held[apart].Shares.Of(shift.Plain); got != 100 {
		t.Errorf("the shift of another callee is at %v", got)
	}
	b.tick(time.Second, do(shift.CommandPause, other))
	b.seconds(100)
	b.want(shift.Queued, shift.WaitCallee, 0)
	b.tick(time.Second, do(shift.CommandRevert, other))
	b.seconds(3)
	b.want(shift.Running, shift.WaitDwell, 100)
}

func TestBreach(t *testing.T) {
	for policy, want := range map[shift.Policy]shift.Status{"": shift.Reverted, shift.Revert: shift.Reverted, shift.Pause: shift.Paused} {
		t.Run(string(policy), func(t *testing.T) {
			b, plan := newBench(t, pair), quick
			plan.OnBreach = policy
			b.tick(time.Second, start(pair, plan))
			b.seconds(40)
			b.want(shift.Running, shift.WaitDwell, 500)
			b.fail = 0.5
			b.seconds(3)
			if s := b.find(pair); s.Status != want || s.Breach == nil {
				t.Fatalf("%s, breach %v, want %s", s.Status, s.Breach, want)
			}
			record := b.find(pair).Breach.String()
			for _, part := range []string{"storefront -> catalog at plain 5%: success: failed ", "on plain, failed 0% of ", "limit 0.5% more", "limit 100\n", "plain p1: 503 UF\n", "direct d1: 500"} {
				if !strings.Contains(record, part) {
					t.Errorf("the record lacks %q:\n%s", part, record)
				}
			}
			guide, err := os.ReadFile("../../docs/shift-guard.md")
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(guide), record) {
				t.Errorf("docs/shift-guard.md shows another record than:\n%s", record)
			}
			if want == shift.Reverted {
				b.seconds(100)
				b.want(shift.Reverted, "", 0)
				return
			}
			b.seconds(100)
			b.want(shift.Paused, "", 500)
			b.fail = 0
			b.tick(time.Second, do(shift.CommandResume, pair))
			b.seconds(31)
			b.want(shift.Running, shift.WaitDwell, 2500)
		})
	}
}

// Each kind of harm is named by the metric that says most about it.
func TestBreachNamesTheMetric(t *testing.T) {
	for want, harm := range map[shift.Metric]func(*shift.Telemetry){
		shift.Connect: func(t *shift.Telemetry) { t.Failed, t.ConnectFailed = t.Attempts/3, t.Attempts/3 },
		shift.Success: func(t *shift.Telemetry) { t.Attempts, t.Withheld, t.Latency = 0, t.Attempts, shift.Histogram{} },
		shift.P99: func(t *shift.Telemetry) { // a tenth is slow
			n := float64(t.Attempts)
			t.Latency = shift.FromBins(shift.BinCount{Bin: 100, Count: n - n/10}, shift.BinCount{Bin: 250, Count: n / 10})
		},
	} {
		o := shift.PairObserved{Pair: pair, Stage: shift.PlainStage, Shares: shift.Shares{Direct: 5000, Plain: 5000}, Generation: 1, Applied: 1}
		healthy := func() shift.Telemetry {
			return shift.Telemetry{Attempts: 100, Latency: shift.FromBins(shift.BinCount{Bin: 100, Count: 100})}
		}
		state := shift.State{Seen: noon, Shifts: []shift.Shift{{Pair: pair, Plan: quick, Status: shift.Running, Shares: o.Shares, Generation: 1}}}
		for i := range 20 {
			worse := healthy()
			if i > 5 {
				harm(&worse)
			}
			o.Ways = []shift.WayTelemetry{{Way: shift.Direct, Telemetry: healthy()}, {Way: shift.Plain, Telemetry: worse}}
			state, _ = shift.Step(noon.Add(time.Duration(i)*time.Second), state, shift.Observed{Pairs: []shift.PairObserved{o}})
		}
		if s := state.Shifts[0]; s.Breach == nil || s.Breach.Metric != want {
			t.Errorf("breach %v, want %s", s.Breach, want)
		}
	}
}

// A shift that a person paused is still guarded.
func TestPausedIsGuarded(t *testing.T) {
	b := newBench(t, pair)
	b.tick(time.Second, start(pair, quick))
	b.seconds(40)
	b.tick(time.Second, do(shift.CommandPause, pair))
	b.seconds(100)
	b.want(shift.Paused, "", 500)
	b.fail = 0.5
	b.seconds(5)
	b.want(shift.Reverted, "", 0)
}

func TestClockJumps(t *testing.T) {
	for name, by := range map[string]time.Duration{"back": -3 * time.Hour, "forward": 3 * time.Hour, "a little": 9 * time.Second} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, pair)
			b.tick(time.Second, start(pair, quick))
			b.seconds(10)
			b.tick(by)
			b.want(shift.Running, b.find(pair).Wait, 100)
			b.seconds(10)
			b.want(shift.Running, shift.WaitDwell, 100)
			if s := b.find(pair); s.Dwelt > 30*time.Second || s.Breach != nil {
				t.Errorf("dwelt %v, breach %v", s.Dwelt, s.Breach)
			}
			b.seconds(15)
			b.want(shift.Running, shift.WaitDwell, 500)
		})
	}
}

// What somebody else writes with a higher generation stands.
func TestOverruled(t *testing.T) {
	b := newBench(t, pair)
	b.tick(time.Second, start(pair, quick))
	b.held[pair] = shift.Setting{Shares: shift.Shares{Direct: 7000, Plain: 3000}, Generation: 9}
	b.seconds(2)
	b.want(shift.Paused, "", 3000)
	b.tick(time.Second, do(shift.CommandResume, pair))
	b.seconds(29)
	b.want(shift.Running, "", 5000)
	if g := b.held[pair].Generation; g != 10 {
		t.Errorf("generation %d", g)
	}
	// A host reverts by itself, with the next generation.
	b.held[pair] = shift.Setting{Shares: shift.AllOn(shift.Direct), Generation: 11, Back: true}
	b.seconds(100)
	b.want(shift.Reverted, "", 0)
}

// No revert opens a way that the stage has closed: it waits, and says so.
func TestRevertWaitsForItsWay(t *testing.T) {
	b := newBench(t, pair)
	plan := shift.Plan{From: shift.Direct, To: shift.MTLS, Steps: []shift.Share{5000}, Dwell: 30 * time.Second}
	b.stage[pair] = shift.Permissive
	b.state = shift.State{Shifts: []shift.Shift{{Pair: pair, Plan: plan, Status: shift.Running, Generation: 3, Stage: shift.Permissive,
		Shares: shift.Shares{Direct: 5000, MTLS: 5000}}}}
	b.held[pair] = shift.Setting{Shares: shift.Shares{Direct: 5000, MTLS: 5000}, Generation: 3}
	b.tick(time.Second)
	b.stage[pair] = shift.StrictStage
	b.tick(time.Second, do(shift.CommandRevert, pair))
	b.seconds(5)
	if s := b.find(pair); s.Status != shift.Reverting || s.Wait != shift.WaitStage || b.held[pair].Generation != 3 {
		t.Fatalf("%s %q, %+v is written", s.Status, s.Wait, b.held[pair])
	}
	b.stage[pair] = shift.Permissive
	b.seconds(2)
	if s := b.find(pair); s.Status != shift.Reverted || b.held[pair].Shares != shift.AllOn(shift.Direct) {
		t.Fatalf("%s, %s is written: %s", s.Status, b.held[pair].Shares, s.Reason)
	}
}

func TestNewer(t *testing.T) {
	low, high := shift.Setting{Shares: shift.AllOn(shift.Plain), Generation: 3}, shift.Setting{Shares: shift.AllOn(shift.Direct), Generation: 4}
	back := shift.Setting{Shares: shift.AllOn(shift.Direct), Generation: 3, Back: true}
	for _, c := range []struct{ held, offered, want shift.Setting }{
		{low, high, high}, {high, low, high}, {low, back, back}, {back, low, back}, {low, low, low},
	} {
		if got := shift.Newer(c.held, c.offered); got != c.want {
			t.Errorf("%+v over %+v is %+v", c.offered, c.held, got)
		}
	}
}

func TestCommandsAreRefused(t *testing.T) {
	b := newBench(t, pair)
	b.tick(time.Second, start(pair, quick))
	for want, c := range map[string]shift.Command{
		`start "storefront -> catalog": a shift of the pair is running: revert it, or wait until it is done`: start(pair, quick),
		`start "* -> catalog": a shift is started for one pair by name`:                                      start(shift.Pair{Source: "*", Destination: "catalog"}, quick),
		`resume "storefront -> catalog": the shift is running: only a paused one resumes`:                    do(shift.CommandResume, pair),
		`revert "a -> b": no such shift`:                                                                     do(shift.CommandRevert, shift.Pair{Source: "a", Destination: "b"}),
		`go "storefront -> catalog": no such verb: "go"`:                                                     do("go", pair),
	} {
		refused := ""
		for _, a := range b.tick(time.Second, c) {
			if a.Kind == shift.Refused {
				refused = a.Reason
			}
		}
		if refused != want {
			t.Errorf("got  %s\nwant %s", refused, want)
		}
	}
	b.want(shift.Running, shift.WaitDwell, 100)
}

// An action that was lost in a crash is asked for again.
func TestLostActionIsRepeated(t *testing.T) {
	b := newBench(t, pair)
	b.tick(time.Second, start(pair, quick))
	b.held[pair] = shift.Setting{Shares: shift.AllOn(shift.Direct)} // the write never arrived
	b.tick(time.Second)
	b.want(shift.Running, shift.WaitCallers, 100)
}

func TestReplay(t *testing.T) {
	b := newBench(t, pair)
	b.tick(time.Second, start(pair, quick))
	b.seconds(70)
	b.fail = 0.1
	b.seconds(10)
	want, err := json.Marshal(b.state)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(b.log)
	if err != nil {
		t.Fatal(err)
	}
	var log []shift.LogEntry
	if err := json.Unmarshal(raw, &log); err != nil {
		t.Fatal(err)
	}
	// A restart after every entry: the state goes through JSON.
	var state shift.State
	for _, e := range log {
		state, _ = shift.Step(e.Now, through(t, state), e.Observed)
	}
	whole, _ := shift.Replay(shift.State{}, log)
	for _, s := range []shift.State{state, whole} {
		if got, _ := json.Marshal(s); string(got) != string(want) {
			t.Errorf("a replay differs:\n got %s\nwant %s", got, want)
		}
	}
}

// through is a state after a restart.
func through(t rapid.TB, s shift.State) (out shift.State) {
	t.Helper()
	raw, err := json.Marshal(s)
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A state written by a version that lacked a field never moves by itself for the
// lack of it: not before a whole dwell, not past a closed way.
func TestOldStatesAreHarmless(t *testing.T) {
	b := newBench(t, pair)
	b.tick(time.Second, start(pair, quick))
	b.seconds(20)
	raw, err := json.Marshal(b.state)
	if err != nil {
		t.Fatal(err)
	}
	var whole struct {
		Seen   time.Time        `json:"seen"`
		Shifts []map[string]any `json:"shifts"`
	}
	if err := json.Unmarshal(raw, &whole); err != nil {
		t.Fatal(err)
	}
	fields := whole.Shifts[0]
	for field := range fields {
		lacking := map[string]any{}
		for k, v := range fields {
			if k != field {
				lacking[k] = v
			}
		}
		raw, err := json.Marshal(map[string]any{"seen": whole.Seen, "shifts": []any{lacking}})
		if err != nil {
			t.Fatal(err)
		}
		old := newBench(t, pair)
		old.now, old.held[pair] = b.now, b.held[pair]
		if err := json.Unmarshal(raw, &old.state); err != nil {
			t.Fatal(err)
		}
		old.seconds(9)
		if got := old.held[pair].Shares.Of(shift.Plain); got > 100 {
			t.Errorf("without %q the shift is at %v after %v", field, got, old.said)
		}
		old.tick(time.Second, do(shift.CommandRevert, shift.Pair{Source: "*", Destination: "*"}))
		old.seconds(2)
		if got := old.held[pair].Shares; got != shift.AllOn(shift.Direct) && field != "plan" && field != "pair" {
			t.Errorf("without %q a revert leaves %s", field, got)
		}
	}
}
