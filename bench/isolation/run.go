package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/bench/lab/load"
)

const (
	// answerSize is in bytes. An Envoy saves less than with small ones by doing many requests at
	// a time, so that what a request costs in a burst is near to what it costs alone.
	answerSize = 64 << 10
	// burstFactor is how many times as many requests the bursting service gets.
	burstFactor = 10
	// bursting is the service that bursts; those before it are its neighbours.
	bursting = 2
)

// trial is a run with everything up.
type trial struct {
	settings   settings
	kinds      []*running
	neighbours *side
	burst      *side
	realTime   bool
	base       float64 // requests per second
	stderr     io.Writer
}

// run measures both kinds in turns and prints their lines. It fails when a request did.
func run(ctx context.Context, s settings, stdout, stderr io.Writer) error {
	if err := s.Binaries.SayEnvoy(ctx, stderr); err != nil {
		return err
	}
	cpus, err := lab.CPUs()
	if err != nil {
		return err
	}
	if len(cpus) < 2 {
		return errors.New("it needs two processors: one for the neighbours, one for the burst")
	}
	quiet, busy := lab.Place{CPU: cpus[0], RealTime: s.RealTime}, lab.Place{CPU: cpus[1], RealTime: s.RealTime}
	if err := quiet.Start(func() error { return nil }); err != nil {
		fmt.Fprintf(stderr, "what else the machine does is in the figures: %v\n", err)
		quiet.RealTime, busy.RealTime = false, false
	}
	dir, err := os.MkdirTemp("", "cfi")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	t := &trial{settings: s, stderr: stderr, realTime: quiet.RealTime}
	if t.neighbours, err = startSide(ctx, quiet, bursting, stderr); err != nil {
		return err
	}
	defer t.neighbours.stop()
	if t.burst, err = startSide(ctx, busy, 1, stderr); err != nil {
		return err
	}
	defer t.burst.stop()
	services := []service{
		{Name: "steady-1", Place: quiet, AppPort: t.neighbours.ports[0]},
		{Name: "steady-2", Place: quiet, AppPort: t.neighbours.ports[1]},
		{Name: "bursty", Place: busy, AppPort: t.burst.ports[0]},
	}
	for _, kind := range []string{kindCrossfade, kindShared} {
		sub := filepath.Join(dir, kind)
		if err := os.Mkdir(sub, 0o700); err != nil {
			return err
		}
		var r *running
		if kind == kindShared {
			r, err = startShared(ctx, s.Binaries, sub, busy, services)
		} else {
			r, err = startMesh(ctx, s.Binaries, sub, services, stderr)
		}
		if err != nil {
			return fmt.Errorf("kind %q: %w", kind, err)
		}
		defer r.stop()
		t.kinds = append(t.kinds, r)
	}
	lines, err := t.measure(ctx)
	if err != nil {
		return err
	}
	failed := 0
	for _, l := range lines {
		if err := json.NewEncoder(stdout).Encode(l); err != nil {
			return err
		}
		failed += l.Failed + l.BurstFailed
	}
	if failed > 0 {
		return fmt.Errorf("%d requests failed", failed)
	}
	return nil
}

// measure plays all rounds and sums up.
func (t *trial) measure(ctx context.Context) ([]line, error) {
	if t.base = t.settings.Rate; t.base == 0 {
		carried, err := t.capacity()
		if err != nil {
			return nil, err
		}
		// The burst alone is all that its worker can do; the neighbours' requests come on top.
		t.base = math.Round(carried / burstFactor)
		fmt.Fprintf(t.stderr, "a shared node proxy carries %.0f requests/s to one service: %.0f go to each, and %.0f in a burst\n", carried, t.base, burstFactor*t.base)
	}
	lanes := make([]lane, len(t.kinds))
	for n := range t.settings.Rounds {
		for i := range lanes {
			lanes[i].rounds = append(lanes[i].rounds, round{})
		}
		if err := t.playRound(ctx, n, lanes); err != nil {
			return nil, fmt.Errorf("round %d: %w", n+1, err)
		}
		fmt.Fprintf(t.stderr, "round %d:", n+1)
		for i, k := range t.kinds {
			last := lanes[i].rounds[n]
			fmt.Fprintf(t.stderr, "  %s p99 %.2f ms, in the burst %.2f ms", k.kind, last.quiet.quantile(0.99), last.burst.quantile(0.99))
		}
		fmt.Fprintln(t.stderr)
	}
	var out []line
	for i, k := range t.kinds {
		if err := k.witness(ctx); err != nil {
			return nil, fmt.Errorf("kind %q: %w", k.kind, err)
		}
		l := lanes[i].summarize()
		l.Kind, l.Base, l.Burst, l.Cgroup = k.kind, t.base, burstFactor*t.base, k.cgroup
		l.RealTime = t.realTime
		l.Seconds, l.Connections, l.Load = t.settings.SecondsPerRun.Seconds(), t.settings.Connections, lab.Load()
		out = append(out, l)
	}
	return out, nil
}

// capacity is how many requests per second to the bursting service a shared node proxy can carry.
func (t *trial) capacity() (float64, error) {
	shared := t.kinds[len(t.kinds)-1]
	got, err := t.burst.play(order{
		Calls:  []call{{Addr: shared.services[bursting].addr(), Connections: t.settings.Connections}},
		WarmUp: t.settings.warmUp, Measured: t.settings.turn,
	})
	if err != nil {
		return 0, err
	}
	if len(got[0].Failures) > 0 {
		return 0, errors.New(got[0].Failures[0])
	}
	return got[0].PerSecond, nil
}

// playRound gives each kind SecondsPerRun of quiet and as much of burst, in turns.
func (t *trial) playRound(ctx context.Context, n int, lanes []lane) error {
	turns := max(1, int((t.settings.SecondsPerRun+t.settings.turn/2)/t.settings.turn))
	measured := t.settings.SecondsPerRun / time.Duration(turns)
	for lap := n * turns; lap < (n+1)*turns; lap++ {
		for i := range lanes {
			// Each lap begins with the other kind, and every other with the other phase.
			at := (lap + i) % len(lanes)
			lane, kind := &lanes[at], t.kinds[at]
			current := &lane.rounds[n]
			for phase := range 2 {
				rate, into := t.base, &current.quiet
				if (phase+lap/2)%2 == 1 {
					rate, into = burstFactor*t.base, &current.burst
				}
				if err := t.play(ctx, kind, rate, measured, into); err != nil {
					return fmt.Errorf("kind %q: %w", kind.kind, err)
				}
			}
		}
	}
	return nil
}

// play has both sides load a kind for one turn: the neighbours at the base rate, the other service at rate.
func (t *trial) play(ctx context.Context, k *running, rate float64, measured time.Duration, into *phase) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	orders := map[*side]*order{}
	for i, s := range k.services {
		c := call{Addr: s.addr(), Connections: t.settings.Connections, Rate: t.base, Phase: float64(i) / bursting}
		of := t.neighbours
		if i == bursting {
			of, c.Rate, c.Phase, c.Abandon = t.burst, rate, 0, true
		}
		if orders[of] == nil {
			orders[of] = &order{WarmUp: t.settings.warmUp, Measured: measured}
		}
		orders[of].Calls = append(orders[of].Calls, c)
	}
	var (
		wg                   sync.WaitGroup
		neighbours, burst    []answers
		neighboursErr, other error
	)
	wg.Go(func() { neighbours, neighboursErr = t.neighbours.play(*orders[t.neighbours]) })
	wg.Go(func() { burst, other = t.burst.play(*orders[t.burst]) })
	wg.Wait()
	if err := errors.Join(neighboursErr, other); err != nil {
		return err
	}
	for _, a := range neighbours {
		into.latencies = append(into.latencies, a.Latencies...)
		into.failed += len(a.Failures)
	}
	into.burstFailed += len(burst[0].Failures)
	into.answered = append(into.answered, burst[0].PerSecond)
	for _, a := range append(neighbours, burst...) {
		if len(a.Failures) > 0 {
			fmt.Fprintf(t.stderr, "%s: %d failed: %s\n", k.kind, len(a.Failures), a.Failures[0])
		}
	}
	return nil
}

// phase is what one round measured of a kind while all was quiet, or in the burst.
type phase struct {
	latencies   []time.Duration // of the neighbours' requests
	failed      int             // of the neighbours'
	burstFailed int             // of the bursting service's
	answered    []float64       // requests per second of the bursting service, by turn
}

func (p phase) quantile(q float64) float64 { return load.Milliseconds(load.Quantile(p.latencies, q)) }

type round struct{ quiet, burst phase }

// lane is a kind under measurement.
type lane struct{ rounds []round }
