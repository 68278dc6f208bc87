package shift_test

import (
	"encoding/json"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/crossfade-mesh/crossfade/internal/shift"
)

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
