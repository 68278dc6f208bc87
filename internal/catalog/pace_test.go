package catalog

import (
	"testing"
	"time"
)

// With a rate instances leave a few in a second, explained or not, at least one; who comes back
// meanwhile stays.
func TestGuardRate(t *testing.T) {
	w := newWorld("a", "b", "c", "d", "e", "f", "g", "h")
	g, _ := Guard{Policy: GuardPolicy{Rate: 0.25}}.Step(noon, w.now(), w)
	for id := range w.present {
		w.explained[id] = "goodbye"
		w.gone(id)
	}
	for _, s := range []struct {
		after time.Duration
		want  string
		waits bool
	}{
		{0, "c d e f g h", true},
		{900 * time.Millisecond, "c d e f g h", true},
		{1 * time.Second, "d e f g h", true}, // a quarter of six, rounded down
		{1500 * time.Millisecond, "d e f g h", true},
		{2 * time.Second, "e f g h", true},
		{3 * time.Second, "f g h", true},
		{4 * time.Second, "g h", true},
		{5 * time.Second, "h", true},
		{6 * time.Second, "", true},
		{7 * time.Second, "", false},
	} {
		var snap *Snapshot
		if g, snap = g.Step(noon.Add(s.after), w.now(), w); ids(snap) != s.want || g.Waits() != s.waits {
			t.Fatalf("after %v: %q, waits %v; want %q, %v", s.after, ids(snap), g.Waits(), s.want, s.waits)
		}
		if held := g.Held(); held != nil {
			t.Fatalf("after %v: held %v", s.after, held)
		}
	}

	// Those that leave one after the other share one rate.
	w.present["a"], w.present["b"], w.present["c"] = true, true, true
	g, _ = g.Step(noon.Add(time.Minute), w.now(), w)
	for i, id := range []string{"a", "b", "c"} {
		w.gone(id)
		var snap *Snapshot
		if g, snap = g.Step(noon.Add(time.Minute+time.Duration(i)*time.Millisecond), w.now(), w); ids(snap) != "b c" {
			t.Errorf("after %d ms: %q, want the first alone to be gone", i, ids(snap))
		}
	}
	g, _ = g.Step(noon.Add(2*time.Minute), w.now(), w)
	g, _ = g.Step(noon.Add(3*time.Minute), w.now(), w)

	// Half of the set at once needs nothing to explain it, and leaves by the same rate.
	w.present["a"], w.present["b"], w.present["c"], w.present["d"] = true, true, true, true
	clear(w.explained)
	g, _ = g.Step(noon.Add(time.Hour), w.now(), w)
	w.gone("a", "b")
	g, snap := g.Step(noon.Add(time.Hour+time.Second), w.now(), w)
	if ids(snap) != "b c d" {
		t.Errorf("told %q, want one to be gone", ids(snap))
	}
	w.present["b"] = true
	if _, snap = g.Step(noon.Add(time.Hour+2*time.Second), w.now(), w); ids(snap) != "b c d" {
		t.Errorf("told %q, want the one that is back", ids(snap))
	}
}
