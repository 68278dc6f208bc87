package cli

import (
	"math"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestSpell(t *testing.T) {
	before := heap{at: time.Unix(0, 0), cpu: time.Second, sent: 7}
	for name, tc := range map[string]struct {
		cpu               time.Duration // of quietTime
		sent              uint64
		held, taken, most float64
		want              spell
	}{
		"nothing happened":          {0, 0, 100, 105, 140, spell{quiet: true}},
		"sidecars say they live":    {44 * time.Millisecond, 0, 100, 110, 140, spell{quiet: true}},
		"leaves are signed":         {150 * time.Millisecond, 0, 100, 110, 140, spell{}},
		"a change was sent":         {7 * time.Millisecond, 1, 100, 110, 140, spell{}},
		"and made garbage":          {150 * time.Millisecond, 1, 100, 130, 140, spell{full: true}},
		"quiet after that":          {time.Millisecond, 0, 100, 130, 140, spell{quiet: true, full: true}},
		"nothing was collected yet": {0, 0, 0, 1, 4 << 20, spell{quiet: true}},
		"a heap that shrinks":       {0, 0, 100, 90, 140, spell{quiet: true}},
		"no room at all":            {0, 0, 100, 120, 90, spell{quiet: true}},
	} {
		now := heap{at: before.at.Add(quietTime), cpu: before.cpu + tc.cpu, sent: before.sent + tc.sent, held: tc.held, taken: tc.taken, most: tc.most}
		if got := before.until(now); got != tc.want {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}

// Who is coming has room for what will be held of it, and for garbage as everybody has: before and after, and while they come,
// as much may be taken in the end.
func TestRoomForWhoIsComing(t *testing.T) {
	h := heap{held: 180 << 20, beside: 20 << 20}
	if got := h.room(startPercent, 0); got != startPercent {
		t.Errorf("nobody is coming: %d %%, want %d", got, startPercent)
	}
	if got := (heap{}).room(startPercent, 1000); got != startPercent {
		t.Errorf("nothing was collected yet: %d %%, want %d", got, startPercent)
	}
	if got := h.room(startPercent, 1e6); got != mostPercent {
		t.Errorf("a million are coming: %d %%, want %d", got, mostPercent)
	}
	const n = 8192
	most := func(served int) float64 {
		now := heap{held: h.held + float64(served)*newcomerBytes, beside: h.beside}
		return now.held + (now.held+now.beside)*float64(now.room(startPercent, n-served))/100
	}
	if first, half, all := most(0), most(n/2), most(n); math.Abs(first-all) > all/50 || math.Abs(half-all) > all/50 {
		t.Errorf("with none, half and all of them served %.0f, %.0f and %.0f bytes may be taken, want the same", first, half, all)
	}
}

type nobody struct{}

func (nobody) Sent() uint64 { return 0 }
func (nobody) Coming() int  { return 0 }

var kept, thrown [][]byte

// What has come together is collected in a quiet moment, although there is room for more.
func TestGarbageIsCollectedInQuietMoments(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(startPercent))
	defer func() { kept, thrown = nil, nil }()
	for range 100 {
		kept = append(kept, make([]byte, 1<<20))
	}
	runtime.GC()
	var before, now runtime.MemStats
	for empty := heapNow(0); !empty.until(heapNow(0)).full; {
		thrown = append(thrown, make([]byte, 64<<10))
	}
	thrown = nil
	runtime.ReadMemStats(&before)
	go mindGarbage(t.Context(), nobody{})
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(20 * time.Second); now.NumForcedGC <= before.NumForcedGC; runtime.ReadMemStats(&now) {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("nothing was collected: %+v", heapNow(0))
		}
	}
}
