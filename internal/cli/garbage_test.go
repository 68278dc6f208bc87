package cli

import (
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
	go mindGarbage(t.Context(), func() uint64 { return 0 })
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
