package relay

import (
	"context"
	"maps"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

func (r *Relay) saveSoon() {
	select {
	case r.dirty <- struct{}{}:
	default:
	}
}

// keep writes the last good configuration whenever it changed, until ctx ends,
// and once more then.
func (r *Relay) keep(ctx context.Context) {
	const settle = 100 * time.Millisecond // a change comes as several ACKs
	for {
		select {
		case <-ctx.Done():
			select {
			case <-r.dirty:
				r.save()
			default:
			}
			return
		case <-r.dirty:
		}
		timer := time.NewTimer(settle)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		r.save()
	}
}

func (r *Relay) save() {
	r.mu.Lock()
	good := make(map[xds.Type]map[string]*xds.Resource, len(r.good))
	for t, byName := range r.good {
		good[t] = maps.Clone(byName)
	}
	r.mu.Unlock()
	if err := store(r.opts.StateFile, good); err != nil {
		r.opts.Log.Error("last good configuration not saved, the file keeps the one before", "file", r.opts.StateFile, "reason", err)
	}
}
