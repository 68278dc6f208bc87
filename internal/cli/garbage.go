package cli

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"syscall"
	"time"
)

// gcPercent is how much garbage a server lets come together, in percent of what it holds. That is
// mostly registry and streams, which stay: room for more garbage would be memory that buys little.
const gcPercent = 40

// startPercent is the same for startTime, in which the registry is read and a fleet comes back: each
// collection then marks once more what only grows, and takes processors from those who wait. More room than that would
// not quite come back, as what is held then lies scattered over it.
const (
	startPercent = 60
	startTime    = time.Minute
)

// Garbage is collected when the room for it is full, which is to say by a change, and the change is slower by as much as
// that takes. So it is collected before that in a quiet moment, once enough has come together.
const (
	// quietTime is how long no stream must have been told anything.
	quietTime = 200 * time.Millisecond
	// quietShare of a processor may be taken by other things meanwhile. Ten thousand sidecars that say they live take 0.22.
	quietShare = 0.5
	// enoughGarbage is the part of the room that is taken. The runtime begins a collection of its own accord at 0.7 to 0.95.
	enoughGarbage = 0.65
)

// mindGarbage collects garbage in quiet moments until ctx ends, from the start of a server, and makes the room for it smaller in
// the first of them after startTime. Sent is how many responses streams were sent.
func mindGarbage(ctx context.Context, sent func() uint64) {
	debug.SetGCPercent(startPercent)
	tick := time.NewTicker(quietTime)
	defer tick.Stop()
	begun, before := time.Now(), heapNow(sent())
	for settled := false; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := heapNow(sent())
		is, age := before.until(now), now.at.Sub(begun)
		switch {
		case !settled && (age >= 2*startTime || age >= startTime && is.quiet):
			settled = true
			debug.FreeOSMemory() // first, so that to have less room does not call the collector, too
			debug.SetGCPercent(gcPercent)
		case is.quiet && is.full:
			runtime.GC()
		}
		before = now
	}
}

// heap is what a process's garbage is judged by.
type heap struct {
	at   time.Time
	cpu  time.Duration // taken since the process began
	sent uint64        // responses
	// In bytes: what a collection found in use last, all that is taken now, and how much may be before the next one.
	held, taken, most float64
}

// spell is what happened between two of them.
type spell struct{ quiet, full bool }

func (h heap) until(now heap) spell {
	share := float64(now.cpu-h.cpu) / float64(now.at.Sub(h.at))
	return spell{
		quiet: now.sent == h.sent && share <= quietShare,
		full:  now.most > now.held && now.taken-now.held >= enoughGarbage*(now.most-now.held),
	}
}

// heapNow looks at this process.
func heapNow(sent uint64) heap {
	samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/goal:bytes"}}
	metrics.Read(samples)
	bytes := func(i int) float64 { return float64(samples[i].Value.Uint64()) }
	h := heap{at: time.Now(), sent: sent, held: bytes(0), taken: bytes(1), most: bytes(2)}
	var used syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &used) == nil {
		h.cpu = time.Duration(used.Utime.Nano() + used.Stime.Nano())
	}
	return h
}
