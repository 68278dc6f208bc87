package main

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/bench/lab/load"
	"github.com/crossfade-mesh/crossfade/internal/envoybin"
)

// settings say what to measure.
type settings struct {
	SecondsPerRun time.Duration // SECONDS_PER_RUN (4): measured for each path in each round
	Rounds        int           // ROUNDS (5): samples per path
	Protocols     []string      // PROTOCOLS (http): of http, grpc, tcp; by space or comma
	Paths         []string      // PATHS: of those the protocol has; empty is all
	Connections   int           // CONNECTIONS (32): each with one request at a time
	Rate          float64       // RATE: requests per second on each path, whatever the answers do; 0: as many as come back
	Binaries      lab.Binaries  // ENVOY as [envoybin.Find] does it; CROSSFADE, CONSUL, else those in bin

	// A round is played in turns, so short that a slow spell of the machine meets all paths.
	turn   time.Duration // measured part of a turn, about
	warmUp time.Duration // before it
}

func settingsFrom(getenv func(string) string) (settings, error) {
	root, err := lab.RepositoryRoot()
	if err != nil {
		return settings{}, err
	}
	s := settings{Protocols: words(getenv("PROTOCOLS")), Paths: words(getenv("PATHS"))}
	s.Binaries.Crossfade = cmp.Or(getenv("CROSSFADE"), filepath.Join(root, "bin", "crossfade"))
	if len(s.Protocols) == 0 {
		s.Protocols = []string{load.HTTP}
	}
	for _, p := range s.Protocols {
		if !slices.Contains([]string{load.HTTP, load.GRPC, load.TCP}, p) {
			return settings{}, fmt.Errorf("PROTOCOLS %q: want http, grpc or tcp", p)
		}
	}
	seconds, err := lab.Positive(getenv, "SECONDS_PER_RUN", 4)
	if err != nil {
		return settings{}, err
	}
	s.SecondsPerRun = time.Duration(seconds * float64(time.Second))
	s.turn = 500 * time.Millisecond
	s.warmUp = 150 * time.Millisecond
	rounds, err := lab.Positive(getenv, "ROUNDS", 5)
	if err != nil {
		return settings{}, err
	}
	connections, err := lab.Positive(getenv, "CONNECTIONS", 32)
	if err != nil {
		return settings{}, err
	}
	s.Rounds, s.Connections = max(1, int(rounds)), max(1, int(connections))
	if getenv("RATE") != "" {
		if s.Rate, err = lab.Positive(getenv, "RATE", 0); err != nil {
			return settings{}, err
		}
	}
	if s.Binaries.Consul, err = lab.FindConsul(getenv, root); err != nil {
		return settings{}, err
	}
	s.Binaries.Envoy, err = envoybin.Find()
	return s, err
}

func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}
