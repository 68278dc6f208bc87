package sidecar

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"

	"google.golang.org/grpc"

	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

const (
	// countEvery is how often Envoy's counts are read and, if there are any, reported.
	countEvery = time.Second
	// sayEvery is how often a sidecar reports that has nothing to say: a server takes one
	// that is silent for longer as one that does not watch.
	sayEvery = 5 * time.Second
	// reportWithin bounds one report.
	reportWithin = 3 * time.Second
	// keepCounts is for how long counts are kept that no server takes. What is older
	// tells nobody anything.
	keepCounts = 2 * time.Minute
)

// reporter tells the servers what this instance's Envoy counted.
type reporter struct {
	admin         *admin
	conn          grpc.ClientConnInterface
	node, sidecar string
	log           *slog.Logger
	// serves reports whether there is an Envoy to ask.
	serves func() bool
	// more adds what others know. May be nil.
	more func(*telemetry.Report)
	// local are the destinations that are held on old ways. May be nil.
	local func() []string

	session, seq uint64
	began        time.Time
	meter        telemetry.Meter
	pending      telemetry.Report  // not sent yet
	since        time.Time         // of pending
	unsure       *telemetry.Report // sent, and not acknowledged
	client       *telemetry.Client
	end          context.CancelFunc
	said         time.Time
	failing      bool
}

// run goes on until ctx ends.
func (r *reporter) run(ctx context.Context) {
	r.session, r.began = rand.Uint64(), time.Now()
	r.since = r.began
	for sleep(ctx, jitter(countEvery, rand.Float64())) {
		r.count(ctx, time.Now())
		if err := r.tell(ctx, time.Now()); err != nil && ctx.Err() == nil {
			if !r.failing {
				r.log.Warn("no server takes what Envoy counts, the shift guard does not see it", "reason", err)
			}
			r.failing = true
			r.hangUp()
		} else if r.failing {
			r.failing = false
			r.log.Info("a server takes what Envoy counts again")
		}
	}
	r.hangUp()
}

// count reads what Envoy counted since the last time.
func (r *reporter) count(ctx context.Context, now time.Time) {
	if !r.serves() {
		return
	}
	code, body, err := r.admin.call(ctx, http.MethodGet, telemetry.StatsPath)
	if err != nil || code != http.StatusOK {
		return
	}
	stats, err := telemetry.ParseStats(body)
	if err != nil {
		r.log.Debug("Envoy's counts can't be read", "reason", err)
		return
	}
	if now.Sub(r.since) > keepCounts {
		r.pending, r.since = telemetry.Report{}, now
	}
	later := telemetry.Report{Over: now.Sub(r.since) - r.pending.Over}
	later.Outbound, later.Plaintext = r.meter.Read(now, stats)
	if r.more != nil {
		r.more(&later)
	}
	r.pending = r.pending.Merge(later)
}

// tell sends what is pending. What was not acknowledged goes first, as it was: the server
// may have counted it.
func (r *reporter) tell(ctx context.Context, now time.Time) error {
	if r.unsure == nil && r.pending.Empty() && now.Sub(r.said) < sayEvery {
		return nil
	}
	if r.client == nil {
		ctx, end := context.WithCancel(ctx)
		c, err := telemetry.Connect(ctx, r.conn, r.node, r.sidecar)
		if err != nil {
			end()
			return err
		}
		r.client, r.end = c, end
	}
	if r.unsure != nil {
		if err := r.send(*r.unsure); err != nil {
			return err
		}
		r.unsure = nil
	}
	next := r.pending
	r.seq++
	next.Session, next.Seq, next.Watched = r.session, r.seq, r.began
	if r.local != nil {
		next.Local = r.local()
	}
	r.pending, r.since, r.unsure = telemetry.Report{}, now, &next
	if err := r.send(next); err != nil {
		return err
	}
	r.unsure, r.said = nil, now
	return nil
}

func (r *reporter) send(report telemetry.Report) error {
	late := time.AfterFunc(reportWithin, r.end)
	defer late.Stop()
	if err := r.client.Send(report); err != nil {
		return fmt.Errorf("report %d: %w", report.Seq, err)
	}
	return nil
}

func (r *reporter) hangUp() {
	if r.end != nil {
		r.end()
	}
	r.client, r.end = nil, nil
}
