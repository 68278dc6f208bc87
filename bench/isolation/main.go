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
	"cmp"
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/internal/envoybin"
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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	s, err := settingsFrom(os.Getenv)
	if err == nil {
		err = run(ctx, s, os.Stdout, os.Stderr)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "isolation:", err)
		os.Exit(1)
	}
}

func settingsFrom(getenv func(string) string) (settings, error) {
	root, err := lab.RepositoryRoot()
	if err != nil {
		return settings{}, err
	}
	s := settings{turn: time.Second, warmUp: 300 * time.Millisecond}
	s.Binaries.Crossfade = cmp.Or(getenv("CROSSFADE"), filepath.Join(root, "bin", "crossfade"))
	seconds, err := lab.Positive(getenv, "SECONDS_PER_RUN", 2)
	if err != nil {
		return settings{}, err
	}
	rounds, err := lab.Positive(getenv, "ROUNDS", 11)
	if err != nil {
		return settings{}, err
	}
	connections, err := lab.Positive(getenv, "CONNECTIONS", 64)
	if err != nil {
		return settings{}, err
	}
	s.SecondsPerRun, s.Rounds, s.Connections = time.Duration(seconds*float64(time.Second)), max(1, int(rounds)), max(1, int(connections))
	if s.Rate, err = lab.Positive(getenv, "RATE", 0); err != nil {
		return settings{}, err
	}
	switch getenv("REALTIME") {
	case "", "1":
		s.RealTime = true
	case "0":
	default:
		return settings{}, fmt.Errorf("REALTIME %q: want 0 or 1", getenv("REALTIME"))
	}
	s.Binaries.Envoy, err = envoybin.Find()
	return s, err
}
