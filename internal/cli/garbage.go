package cli

import (
	"runtime/debug"
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

// mindGarbage sets both.
func mindGarbage() {
	debug.SetGCPercent(startPercent)
	time.AfterFunc(startTime, func() {
		debug.FreeOSMemory() // first, so that to have less room does not call the collector, too
		debug.SetGCPercent(gcPercent)
	})
}
