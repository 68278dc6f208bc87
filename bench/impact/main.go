// Command impact moves four pairs from an old mesh to this one and back while requests
// are made, and counts those that fail: there must be none.
//
// In: environment variables (see [settings]), an Envoy, and bin/crossfade. Out: one JSON
// line on stdout, progress on stderr; exit code 1 when a request failed. bench/README.md
// has the method.
//
// Everything listens on loopback or on Unix sockets and is gone at the end.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// settings say what to measure.
type settings struct {
	Requests uint64       // REQUESTS (1000000): in all
	Rate     int          // RATE (2000): per second, over all pairs, whatever the answers do
	Binaries lab.Binaries // ENVOY, CROSSFADE
}

func main() { os.Exit(lab.Main("impact", settingsFrom, run)) }

func settingsFrom(env *lab.Env) settings {
	return settings{
		Requests: uint64(env.Count("REQUESTS", 1_000_000)),
		Rate:     max(4, int(env.Positive("RATE", 2000))),
		Binaries: env.Binaries(),
	}
}

// line is what was found.
type line struct {
	Requests  uint64  `json:"requests"`
	Failed    uint64  `json:"failed"`
	PerSecond float64 `json:"requests_per_second"`
	Seconds   float64 `json:"seconds"`
	// LateMS is the longest that a request was sent after it was due: how short of CPU the load was.
	LateMS float64 `json:"generator_late_ms"`
	Kinds  []kind  `json:"kinds"`
	Steps  []moved `json:"steps"`
	// Ways is how many attempts, or connections, the caller's Envoy counted by destination and way.
	Ways map[string]map[shift.Way]uint64 `json:"ways"`
}

// kind is one pair.
type kind struct {
	Kind           string         `json:"kind"`
	Requests       uint64         `json:"requests"`
	Failed         uint64         `json:"failed"`
	NewConnections uint64         `json:"new_connections"`
	P50            float64        `json:"p50_ms"`
	P99            float64        `json:"p99_ms"`
	Max            float64        `json:"max_ms"`
	Reasons        map[string]int `json:"reasons,omitempty"` // of failures
}

// moved is a change of all pairs' shares.
type moved struct {
	Shares    string  `json:"shares"`
	After     uint64  `json:"after_requests"`
	AppliedMS float64 `json:"applied_ms"` // until every Envoy had acknowledged it
}

func run(ctx context.Context, s settings, out, progress io.Writer) error {
	dir, err := os.MkdirTemp("/tmp", "cf-impact-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	w, err := start(ctx, s, dir)
	if err != nil {
		return err
	}
	defer w.stop()
	begun := time.Now()
	load := w.load(s.Rate)
	defer load.stop()

	l := line{}
	steps := plan()
	for i, step := range steps {
		if err := load.await(ctx, s.Requests*uint64(i+1)/uint64(len(steps)+1)); err != nil {
			return err
		}
		after, _ := load.counted()
		took, err := step.take(ctx, w.api)
		if err != nil {
			return fmt.Errorf("step %q: %w", step.String(), err)
		}
		l.Steps = append(l.Steps, moved{step.String(), after, milliseconds(took)})
		_, failed := load.counted()
		fmt.Fprintf(progress, "%6.1f s  %-11s on all Envoys in %3.0f ms; %d of %d requests failed so far\n",
			time.Since(begun).Seconds(), step, milliseconds(took), failed, after)
	}
	if err := load.await(ctx, s.Requests); err != nil {
		return err
	}
	load.stop()
	l.Seconds = time.Since(begun).Seconds()
	if err := l.count(ctx, w); err != nil {
		return err
	}
	load.report(&l)
	l.PerSecond = float64(l.Requests) / l.Seconds
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s\n", b)
	return l.verdict()
}

// countedWithin is how long it may take until Envoy has counted what has ended.
const countedWithin = 5 * time.Second

// count takes in what went by which way, once everything is counted that was open when the load ended.
func (l *line) count(ctx context.Context, w *world) (err error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); ; {
		if l.Ways, err = w.ways(ctx); err != nil || l.unseen() == nil || time.Since(began) > countedWithin {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// verdict is nil only if nothing failed, and everything went by every way.
func (l line) verdict() error {
	var errs []error
	if l.Failed > 0 {
		errs = append(errs, fmt.Errorf("%d of %d requests failed", l.Failed, l.Requests))
	}
	return errors.Join(append(errs, l.unseen())...)
}

// unseen says which way nothing went.
func (l line) unseen() error {
	var errs []error
	for _, p := range pairs {
		for _, way := range ways {
			if l.Ways[p.service][shift.Way(way)] == 0 {
				errs = append(errs, fmt.Errorf("nothing went to %s by way %s, so that nothing is shown of it", p.service, way))
			}
		}
	}
	return errors.Join(errs...)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
