package shift_test

import (
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// Terms that change while a shift runs hold from the next step on: a guard that is off trips
// on nothing and keeps no step waiting, and one that is on again begins anew.
func TestTermsOfARunningShift(t *testing.T) {
	now := noon
	var state shift.State
	terms := &shift.Terms{}
	failed, attempts := uint64(0), uint64(100)
	held := shift.Setting{Shares: shift.AllOn(shift.Direct)}
	step := func(commands ...shift.Command) shift.Shift {
		now = now.Add(time.Second)
		o := shift.PairObserved{Pair: pair, Stage: shift.Permissive, Shares: held.Shares, Generation: held.Generation, Applied: held.Generation, Terms: terms, Ways: []shift.WayTelemetry{
			{Way: shift.Direct, Telemetry: shift.Telemetry{Attempts: attempts}}, {Way: shift.MTLS, Telemetry: shift.Telemetry{Attempts: attempts, Failed: failed}},
		}}
		var actions []shift.Action
		state, actions = shift.Step(now, state, shift.Observed{Commands: commands, Pairs: []shift.PairObserved{o}, Callees: []shift.Callee{{
			Service: pair.Destination, Ways: []shift.Reach{{Way: shift.MTLS, Ready: 1, Total: 1}, {Way: shift.Direct, Ready: 1, Total: 1}},
		}}})
		for _, a := range actions {
			if a.Kind == shift.SetShares {
				held = shift.Newer(held, shift.Setting{Shares: a.Shares, Generation: a.Generation, Back: a.Back})
			}
		}
		s, _ := state.Find(pair)
		return s
	}
	until := func(what string, most int, is func(shift.Shift) bool) {
		t.Helper()
		for range most {
			if is(step()) {
				return
			}
		}
		s, _ := state.Find(pair)
		t.Fatalf("%s: not within %d s: %+v", what, most, s)
	}
	at := func(share shift.Share) func(shift.Shift) bool {
		return func(s shift.Shift) bool { return s.Status == shift.Running && s.Shares.MTLS == share }
	}
	start := func() {
		step(shift.Command{Verb: shift.CommandStart, Pair: pair, Plan: shift.Plan{
			From: shift.Direct, To: shift.MTLS, Steps: []shift.Share{shift.Percent(10), shift.Percent(20), shift.Percent(30), shift.Percent(40)}, Dwell: 30 * time.Second,
		}})
	}
	start()
	until("begins", 5, at(shift.Percent(10)))
	terms, failed, attempts = &shift.Terms{Off: true}, 10, 20
	until("off, the bad way goes on", 40, at(shift.Percent(20)))
	attempts, failed = 0, 0
	until("off, no attempt is waited for", 40, at(shift.Percent(30)))
	terms = &shift.Terms{}
	for range 60 {
		if s := step(); s.Shares.MTLS != shift.Percent(30) {
			t.Fatalf("on again, nothing is waited for: %+v", s)
		}
	}
	attempts, failed = 20, 10
	terms = &shift.Terms{OnBreach: shift.Pause, Limits: shift.Limits{Failures: shift.Percent(60)}}
	for range 20 {
		if s := step(); s.Status != shift.Running {
			t.Fatalf("within its limits: %+v", s)
		}
	}
	terms = &shift.Terms{OnBreach: shift.Pause}
	until("its limits are narrower now, and it is to pause", 10, func(s shift.Shift) bool { return s.Status == shift.Paused && s.Breach != nil })
	terms = &shift.Terms{OnBreach: shift.Revert}
	if s := step(); s.Status != shift.Paused {
		t.Fatalf("a breach that paused is none that reverts later: %+v", s)
	}
	step(shift.Command{Verb: shift.CommandResume, Pair: pair})
	until("it is to revert", 10, func(s shift.Shift) bool { return s.Status == shift.Reverting && s.Breach != nil })
}
