package garbage

import (
	"context"
	"runtime/debug"
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	var p pace
	now, ran := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), uint64(100)
	for _, stretch := range []struct {
		what    string
		seconds int
		every   int // seconds between two collections, 0 for none
		busy    bool
	}{
		{"nothing", 60, 0, false},
		{"one now and then", 60, 5, false},
		{"many", 30, 1, true},
		{"fewer, since there is room", 60, 10, true},
		{"nothing, for a moment", 8, 0, true},
		{"still nothing", 5, 0, false},
		{"many again", 10, 1, true},
	} {
		var got int
		for s := range stretch.seconds {
			if stretch.every > 0 && s%stretch.every == 0 {
				ran++
			}
			now = now.Add(time.Second)
			got, _ = p.step(now, ran)
		}
		if (got == busy) != stretch.busy || p.busy != stretch.busy {
			t.Errorf("%s: percent %d, busy %v; want %v", stretch.what, got, p.busy, stretch.busy)
		}
	}
}

var kept []byte

// The percent follows what the process really does.
func TestMind(t *testing.T) {
	before := debug.SetGCPercent(50)
	defer debug.SetGCPercent(before)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); Mind(ctx) }()
	defer func() { cancel(); <-done }()
	percent := func() int {
		p := debug.SetGCPercent(-1)
		debug.SetGCPercent(p)
		return p
	}
	deadline := time.Now().Add(30 * time.Second)
	for percent() != busy {
		if time.Now().After(deadline) {
			t.Fatalf("percent %d with garbage all the time, want %d", percent(), busy)
		}
		for range 1000 {
			kept = make([]byte, 1<<16)
		}
	}
}
