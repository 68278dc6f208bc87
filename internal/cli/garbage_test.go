package cli

import (
	"runtime"
	"testing"
)

// Whatever the steady load, of which a room seven times as large makes collections as much rarer, it comes to
// rest, with most room where collections would be frequent and with least where they would not.
func TestGarbageComesToRest(t *testing.T) {
	for _, tc := range []struct {
		perLook float64 // collections between two looks with least room
		want    int
	}{{0, leastGarbage}, {0.2, leastGarbage}, {0.9, leastGarbage}, {3, mostGarbage}, {30, mostGarbage}} {
		g := garbage{percent: mostGarbage}
		collected, changes := 0.0, 0
		for look := range 200 {
			before := int(collected)
			was := g.percent
			collected += tc.perLook * leastGarbage / float64(g.percent)
			n := uint64(int(collected) - before)
			if was > leastGarbage && look > 0 && g.recent == [calmLooks]uint64{} {
				t.Fatalf("%v: calm, and still most room", tc.perLook)
			}
			if g.look(n) < was {
				g.recent[0]++ // of its own
			}
			if g.percent != was {
				changes++
			}
		}
		if g.percent != tc.want || changes > 2 {
			t.Errorf("%v collections a look: rests at %d%% after %d changes, want %d%%", tc.perLook, g.percent, changes, tc.want)
		}
	}
}

func TestGarbageOfABurst(t *testing.T) {
	g := garbage{percent: leastGarbage}
	if got := g.look(1); got != leastGarbage {
		t.Errorf("after one collection %d%%", got)
	}
	if got := g.look(2); got != mostGarbage {
		t.Errorf("after two at once %d%%", got)
	}
	for i := range calmLooks - 1 {
		if got := g.look(0); got != mostGarbage {
			t.Fatalf("%d looks later %d%%", i+1, got)
		}
	}
	if got := g.look(0); got != leastGarbage {
		t.Errorf("after a calm %d%%", got)
	}
}

func TestCollectionsAreCounted(t *testing.T) {
	before := collections()
	runtime.GC()
	if now := collections(); now <= before {
		t.Errorf("%d, and then %d", before, now)
	}
}
