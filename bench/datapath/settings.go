package main

import (
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/bench/lab/load"
)

// settings say what to measure.
type settings struct {
	SecondsPerRun time.Duration // SECONDS_PER_RUN (4): measured for each path in each round
	Rounds        int           // ROUNDS (5): samples per path
	Protocols     []string      // PROTOCOLS (http): of http, grpc, tcp; by space or comma
	Paths         []string      // PATHS: of those the protocol has; empty is all
	Connections   int           // CONNECTIONS (32): each with one request at a time
	Rate          float64       // RATE: requests per second on each path, whatever the answers do; 0: as many as come back
	Binaries      lab.Binaries  // ENVOY, CROSSFADE, CONSUL

	// A round is played in turns, so short that a slow spell of the machine meets all paths.
	turn   time.Duration // measured part of a turn, about
	warmUp time.Duration // before it
}

func settingsFrom(env *lab.Env) settings {
	s := settings{
		Protocols:     words(env.Get("PROTOCOLS")),
		Paths:         words(env.Get("PATHS")),
		SecondsPerRun: env.Seconds("SECONDS_PER_RUN", 4),
		Rounds:        env.Count("ROUNDS", 5),
		Connections:   env.Count("CONNECTIONS", 32),
		Rate:          env.Positive("RATE", 0),
		Binaries:      env.Binaries(),
		turn:          500 * time.Millisecond,
		warmUp:        150 * time.Millisecond,
	}
	if len(s.Protocols) == 0 {
		s.Protocols = []string{load.HTTP}
	}
	for _, p := range s.Protocols {
		if !slices.Contains([]string{load.HTTP, load.GRPC, load.TCP}, p) {
			env.Wrong("PROTOCOLS", "http, grpc or tcp")
		}
	}
	return s
}

func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}
