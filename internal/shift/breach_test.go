package shift_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/shift"
)

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
