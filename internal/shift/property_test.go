package shift_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// fleet is a store whose writes may be late or lost, callers that lag, clocks
// that jump, and people who say anything at any time.
type fleet struct {
	t       *rapid.T
	state   shift.State
	now     time.Time
	pairs   []shift.Pair
	held    map[shift.Pair]shift.Setting
	applied map[shift.Pair]uint64
	stage   map[shift.Pair]shift.Stage
	highest map[shift.Pair]uint64 // generation that was asked for
	over    map[shift.Pair]bool   // reverted or aborted, and not started since
	log     []shift.LogEntry
	acts    [][]shift.Action
}

func newFleet(t *rapid.T) *fleet {
	f := &fleet{t: t, now: noon, held: map[shift.Pair]shift.Setting{}, applied: map[shift.Pair]uint64{},
		stage: map[shift.Pair]shift.Stage{}, highest: map[shift.Pair]uint64{}, over: map[shift.Pair]bool{}}
	for _, source := range []string{"a", "b"} {
		for _, destination := range []string{"x", "y"} {
			p := shift.Pair{Source: source, Destination: destination}
			f.pairs = append(f.pairs, p)
			f.held[p], f.stage[p] = shift.Setting{Shares: shift.AllOn(shift.Direct)}, shift.PlainStage
		}
	}
	return f
}

var reach = rapid.IntRange(0, 12)

// observed is a second of whatever traffic.
func (f *fleet) observed(commands []shift.Command) shift.Observed {
	o := shift.Observed{Commands: commands}
	bad := rapid.IntRange(0, 9).Draw(f.t, "bad") == 0
	for _, p := range f.pairs {
		if rapid.IntRange(0, 19).Draw(f.t, "unseen") == 0 {
			continue
		}
		po := shift.PairObserved{Pair: p, Stage: f.stage[p], Shares: f.held[p].Shares, Generation: f.held[p].Generation, Applied: f.applied[p], Rate: 400}
		for _, w := range shift.Ways() {
			n := uint64(400*f.held[p].Shares.Of(w)) / uint64(shift.Whole) * 10
			tel := shift.Telemetry{Attempts: n, Latency: shift.FromBins(shift.BinCount{Bin: 100, Count: float64(n)})}
			if bad && w == shift.Plain {
				tel.Failed = n / 2
			}
			po.Ways = append(po.Ways, shift.WayTelemetry{Way: w, Telemetry: tel})
		}
		o.Pairs = append(o.Pairs, po)
	}
	for _, service := range []string{"x", "y"} {
		o.Callees = append(o.Callees, shift.Callee{Service: service, Ways: []shift.Reach{
			{Way: shift.Direct, Ready: 12, Total: 12, Rate: 800},
			{Way: shift.Plain, Ready: max(reach.Draw(f.t, "ready"), reach.Draw(f.t, "ready")), Total: 12}}})
	}
	return o
}

// anything is some command, now and then.
func (f *fleet) anything() []shift.Command {
	if rapid.IntRange(0, 7).Draw(f.t, "quiet") > 0 {
		return nil
	}
	verbs := []shift.Verb{shift.CommandStart, shift.CommandStart, shift.CommandStart, shift.CommandPause, shift.CommandResume, shift.CommandRevert, shift.CommandAbort}
	c := shift.Command{Verb: rapid.SampledFrom(verbs).Draw(f.t, "verb"), Pair: rapid.SampledFrom(f.pairs).Draw(f.t, "pair"), By: "ann",
		Plan: shift.Plan{From: shift.Direct, To: shift.Plain, Dwell: 30 * time.Second, OnBreach: rapid.SampledFrom([]shift.Policy{"", shift.Pause}).Draw(f.t, "policy")}}
	if c.Verb != shift.CommandStart && rapid.IntRange(0, 5).Draw(f.t, "many") == 0 {
		c.Pair.Source = "*"
	}
	return []shift.Command{c}
}

// world changes stages, writes and clocks.
func (f *fleet) world() {
	p := rapid.SampledFrom(f.pairs).Draw(f.t, "of")
	switch rapid.IntRange(0, 40).Draw(f.t, "event") {
	case 0:
		f.stage[p] = rapid.SampledFrom([]shift.Stage{"", shift.Client, shift.PlainStage, shift.Permissive, shift.StrictStage}).Draw(f.t, "stage")
	case 1:
		f.now = f.now.Add(time.Duration(rapid.IntRange(-9999, 9999).Draw(f.t, "jump")) * time.Second)
	case 2: // somebody else writes, what the stage allows
		f.held[p] = shift.Setting{Shares: shift.Shares{Direct: 8000, Legacy: 2000}, Generation: f.held[p].Generation + 1}
	case 3:
		f.stage[p] = shift.PlainStage
	}
}

// step is one call, after a restart; the store loses some writes, the callers lag.
func (f *fleet) step(by time.Duration, commands []shift.Command, honest bool) {
	f.now = f.now.Add(by)
	o := f.observed(commands)
	before := f.state
	raw, _ := json.Marshal(before)
	var actions []shift.Action
	f.state, actions = shift.Step(f.now, through(f.t, before), o)
	again, _ := json.Marshal(before)
	if string(raw) != string(again) {
		f.t.Fatalf("Step changed the state that it was given")
	}
	f.log, f.acts = append(f.log, shift.LogEntry{Now: f.now, Observed: o}), append(f.acts, actions)
	f.check(before, o, actions)
	for _, a := range actions {
		if a.Kind == shift.SetShares && (honest || rapid.IntRange(0, 3).Draw(f.t, "lost") > 0) {
			f.held[a.Pair] = shift.Newer(f.held[a.Pair], shift.Setting{Shares: a.Shares, Generation: a.Generation, Back: a.Back})
		}
	}
	for _, p := range f.pairs {
		if honest || rapid.IntRange(0, 1).Draw(f.t, "lag") == 0 {
			f.applied[p] = f.held[p].Generation
		}
	}
}

// check holds what must be true of every action.
func (f *fleet) check(before shift.State, o shift.Observed, actions []shift.Action) {
	if !slices.IsSortedFunc(actions, func(a, b shift.Action) int { return a.Pair.Compare(b.Pair) }) {
		f.t.Fatalf("actions are not sorted: %+v", actions)
	}
	rose := map[string]shift.Pair{}
	for _, c := range o.Commands {
		for _, p := range f.pairs {
			if (c.Pair.Source == "*" || c.Pair.Source == p.Source) && c.Pair.Destination == p.Destination {
				if _, there := before.Find(p); there && (c.Verb == shift.CommandRevert || c.Verb == shift.CommandAbort) {
					f.over[p] = true
				}
				if now, _ := f.state.Find(p); c.Verb == shift.CommandStart && now.Started.Equal(f.now) {
					f.over[p] = false
				}
			}
		}
	}
	for _, a := range actions {
		if a.Kind != shift.SetShares {
			continue
		}
		if err := a.Shares.Validate(a.Pair, f.known(a.Pair)); err != nil {
			f.t.Fatalf("an action opens a closed way, or does not add up: %v", err)
		}
		if a.Generation < f.highest[a.Pair] {
			f.t.Fatalf("%s: generation %d after %d", a.Pair, a.Generation, f.highest[a.Pair])
		}
		f.highest[a.Pair] = a.Generation
		if f.over[a.Pair] && a.Shares != shift.AllOn(shift.Direct) {
			f.t.Fatalf("%s was reverted, and gets %s", a.Pair, a.Shares)
		}
		was, _ := before.Find(a.Pair)
		if a.Generation > was.Generation && a.Shares.Of(shift.Plain) > was.Shares.Of(shift.Plain) {
			if other, twice := rose[a.Pair.Destination]; twice && other != a.Pair {
				f.t.Fatalf("%s and %s step at once", other, a.Pair)
			}
			rose[a.Pair.Destination] = a.Pair
		}
	}
	for _, s := range f.state.Shifts {
		moving := s.Status == shift.Running || s.Status == shift.Reverting || s.Status == shift.Paused && !s.Fresh
		if other, rises := rose[s.Pair.Destination]; rises && other != s.Pair && moving {
			f.t.Fatalf("%s steps while %s is %s", other, s.Pair, s.Status)
		}
	}
}

// known is the stage as Step knew it: the one observed, else the last.
func (f *fleet) known(p shift.Pair) shift.Stage {
	s, _ := f.state.Find(p)
	return s.Stage
}

// TestAnythingGoesBack holds: whatever happened, an abort or revert of everything
// ends with everything on the old way, and a replay of the log decides the same.
func TestAnythingGoesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newFleet(t)
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			f.world()
			f.step(time.Duration(rapid.IntRange(1, 10).Draw(t, "by"))*time.Second, f.anything(), false)
		}
		for _, p := range f.pairs {
			f.stage[p] = shift.PlainStage
		}
		verb := rapid.SampledFrom([]shift.Verb{shift.CommandRevert, shift.CommandAbort}).Draw(t, "end")
		every := shift.Command{Verb: verb, Pair: shift.Pair{Source: "*", Destination: "*"}, By: "ann"}
		f.over = map[shift.Pair]bool{}
		for _, s := range f.state.Shifts {
			f.over[s.Pair] = true
		}
		moved := map[shift.Pair]shift.Shares{} // what never moved has nothing to take back
		for _, s := range f.state.Shifts {
			if s.Status != shift.Reverted && s.Status != shift.Aborted && !s.Fresh {
				moved[s.Pair] = shift.AllOn(shift.Direct)
			}
		}
		f.step(time.Second, []shift.Command{every}, true)
		for range 30 {
			f.step(time.Second, nil, true)
		}
		for p, want := range moved {
			s, _ := f.state.Find(p)
			if f.held[p].Shares != want || s.Status != shift.Reverted && s.Status != shift.Aborted {
				t.Fatalf("%s is %s with %s: %s", p, s.Status, f.held[p].Shares, s.Reason)
			}
		}
		f.replays()
	})
}

// replays holds that the log gives the same decisions, byte for byte.
func (f *fleet) replays() {
	state, acts := shift.Replay(shift.State{}, f.log)
	for i, pair := range [][2]any{{state, f.state}, {acts, f.acts}} {
		a, _ := json.Marshal(pair[0])
		b, _ := json.Marshal(pair[1])
		if string(a) != string(b) {
			f.t.Fatalf("a replay differs (%d):\n%s\n%s", i, a, b)
		}
	}
}

// TestAnyTelemetryIsTaken holds that a state stays one that JSON can hold, whatever
// a sidecar reports.
func TestAnyTelemetryIsTaken(t *testing.T) {
	counts := rapid.OneOf(rapid.Uint64Range(0, 50), rapid.Uint64())
	bin := rapid.Custom(func(t *rapid.T) shift.BinCount {
		return shift.BinCount{Bin: shift.Bin(rapid.Int32().Draw(t, "bin")), Count: rapid.Float64().Draw(t, "count")}
	})
	rapid.Check(t, func(t *rapid.T) {
		state := shift.State{Seen: noon, Shifts: []shift.Shift{{Pair: pair, Plan: quick, Status: shift.Running, Shares: shift.Shares{Direct: 5000, Plain: 5000}, Generation: 1}}}
		for i := range 10 {
			o := shift.PairObserved{Pair: pair, Stage: shift.PlainStage, Shares: state.Shifts[0].Shares, Generation: state.Shifts[0].Generation}
			for _, w := range []shift.Way{shift.Direct, shift.Plain} {
				o.Ways = append(o.Ways, shift.WayTelemetry{Way: w, Telemetry: shift.Telemetry{
					Attempts: counts.Draw(t, "attempts"), Failed: counts.Draw(t, "failed"), ConnectFailed: counts.Draw(t, "connect"),
					Withheld: counts.Draw(t, "withheld"), Latency: shift.Histogram{Bins: rapid.SliceOfN(bin, 0, 4).Draw(t, "latency")}}})
			}
			state, _ = shift.Step(noon.Add(time.Duration(i)*time.Second), state, shift.Observed{Pairs: []shift.PairObserved{o}})
			through(t, state)
		}
	})
}

// TestLedgerOrder holds that the order of the books' lists does not matter.
func TestLedgerOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		books := someBooks(rapid.IntRange(1, 20).Draw(t, "pairs"))
		want := fmt.Sprintf("%+v", shift.Ledger(books))
		slices.Reverse(books.Declared)
		slices.Reverse(books.Telemetry)
		slices.Reverse(books.Stages)
		slices.Reverse(books.Wanted)
		slices.Reverse(books.Proofs)
		if got := fmt.Sprintf("%+v", shift.Ledger(books)); got != want {
			t.Fatalf("order matters:\n%s\n%s", got, want)
		}
		rows := shift.Ledger(books)
		if !slices.IsSortedFunc(rows, func(a, b shift.Row) int { return a.Pair.Compare(b.Pair) }) {
			t.Fatal("rows are not sorted")
		}
		for _, r := range rows {
			if r.Measured != (shift.Shares{}) && r.Measured.Sum() != shift.Whole {
				t.Fatalf("measured shares of %s add to %v", r.Pair, r.Measured.Sum())
			}
		}
	})
}

// someBooks are n pairs in all kinds of states.
func someBooks(n int) shift.Books {
	b := shift.Books{Now: noon}
	for i := range n {
		p := shift.Pair{Source: fmt.Sprintf("s%03d", i/100), Destination: fmt.Sprintf("d%03d", i%100)}
		stage := shift.Stages()[i%5]
		b.Stages = append(b.Stages, shift.PairStage{Pair: p, Stage: stage, Since: noon.Add(-time.Hour), Ready: i % 13, Total: 12})
		if i%7 > 0 {
			b.Declared = append(b.Declared, p)
		}
		if i%5 > 0 {
			b.Seen = append(b.Seen, shift.Seen{Pair: p, First: noon.Add(-time.Hour), Last: noon})
		}
		b.Wanted = append(b.Wanted, shift.Wanted{Pair: p, Shares: shift.Shares{Direct: 7500, Plain: 2500}, Generation: uint64(i), OldWay: shift.Direct, Since: noon.Add(-time.Minute)})
		for j, w := range shift.Ways() {
			attempts := uint64(i * j * 37)
			b.Telemetry = append(b.Telemetry, shift.PairTelemetry{Pair: p, Way: w, LastPlaintext: noon.Add(-time.Second),
				Telemetry: shift.Telemetry{Attempts: attempts, Failed: attempts / 100, Latency: shift.Of(1, 2, 3, 40)}})
			b.Proofs = append(b.Proofs, shift.Proof{Pair: p, Way: w, Works: i%3 > 0, Since: noon.Add(-time.Hour)})
		}
	}
	return b
}

func TestLedger(t *testing.T) {
	p := func(source string) shift.Pair { return shift.Pair{Source: source, Destination: "catalog"} }
	shares := shift.Shares{Direct: 7500, Plain: 2500}
	rows := shift.Ledger(shift.Books{
		Now:      noon,
		Declared: []shift.Pair{p("shop"), p("search")},
		Seen:     []shift.Seen{{Pair: p("shop"), Last: noon}, {Pair: p("cron"), Last: noon.Add(-30 * 24 * time.Hour)}},
		Wanted: []shift.Wanted{
			{Pair: p("shop"), Shares: shares, OldWay: shift.Direct, Since: noon.Add(-time.Hour)},
			{Pair: p("search"), Shares: shift.AllOn(shift.MTLS), OldWay: shift.Plain, Since: noon.Add(-2 * time.Hour)},
			{Pair: p("vault"), Shares: shift.AllOn(shift.MTLS), OldWay: shift.Plain},
		},
		Stages: []shift.PairStage{
			{Pair: p("shop"), Stage: shift.PlainStage, Since: noon.Add(-24 * time.Hour), Ready: 3, Total: 12},
			{Pair: p("search"), Stage: shift.Permissive, Ready: 12, Total: 12},
			{Pair: p("vault"), Stage: shift.StrictStage},
			{Pair: p("cron"), Stage: shift.Outside},
		},
		Telemetry: []shift.PairTelemetry{
			{Pair: p("shop"), Way: shift.Direct, Telemetry: shift.Telemetry{Attempts: 13_000, Failed: 13}},
			{Pair: p("shop"), Way: shift.Plain, Telemetry: shift.Telemetry{Attempts: 7_000, Failed: 70, Latency: shift.Of(10)}},
			{Pair: p("search"), Way: shift.MTLS, LastPlaintext: noon.Add(-time.Hour)},
		},
		Proofs: []shift.Proof{{Pair: p("shop"), Way: shift.Direct, Works: true, Since: noon.Add(-time.Hour)}},
		Shifts: []shift.Shift{{Pair: p("shop"), Status: shift.Running, Wait: shift.WaitCapacity, Reason: "3 of 12"}},
	})
	var got []string
	for _, r := range rows {
		got = append(got, fmt.Sprintf("%s %s wanted %s measured %s revertible %v: %s", r.Pair.Source, r.Stage, r.Wanted, r.Measured, r.Revertible.Yes, r.Revertible.Why))
		got = append(got, r.Blockers...)
	}
	want := `cron outside wanted nothing measured nothing revertible false: nothing was shifted
cron is not on its sidecar
not declared: cron does not name catalog as an upstream
search permissive wanted mtls 100% measured nothing revertible false: way plain was not probed
no traffic was ever seen
plaintext was seen at 2026-03-02T11:00:00Z, after all was to go by mtls
shop plain wanted direct 75%, plain 25% measured direct 65%, plain 35% revertible true: way direct was probed and works
3 of 12 instances of catalog have a sidecar
shift capacity: 3 of 12
way direct carries 65%, wanted 75%
way plain carries 35%, wanted 25%
vault strict wanted mtls 100% measured nothing revertible false: way plain: stage strict closes it, the callee takes nothing but mtls
no traffic was ever seen
not declared: vault does not name catalog as an upstream`
	if s := strings.Join(got, "\n"); s != want {
		t.Errorf("got:\n%s\nwant:\n%s", s, want)
	}
	if w := rows[2].Ways; len(w) != 2 || w[0].Success != 0.999 || w[1].Success != 0.99 || w[1].P99 < 10 || rows[2].StageAge != 24*time.Hour {
		t.Errorf("shop: %+v", rows[2])
	}
}

func BenchmarkLedger(b *testing.B) {
	books := someBooks(20_000)
	for b.Loop() {
		if rows := shift.Ledger(books); len(rows) != 20_000 {
			b.Fatal(len(rows))
		}
	}
}

// BenchmarkStep is one second of 1,000 shifts of as many callees.
func BenchmarkStep(b *testing.B) {
	state, o := shift.State{Seen: noon}, shift.Observed{}
	for i := range 1000 {
		p := shift.Pair{Source: "s", Destination: fmt.Sprintf("d%04d", i)}
		shares := shift.Shares{Direct: 5000, Plain: 5000}
		state.Shifts = append(state.Shifts, shift.Shift{Pair: p, Plan: fast, Status: shift.Running, Shares: shares, Generation: 1})
		t := shift.Telemetry{Attempts: 50, Latency: shift.Of(1, 2, 3, 5, 8, 13, 21, 34, 55, 89)}
		o.Pairs = append(o.Pairs, shift.PairObserved{Pair: p, Stage: shift.PlainStage, Shares: shares, Generation: 1, Applied: 1,
			Ways: []shift.WayTelemetry{{Way: shift.Direct, Telemetry: t}, {Way: shift.Plain, Telemetry: t}}})
	}
	for b.Loop() {
		shift.Step(noon.Add(time.Second), state, o)
	}
}
