package load

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// due is one request of a fixed rate.
type due struct {
	at     time.Time // intended start
	record bool
}

// pace puts one request after the other into schedule when it is due, until stop or
// until schedule is full, and closes it. The first is due phase/rate after the start.
func pace(rate, phase float64, schedule chan<- due, recording, stop *atomic.Bool) {
	defer close(schedule)
	// A thread of its own, as the runtime's timers are up to a millisecond late. It is
	// not unlocked: it ends with this goroutine, and its timer slack with it.
	runtime.LockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // without it: 50 us late, on every path
	begun := time.Now()
	for n := 0; !stop.Load() && len(schedule) < cap(schedule); n++ {
		at := begun.Add(time.Duration((float64(n) + phase) / rate * float64(time.Second)))
		for wait := time.Until(at); wait > 0; wait = time.Until(at) {
			ts := unix.NsecToTimespec(int64(wait))
			_ = unix.Nanosleep(&ts, nil) // when a signal ends it early it is called again
		}
		schedule <- due{at: at, record: recording.Load()}
	}
}
