package cli

import (
	"fmt"
	"io"
	"net/http"

	"github.com/spf13/cobra"
)

// checked is what a server finds wrong.
type checked struct {
	Entries  int `json:"entries"`
	Sidecars int `json:"sidecars"`
	Problems []struct {
		Subject  string   `json:"subject"`
		Service  string   `json:"service,omitempty"`
		Problem  string   `json:"problem"`
		Sidecars []string `json:"sidecars,omitempty"`
		More     int      `json:"more,omitempty"`
	} `json:"problems"`
}

func newConfigCheck(s streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "List what is wrong with configuration entries now",
		Long: `List what is wrong with configuration entries now: what does not fit together, what
cannot be honoured for a registered sidecar, what an Envoy has refused, and files of
the server's --config-dir that it could not take. The exit code is 1 when there is anything.`,
		Example: `  crossfade config check
  crossfade config check -o json`,
		Args: exactly(),
	}
	t, o := addTarget(cmd, s), addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var c checked
		if err := t.call(cmd.Context(), http.MethodGet, "/v1/crossfade/config/check", nil, &c); err != nil {
			return err
		}
		if err := o.print(s.out, c, c.print); err != nil {
			return err
		}
		if len(c.Problems) > 0 {
			return exitCode(1)
		}
		return nil
	}
	return cmd
}

func (c checked) print(w io.Writer) {
	if len(c.Problems) == 0 {
		fmt.Fprintf(w, "no problems: %d entries, %d registered sidecars\n", c.Entries, c.Sidecars)
		return
	}
	fmt.Fprintln(w, "Subject\tService\tSidecars\tProblem")
	for _, p := range c.Problems {
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", p.Subject, orNobody(p.Service), len(p.Sidecars)+p.More, clip(p.Problem, maxSaid))
	}
}
