package sidecar

import (
	"context"
	"maps"
	"math/rand/v2"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

const (
	// reportEvery is how often connections are counted, reportAgain how long a server
	// is left with what it was told: it may be another by then, or have started anew.
	reportEvery = 5 * time.Second
	reportAgain = time.Minute
)

// toldConnections is what a server was told last. The zero value is nothing.
type toldConnections struct {
	at    time.Time
	open  map[string]int64
	drift *api.Drift // replaced, not changed
}

// due decides whether a server is to be told.
func (t toldConnections) due(now time.Time, open map[string]int64, drift *api.Drift) bool {
	return t.at.IsZero() || now.Sub(t.at) >= reportAgain || !maps.Equal(t.open, open) || t.drift != drift
}

// reportConnections tells servers how many connections would drain with each listener, and of drift,
// while there is an Envoy to ask. What they don't learn they say is unknown. A registry
// that takes no reports, as Consul's, is asked once a minute. What a server takes in reports needs
// no request of its own.
func (s *sidecar) reportConnections(ctx context.Context) {
	var told toldConnections
	var refused time.Time
	for pause := time.Second; sleep(ctx, jitter(pause, rand.Float64())); pause = reportEvery {
		now := time.Now()
		if s.envoyServes.Load() == 0 || !refused.IsZero() && now.Sub(refused) < reportAgain {
			continue
		}
		open, err := s.admin.Connections(ctx)
		var drift *api.Drift
		s.board.set(func(st *Status) { drift = st.Drift })
		if err != nil || !told.due(now, open, drift) {
			continue
		}
		if s.reporter.offer(telemetry.Connections{Listeners: open, Drift: drift}) {
			told, refused = toldConnections{now, open, drift}, time.Time{}
			continue
		}
		if err := s.agent.connections(ctx, s.proxy.ID, open, drift); err != nil {
			s.log.Debug("connections not reported", "error", err)
			told, refused = toldConnections{}, now
			continue
		}
		told, refused = toldConnections{now, open, drift}, time.Time{}
	}
}
