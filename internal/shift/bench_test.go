package shift_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/shift"
)

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
