package cli

import (
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// How much garbage a server lets come together, in percent of what it holds, which is mostly registry and streams, and
// stays. Each collection marks all of that once more: while a fleet comes back, or an entry that touches everyone is
// carried out, room for garbage saves processors from those who wait; at other times it is memory for nothing.
const (
	// mostGarbage is the room at the start, too, when what is held only grows. More would be memory that does not come
	// back: what is held then lies scattered over it.
	mostGarbage  = 100
	leastGarbage = 40
)

// lookAtGarbage is how often the room is chosen anew. There is more after two collections within that time, and less
// after as many looks in a row as calmLooks with one at most: with least room that would be one in ten seconds or
// more, so that it is not taken back and forth.
const (
	lookAtGarbage = 5 * time.Second
	calmLooks     = 6
)

// garbage chooses the room by how often the collector runs.
type garbage struct {
	percent int
	recent  [calmLooks]uint64 // collections between looks, the last first
}

// look takes in how many collections there were since the last look, and returns the percent from now on.
func (g *garbage) look(collections uint64) int {
	copy(g.recent[1:], g.recent[:])
	g.recent[0] = collections
	sum := uint64(0)
	for _, n := range g.recent {
		sum += n
	}
	switch {
	case collections >= 2:
		g.percent = mostGarbage
	case sum <= 1:
		g.percent = leastGarbage
	}
	return g.percent
}

// mindGarbage chooses the percent until it is told to stop.
func mindGarbage() (stop func()) {
	debug.SetGCPercent(mostGarbage)
	done := make(chan struct{})
	go func() {
		tick := time.NewTicker(lookAtGarbage)
		defer tick.Stop()
		g := garbage{percent: mostGarbage}
		for i := range g.recent {
			g.recent[i] = 2 // a start is no calm
		}
		for before := collections(); ; {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			was, now := g.percent, collections()
			if next := g.look(now - before); next < was {
				debug.FreeOSMemory() // first, so that to have less room does not call the collector, too
				debug.SetGCPercent(next)
			} else if next > was {
				debug.SetGCPercent(next)
			}
			before = now
		}
	}()
	return func() { close(done) }
}

// collections is how often the collector has run.
func collections() uint64 {
	s := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
