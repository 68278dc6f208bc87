package shift_test

import (
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// A shift that holds takes no steps, keeps to what people set, lets others of the same
// callee step, and reverts what turns bad.
func TestHold(t *testing.T) {
	pair, other := shift.Pair{Source: "web", Destination: "catalog"}, shift.Pair{Source: "app", Destination: "catalog"}
	now := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	at := func(mtls int, generation uint64) shift.Shares {
		return shift.Shares{}.With(shift.Direct, shift.Whole-shift.Percent(mtls)).With(shift.MTLS, shift.Percent(mtls))
	}
	see := func(p shift.Pair, shares shift.Shares, generation uint64, failed uint64) shift.PairObserved {
		return shift.PairObserved{Pair: p, Stage: shift.Permissive, Shares: shares, Generation: generation, Applied: generation, Ways: []shift.WayTelemetry{
			{Way: shift.Direct, Telemetry: shift.Telemetry{Attempts: 50}}, {Way: shift.MTLS, Telemetry: shift.Telemetry{Attempts: 50, Failed: failed}},
		}}
	}
	hold := shift.Plan{From: shift.Direct, To: shift.MTLS, Hold: true}
	state, _ := shift.Step(now, shift.State{}, shift.Observed{
		Commands: []shift.Command{{Verb: shift.CommandStart, Pair: pair, Plan: hold}, {Verb: shift.CommandStart, Pair: other, Plan: shift.Plan{From: shift.Direct, To: shift.MTLS}}},
		Pairs:    []shift.PairObserved{see(pair, at(50, 1), 1, 0), see(other, at(0, 1), 1, 0)},
		Callees:  []shift.Callee{{Service: "catalog", Ways: []shift.Reach{{Way: shift.MTLS, Ready: 1, Total: 1}, {Way: shift.Direct, Ready: 1, Total: 1}}}},
	})
	if s, _ := state.Find(other); s.Status != shift.Running || s.Shares.MTLS != shift.Percent(1) {
		t.Errorf("the other one: %+v", s)
	}
	step := func(o shift.PairObserved) (shift.Shift, []shift.Action) {
		now = now.Add(time.Second)
		var actions []shift.Action
		state, actions = shift.Step(now, state, shift.Observed{Pairs: []shift.PairObserved{o}})
		s, _ := state.Find(pair)
		return s, actions
	}
	for range 600 {
		if s, actions := step(see(pair, at(50, 1), 1, 0)); s.Status != shift.Running || s.Shares != at(50, 1) || len(actions) > 1 {
			t.Fatalf("%+v %+v", s, actions)
		}
	}
	if s, _ := step(see(pair, at(20, 2), 2, 0)); s.Status != shift.Running || s.Generation != 2 || s.Shares != at(20, 2) {
		t.Errorf("set by hand: %+v", s)
	}
	for range 20 {
		s, actions := step(see(pair, at(20, 2), 2, 25))
		if s.Status != shift.Reverting {
			continue
		}
		if last := actions[len(actions)-1]; last.Kind != shift.SetShares || last.Shares != shift.AllOn(shift.Direct) || last.Generation != 3 || s.Breach == nil {
			t.Errorf("%+v", actions)
		}
		if s, _ := step(see(pair, shift.AllOn(shift.Direct), 3, 0)); s.Status != shift.Reverted {
			t.Errorf("%+v", s)
		}
		return
	}
	t.Error("a way of which half fails is not left")
}
