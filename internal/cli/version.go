package cli

import (
	"fmt"
	"io"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/internal/envoybin"
)

// Version of this tree.
const Version = "0.1.0-dev"

type versionInfo struct {
	Version   string `json:"version"`
	Revision  string `json:"revision,omitempty"`
	GoVersion string `json:"go_version"`
	Envoy     string `json:"envoy"` // the range it works with
}

func newVersion(s streams) *cobra.Command {
	cmd := &cobra.Command{Use: "version", Short: "Show the version, and Envoy's that it works with", Args: exactly(), Example: "  crossfade version -o json"}
	o := addOutput(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		v := versionInfo{Version: Version, Envoy: "at least " + envoybin.Floor + ", less than " + envoybin.Ceiling}
		if b, ok := debug.ReadBuildInfo(); ok {
			v.GoVersion = b.GoVersion
			for _, kv := range b.Settings {
				if kv.Key == "vcs.revision" {
					v.Revision = kv.Value
				}
			}
		}
		return o.print(s.out, v, func(w io.Writer) {
			fmt.Fprintf(w, "crossfade\t%s\nGo\t%s\nEnvoy\t%s\n", v.Version, v.GoVersion, v.Envoy)
		})
	}
	return cmd
}
