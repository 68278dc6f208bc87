package shift_test

import (
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/shift"
)

func TestWatch(t *testing.T) {
	now := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	var w shift.Watch
	step := func(after time.Duration, watched bool, last time.Time, want time.Duration) {
		t.Helper()
		now = now.Add(after)
		if w = w.Step(now, watched, last, "10.0.0.7"); w.Quiet != want {
			t.Fatalf("quiet for %v, want %v: %+v", w.Quiet, want, w)
		}
	}
	never := time.Time{}
	step(0, true, never, 0)
	step(time.Second, true, never, time.Second)
	step(time.Second, false, never, time.Second) // one instance was not watched
	step(time.Hour, true, never, time.Second)    // nobody looked
	step(-time.Minute, true, never, time.Second) // a clock that jumped
	step(2*time.Second, true, never, 3*time.Second)
	seen := now
	step(time.Second, true, seen, 0)
	if !w.Last.Equal(seen) || w.From != "10.0.0.7" {
		t.Errorf("%+v", w)
	}
	step(time.Second, true, seen, time.Second) // known already
}
