package shift_test

import (
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/shift"
)

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
