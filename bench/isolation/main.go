// Command isolation measures what a burst of requests to one of three services on a host does to
// the other two: in the mesh, where every service has an Envoy of its own, and with
// a shared node proxy, one hand-written Envoy that all three go through.
//
// In: environment variables (see [settings]), an Envoy, and bin/crossfade. Out: one JSON
// line per kind on stdout, progress on stderr; exit code 1 when a request failed.
// bench/README.md has the method.
//
// Everything listens on loopback or on Unix sockets and is gone at the end.
package main

import (
	"fmt"
	"os"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
)

// settings say what to measure.
type settings struct {
	SecondsPerRun time.Duration // SECONDS_PER_RUN (2): measured for each kind and phase in each round
	Rounds        int           // ROUNDS (11)
	Connections   int           // CONNECTIONS (64): to each service, each with one request at a time
	Rate          float64       // RATE: requests per second to each service while all is quiet; 0: found out
	RealTime      bool          // REALTIME (1): ahead of all else on the machine, where that is allowed
	Binaries      lab.Binaries  // ENVOY, CROSSFADE

	// A round is played in turns, so short that a slow spell of the machine meets both kinds and phases.
	turn   time.Duration // measured part of a turn, about
	warmUp time.Duration // before it
}

func main() {
	if services := os.Getenv(sideEnv); services != "" {
		if err := serveSide(os.Stdin, os.Stdout, services); err != nil {
			fmt.Fprintln(os.Stderr, "isolation, side:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(lab.Main("isolation", settingsFrom, run))
}

func settingsFrom(env *lab.Env) settings {
	s := settings{
		SecondsPerRun: env.Seconds("SECONDS_PER_RUN", 2),
		Rounds:        env.Count("ROUNDS", 11),
		Connections:   env.Count("CONNECTIONS", 64),
		Rate:          env.Positive("RATE", 0),
		RealTime:      env.Get("REALTIME") != "0",
		Binaries:      env.Binaries(),
		turn:          time.Second,
		warmUp:        300 * time.Millisecond,
	}
	if v := env.Get("REALTIME"); v != "" && v != "0" && v != "1" {
		env.Wrong("REALTIME", "0 or 1")
	}
	return s
}
