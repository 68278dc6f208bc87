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

// While a fleet comes what is held only grows. Each collection marks all of it once more, and takes processors from
// those who wait; and of the room for garbage at the end not all comes back, as what is held lies scattered over it then.
// So there is room for what will be held of all who are coming, which fills up with them: collections are few while
// little is held, and there is little garbage at the end.
const (
	// startPercent is gcPercent for startTime.
	startPercent = 20
	startTime    = time.Minute
	// newcomerBytes is what will be held of a sidecar that is coming, beside what is held of it already.
	newcomerBytes = 25 << 10
	// mostPercent bounds the room: strangers may be coming, too.
	mostPercent = 200
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

// fleet is whom garbage is made for.
type fleet interface {
	Sent() uint64 // responses that streams were sent
	Coming() int  // sidecars that have spoken and are not served yet
}

// mindGarbage collects garbage in quiet moments until ctx ends, from the start of a server, makes room for the sidecars that
// are coming, and ends the start in the first quiet moment after startTime: what only that needed is given back.
func mindGarbage(ctx context.Context, f fleet) {
	percent := startPercent
	debug.SetGCPercent(percent)
	tick := time.NewTicker(quietTime)
	defer tick.Stop()
	begun, before := time.Now(), heapNow(f.Sent())
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := heapNow(f.Sent())
		is, age := before.until(now), now.at.Sub(begun)
		if now.cycles != before.cycles {
			debug.SetGCPercent(now.room(percent, f.Coming()))
		}
		switch {
		case percent == startPercent && (age >= 2*startTime || age >= startTime && is.quiet):
			percent = gcPercent
			debug.FreeOSMemory()
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
	// In bytes: what the last collection found in use, what else it has to look through (stacks and variables), all that
	// is taken now, and how much may be before the next one.
	held, beside, taken, most float64
	cycles                    uint64 // collections that have ended
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

// room is for how much garbage there is to be room, in percent of what the last collection has looked through: percent of
// what will be held when all who are coming are served, and what they will add until then.
func (h heap) room(percent, coming int) int {
	is, will := h.held+h.beside, float64(coming)*newcomerBytes
	if is <= 0 {
		return percent
	}
	return int(min((100*will+float64(percent)*(is+will))/is, mostPercent))
}

// heapNow looks at this process.
func heapNow(sent uint64) heap {
	samples := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}, {Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/gc/heap/goal:bytes"}, {Name: "/gc/cycles/total:gc-cycles"},
	}
	metrics.Read(samples)
	bytes := func(i int) float64 { return float64(samples[i].Value.Uint64()) }
	h := heap{at: time.Now(), sent: sent, held: bytes(0), beside: bytes(1) + bytes(2), taken: bytes(3), most: bytes(4), cycles: samples[5].Value.Uint64()}
	var used syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &used) == nil {
		h.cpu = time.Duration(used.Utime.Nano() + used.Stime.Nano())
	}
	return h
}
