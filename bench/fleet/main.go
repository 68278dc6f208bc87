// Command fleet measures the control plane with thousands of sidecars: how soon they learn of a
// change, and what that costs the server.
//
// In: environment variables (see [settings]), bin/crossfade, and an Envoy. Out: one JSON line per
// scenario on stdout, progress on stderr; exit code 1 when a scenario came to no end, sidecars ended with
// different configurations, or a request between real Envoys failed. bench/README.md has the method.
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
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/internal/envoybin"
)

// settings say what to measure.
type settings struct {
	Streams   int           // STREAMS (10000): simulated sidecars
	Instances int           // INSTANCES (172000): rows of service instances in the registry; an app and its sidecar are two
	Services  int           // SERVICES (5000)
	Duration  time.Duration // DURATION (60): seconds of each scenario that has a rate
	Real      int           // REAL (20): real Envoys, half of them callers of the others
	Scenarios []string      // SCENARIOS: names, separated by commas or spaces; default: all
	Registry  string        // REGISTRY: folder in which filled registries are kept for the next run; default: none
	Profile   string        // PROFILE: folder for CPU profiles of the server, a file per scenario
	Binaries  lab.Binaries  // ENVOY, CROSSFADE
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	s, err := settingsFrom(os.Getenv)
	if err == nil {
		err = run(ctx, s, os.Stdout, os.Stderr)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}

func settingsFrom(getenv func(string) string) (settings, error) {
	root, err := lab.RepositoryRoot()
	if err != nil {
		return settings{}, err
	}
	s := settings{Profile: getenv("PROFILE"), Registry: getenv("REGISTRY")}
	s.Binaries.Crossfade = cmp.Or(getenv("CROSSFADE"), filepath.Join(root, "bin", "crossfade"))
	var seconds float64
	for _, v := range []struct {
		name  string
		unset float64
		set   func(float64)
	}{
		{"STREAMS", 10_000, func(v float64) { s.Streams = int(v) }},
		{"INSTANCES", 172_000, func(v float64) { s.Instances = int(v) }},
		{"SERVICES", 5_000, func(v float64) { s.Services = int(v) }},
		{"DURATION", 60, func(v float64) { seconds = v }},
	} {
		n, err := lab.Positive(getenv, v.name, v.unset)
		if err != nil {
			return s, err
		}
		v.set(n)
	}
	s.Duration = time.Duration(seconds * float64(time.Second))
	s.Real = 20
	if text := getenv("REAL"); text != "" {
		if _, err := fmt.Sscan(text, &s.Real); err != nil || s.Real < 0 || s.Real > 200 {
			return s, fmt.Errorf("REAL %q: want a number from 0 to 200", text)
		}
	}
	switch {
	case s.Services < 50:
		return s, fmt.Errorf("SERVICES %d: want 50 or more", s.Services)
	case s.Streams < s.Services:
		return s, fmt.Errorf("STREAMS %d: want as many as SERVICES, %d, or more", s.Streams, s.Services)
	case s.Instances < 3*s.Streams:
		return s, fmt.Errorf("INSTANCES %d: want three times STREAMS, %d, or more: an app, its sidecar, and one that is served elsewhere", s.Instances, s.Streams)
	}
	names := strings.FieldsFunc(getenv("SCENARIOS"), func(r rune) bool { return r == ',' || r == ' ' })
	for _, sc := range scenarios {
		if len(names) == 0 || slices.Contains(names, sc.name) {
			s.Scenarios = append(s.Scenarios, sc.name)
		}
	}
	for _, name := range names {
		if !slices.Contains(s.Scenarios, name) {
			return s, fmt.Errorf("SCENARIOS: %q: there is none of that name", name)
		}
	}
	if s.Real > 0 {
		s.Binaries.Envoy, err = envoybin.Find()
	}
	return s, err
}
