package cli

import (
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/crossfade-mesh/crossfade/internal/demo"
)

func newDemo(s streams) *cobra.Command {
	var o demo.Options
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Move a small shop on this machine from an old mesh into this one, under load, and prove what is promised",
		Long: `Run a small shop on loopback, under open-loop load, and tell aloud how it moves: from an
old mesh (a node proxy) to sidecars that join one by one, pair by pair and step by step to
mutual TLS, taken back by the shift guard when the new way is made slow or failing, and by one
command, until nothing else is taken and the old mesh is off. Then in the mesh: an instance
added and one drained, even spread, certificates rotated, the server dead and back, a sidecar
started from its last good configuration, an Envoy killed. The clients count: no request may
be lost. Exit code 0 only if all of it held.`,
		Example: `  crossfade demo
  crossfade demo --json > demo.json`,
		Args: exactly(),
	}
	f := cmd.Flags()
	f.BoolVar(&o.JSON, "json", false, "all figures as one JSON object on standard output, progress on standard error")
	f.StringSliceVar(&o.Sabotage, "sabotage", nil, "break something on purpose and see it caught: "+or(demo.Sabotages())+"; or a list with commas")
	complete(cmd, "sabotage", words(demo.Sabotages()...))
	f.StringVar(&o.Envoy, "envoy", "", "Envoy's binary (default $ENVOY, then envoy on PATH, then the installed Python package)")
	f.StringVar(&o.Dir, "dir", "", "keep logs and state in this folder (default: a temporary one that is removed)")
	complete(cmd, "envoy", files())
	complete(cmd, "dir", folders())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		for _, name := range o.Sabotage {
			if !slices.Contains(demo.Sabotages(), name) {
				return usageError{fmt.Errorf("--sabotage %q: want %s", name, or(demo.Sabotages())), cmd.CommandPath() + " --help"}
			}
		}
		if err := checkEnvoy(o.Envoy); err != nil {
			return err
		}
		o.Stdout, o.Stderr = s.out, s.err
		progress := s.out
		if o.JSON {
			progress = s.err
		}
		o.Live = terminal(progress)
		o.Color = o.Live && s.env("NO_COLOR") == ""
		return demo.Run(cmd.Context(), o)
	}
	return cmd
}

// terminal reports whether w is one.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// newDemoApp is one of the shop's apps; the demo runs it beside a sidecar.
func newDemoApp(s streams) *cobra.Command {
	return &cobra.Command{
		Use: "demo-app", Hidden: true, DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error { return demo.App(cmd.Context(), args) },
	}
}
