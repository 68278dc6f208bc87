// Package garbage decides how much garbage a server lets come together before it is collected.
//
// In: how often the collector has run. Out: the collector's percent, [runtime/debug.SetGCPercent].
//
// What a server holds is mostly registry and streams, which stay. While little happens, room for more
// garbage would be memory that buys nothing; while thousands of sidecars come, or all are told
// something, each collection marks all of that once more, and fewer of them leave the processors to those.
package garbage

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// idle and busy are percents of what is held.
	idle = 20
	busy = 100
	// lookEvery is how often is looked what the collector does.
	lookEvery = time.Second
	// A server is busy that collects often times within soon, and is not when it has not for calm.
	often = 2
	soon  = 3 * time.Second
	calm  = 20 * time.Second
)

// Mind sets the percent until ctx ends.
func Mind(ctx context.Context) {
	var p pace
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	debug.SetGCPercent(idle)
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if percent, changed := p.step(now, collections()); changed {
				debug.SetGCPercent(percent)
			}
		}
	}
}

// collections is how often the collector has run because there was garbage enough.
func collections() uint64 {
	sample := []metrics.Sample{{Name: "/gc/cycles/automatic:gc-cycles"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// pace is whether the server is busy. The zero value is not.
type pace struct {
	busy   bool
	looks  []look // of the last soon, the oldest first
	latest time.Time
}

type look struct {
	at  time.Time
	ran uint64
}

// step takes in how often the collector has run until now. changed says that another percent is due.
func (p *pace) step(now time.Time, ran uint64) (percent int, changed bool) {
	if n := len(p.looks); n == 0 || p.looks[n-1].ran != ran {
		p.latest = now
	}
	p.looks = append(p.looks, look{now, ran})
	for now.Sub(p.looks[0].at) > soon {
		p.looks = p.looks[1:]
	}
	switch was := p.busy; {
	case !was && ran-p.looks[0].ran >= often:
		p.busy = true
		return busy, true
	case was && now.Sub(p.latest) >= calm:
		p.busy = false
		return idle, true
	case was:
		return busy, false
	default:
		return idle, false
	}
}
