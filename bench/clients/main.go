// Command clients measures the control plane with clients that are not the simulated sidecars of
// bench/fleet: delta-ADS clients on grpc-go that decode all that they are sent, and supervisors that
// have nothing to tell.
//
// In: environment variables (see [settings]) and bin/crossfade. Out: one JSON line per scenario on
// stdout, progress on stderr; exit code 1 when a scenario came to no end. bench/README.md has the method.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
)

// settings say what to measure.
type settings struct {
	Streams   int           // STREAMS (10000): sidecars
	Duration  time.Duration // DURATION (20): seconds of a scenario that has a rate
	Scenarios []string      // SCENARIOS: names, separated by commas or spaces; default: all
	Binaries  lab.Binaries  // CROSSFADE
}

// line is what one scenario gave.
type line struct {
	Bench    string  `json:"bench"`
	Scenario string  `json:"scenario"`
	Streams  int     `json:"streams"`
	Seconds  float64 `json:"seconds"`
	P50      float64 `json:"p50_s,omitempty"`
	P99      float64 `json:"p99_s,omitempty"`
	Last     float64 `json:"last_s,omitempty"`
	Changes  int     `json:"changes,omitempty"`
	Messages int64   `json:"messages,omitempty"` // reports or requests that the server answered
	CPU      float64 `json:"cp_cpu_s"`
	Each     float64 `json:"cp_cpu_each_s,omitempty"` // for a change
	Cores    float64 `json:"cp_cores,omitempty"`      // processors that the server needs for so many supervisors
	RSS      float64 `json:"rss_mib"`
	Load     float64 `json:"load"`
}

type scenario struct {
	name string
	run  func(context.Context, *world, *line) error
}

// scenarios in the order in which they run. A world is made anew for each.
var scenarios = []scenario{{"foreign", foreign}, {"requests", requests}, {"reports", reports}}

func main() { os.Exit(lab.Main("clients", settingsFrom, run)) }

func settingsFrom(env *lab.Env) settings {
	s := settings{Streams: env.Count("STREAMS", 10_000), Duration: env.Seconds("DURATION", 20), Binaries: env.Binaries()}
	var known []string
	for _, sc := range scenarios {
		known = append(known, sc.name)
	}
	s.Scenarios = env.Names("SCENARIOS", "scenarios", known)
	return s
}

func run(ctx context.Context, s settings, out, progress io.Writer) error {
	for _, sc := range scenarios {
		if !slices.Contains(s.Scenarios, sc.name) {
			continue
		}
		fmt.Fprintln(progress, sc.name)
		l, err := measure(ctx, s, sc)
		if err != nil {
			return fmt.Errorf("scenario %s: %w", sc.name, err)
		}
		if err := json.NewEncoder(out).Encode(l); err != nil {
			return err
		}
	}
	return nil
}

func measure(ctx context.Context, s settings, sc scenario) (l line, err error) {
	w, err := open(ctx, s)
	if err != nil {
		return l, err
	}
	defer w.close()
	l = line{Bench: "clients", Scenario: sc.name, Streams: s.Streams}
	if err := sc.run(ctx, w, &l); err != nil {
		return l, err
	}
	size, err := lab.ResidentSize(w.mesh.ServerPID())
	l.RSS, l.Load = float64(size)/(1<<20), lab.Load()
	return l, err
}
