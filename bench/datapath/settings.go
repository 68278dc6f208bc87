package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/envoybin"
)

// The protocols an app can speak here.
const (
	protoHTTP = "http"
	protoGRPC = "grpc"
	protoTCP  = "tcp"
)

// settings say what to measure.
type settings struct {
	SecondsPerRun time.Duration // SECONDS_PER_RUN (4): measured for each path in each round
	Rounds        int           // ROUNDS (5): samples per path
	Protocols     []string      // PROTOCOLS (http): of http, grpc, tcp; by space or comma
	Paths         []string      // PATHS: of those the protocol has; empty is all
	Connections   int           // CONNECTIONS (32): each with one request at a time
	Envoy         string        // as [envoybin.Find] finds it, $ENVOY first
	Crossfade     string        // CROSSFADE; else bin/crossfade

	// A round is played in turns, so short that a slow spell of the machine meets all paths.
	turn   time.Duration // measured part of a turn, about
	warmUp time.Duration // before it
}

func settingsFrom(getenv func(string) string) (settings, error) {
	root, err := repositoryRoot()
	if err != nil {
		return settings{}, err
	}
	s := settings{Protocols: words(getenv("PROTOCOLS")), Paths: words(getenv("PATHS")), Crossfade: getenv("CROSSFADE")}
	if len(s.Protocols) == 0 {
		s.Protocols = []string{protoHTTP}
	}
	for _, p := range s.Protocols {
		if !slices.Contains([]string{protoHTTP, protoGRPC, protoTCP}, p) {
			return settings{}, fmt.Errorf("PROTOCOLS %q: want http, grpc or tcp", p)
		}
	}
	seconds, err := positive(getenv, "SECONDS_PER_RUN", 4)
	if err != nil {
		return settings{}, err
	}
	s.SecondsPerRun = time.Duration(seconds * float64(time.Second))
	s.turn = 500 * time.Millisecond
	s.warmUp = 150 * time.Millisecond
	rounds, err := positive(getenv, "ROUNDS", 5)
	if err != nil {
		return settings{}, err
	}
	connections, err := positive(getenv, "CONNECTIONS", 32)
	if err != nil {
		return settings{}, err
	}
	s.Rounds, s.Connections = max(1, int(rounds)), max(1, int(connections))
	if s.Crossfade == "" {
		s.Crossfade = filepath.Join(root, "bin", "crossfade")
	}
	s.Envoy, err = envoybin.Find()
	return s, err
}

func positive(getenv func(string) string, name string, unset float64) (float64, error) {
	text := getenv(name)
	if text == "" {
		return unset, nil
	}
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || !(v > 0 && v < 1e6) {
		return 0, fmt.Errorf("%s %q: want a number above 0", name, text)
	}
	return v, nil
}

func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

// repositoryRoot is the nearest directory upwards with a go.mod.
func repositoryRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("no go.mod here or above: run it inside the repository")
		}
		dir = up
	}
}
