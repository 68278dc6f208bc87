package relay

import (
	"context"
	"errors"
	"maps"
	"os"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

func (r *Relay) saveSoon() {
	select {
	case r.dirty <- struct{}{}:
	default:
	}
}

// beforeSuffix names the file with the configuration to go back to while the last
// good one holds changes on probation.
const beforeSuffix = ".before"

// A change is written settle after it, since it comes as several ACKs. While changes go on,
// writing takes no more than a part in keepShare of the time, but is never put off for longer
// than keepLatest: a last good configuration that is that much older does as well.
const (
	settle     = 100 * time.Millisecond
	keepShare  = 100
	keepLatest = 5 * time.Second
)

// keep writes the last good configuration whenever it changed, until ctx ends,
// and once more then. It also ends the trials that were passed.
func (r *Relay) keep(ctx context.Context) {
	var next time.Time // of what is written, at the earliest
	pass := time.NewTicker(r.opts.Probation / 4)
	defer pass.Stop()
	for {
		select {
		case <-pass.C:
			r.mu.Lock()
			passed := r.matureLocked(time.Now())
			r.mu.Unlock()
			if passed {
				r.saveSoon()
			}
			continue
		case <-ctx.Done():
			select {
			case <-r.dirty:
				r.save()
			default:
			}
			return
		case <-r.dirty:
		}
		timer := time.NewTimer(max(settle, time.Until(next)))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		began := time.Now()
		r.save()
		next = time.Now().Add(min(keepShare*time.Since(began), keepLatest))
	}
}

func (r *Relay) save() {
	r.mu.Lock()
	good := make(map[xds.Type]map[string]*xds.Resource, len(r.good))
	for t, byName := range r.good {
		good[t] = maps.Clone(byName)
	}
	var before map[xds.Type]map[string]*xds.Resource
	if len(r.trials) > 0 {
		before = r.beforeLocked()
		for t := range before {
			before[t] = maps.Clone(before[t])
		}
	}
	r.mu.Unlock()
	older := r.opts.StateFile + beforeSuffix
	if before == nil {
		if err := os.Remove(older); err != nil && !errors.Is(err, os.ErrNotExist) {
			r.opts.Log.Error("the configuration before the last good one can't be removed", "file", older, "reason", err)
		}
	} else if err := store(older, before); err != nil {
		r.opts.Log.Error("the configuration before the last good one not saved", "file", older, "reason", err)
	}
	if err := store(r.opts.StateFile, good); err != nil {
		r.opts.Log.Error("last good configuration not saved, the file keeps the one before", "file", r.opts.StateFile, "reason", err)
	}
}
