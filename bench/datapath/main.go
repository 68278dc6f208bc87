// Command datapath measures what a request costs in the two Envoys between a
// caller and a callee, and compares the ways to get there in one run: direct, an Envoy
// TCP-proxy pair, two hand-written Envoy pairs (plain and lean), the mesh, and a real
// Consul where there is one.
//
// In: environment variables (see [settings]), an Envoy, and bin/crossfade. Out: one JSON
// line per path and protocol on stdout, progress on stderr; exit code 1 when
// anything failed, a single request included. bench/README.md has the method.
//
// Everything listens on loopback or on Unix sockets and is gone at the end.
package main

import (
	"os"

	"github.com/crossfade-mesh/crossfade/bench/lab"
)

func main() { os.Exit(lab.Main("datapath", settingsFrom, run)) }
