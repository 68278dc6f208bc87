// Command crossfade is the whole product in one binary: control-plane server,
// sidecar supervisor, and the verbs of people and scripts.
package main

import (
	"os"

	"github.com/crossfade-mesh/crossfade/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
