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

// mindGarbage collects garbage in quiet moments, and makes the room for it smaller in the first of them after startTime,
// until ctx ends. Sent is how many responses streams were sent.
func mindGarbage(ctx context.Context, sent func() uint64) {
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
		before = heapNow(sent())
	}
}

// heap is what a process's garbage is judged by.
type heap struct {
	at   time.Time
	cpu  time.Duration // taken since the process began
	sent uint64        // responses
	// In bytes: what a collection found in use last, all that is taken now, and how much may be before the next one.
	held, taken, most uint64
}

// spell is what happened between two of them.
type spell struct{ quiet, full bool }

func (h heap) until(now heap) spell {
	share := float64(now.cpu-h.cpu) / float64(now.at.Sub(h.at))
	return spell{
		quiet: now.sent == h.sent && share <= quietShare,
		full:  now.most > now.held && now.taken > now.held && float64(now.taken-now.held) >= enoughGarbage*float64(now.most-now.held),
	}
}

// heapNow looks at this process.
func heapNow(sent uint64) heap {
	samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/goal:bytes"}}
	metrics.Read(samples)
	h := heap{at: time.Now(), sent: sent, held: samples[0].Value.Uint64(), taken: samples[1].Value.Uint64(), most: samples[2].Value.Uint64()}
	var used syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &used) == nil {
		h.cpu = time.Duration(used.Utime.Nano() + used.Stime.Nano())
	}
	return h
}
