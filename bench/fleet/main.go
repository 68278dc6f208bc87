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
	"fmt"
	"os"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
)

// Where a registry can be.
const (
	engineEmbedded = "embedded"
	engineConsul   = "consul"
)

// settings say what to measure.
type settings struct {
	Streams   int           // STREAMS (10000): simulated sidecars
	Instances int           // INSTANCES (172000): rows of service instances in the registry; an app and its sidecar are two
	Services  int           // SERVICES (5000)
	Duration  time.Duration // DURATION (60): seconds of each scenario that has a rate
	Real      int           // REAL (20): real Envoys, half of them callers of the others
	Engine    string        // ENGINE (embedded): where the registry is, in the server or in a real Consul (consul)
	Scenarios []string      // SCENARIOS: names, separated by commas or spaces; default: all
	Registry  string        // REGISTRY: folder in which filled registries are kept for the next run; default: none
	Profile   string        // PROFILE: folder for CPU profiles of the server, a file per scenario
	Binaries  lab.Binaries  // ENVOY, CROSSFADE
}

func main() { os.Exit(lab.Main("fleet", settingsFrom, run)) }

func settingsFrom(env *lab.Env) settings {
	s := settings{
		Profile: env.Get("PROFILE"), Registry: env.Get("REGISTRY"), Binaries: env.Binaries(), Duration: env.Seconds("DURATION", 60), Real: 20,
		Streams: env.Count("STREAMS", 10_000), Instances: env.Count("INSTANCES", 172_000), Services: env.Count("SERVICES", 5_000),
	}
	if text := env.Get("REAL"); text != "" {
		if _, err := fmt.Sscan(text, &s.Real); err != nil || s.Real < 0 || s.Real > 200 {
			env.Wrong("REAL", "a number from 0 to 200")
		}
	}
	switch s.Engine = cmp.Or(env.Get("ENGINE"), engineEmbedded); {
	case s.Engine != engineEmbedded && s.Engine != engineConsul:
		env.Wrong("ENGINE", engineEmbedded+" or "+engineConsul)
	case s.Engine == engineConsul && s.Binaries.Consul == "":
		env.Wrong("CONSUL", "a Consul binary: run make bin/consul")
	case s.Services < 50:
		env.Wrong("SERVICES", "50 or more")
	case s.Streams < s.Services:
		env.Wrong("STREAMS", "as many as SERVICES or more")
	case s.Instances < 3*s.Streams:
		env.Wrong("INSTANCES", "three times STREAMS or more: an app, its sidecar, and one that is served elsewhere")
	}
	var known []string
	for _, sc := range scenarios {
		if s.Engine == engineEmbedded || !sc.embedded {
			known = append(known, sc.name)
		}
	}
	s.Scenarios = env.Names("SCENARIOS", "scenarios", known)
	return s
}
