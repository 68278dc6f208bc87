package cli

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/sidecar"
)

// checkedAll is what is looked at, and found.
type checkedAll struct {
	Server   string           `json:"server,omitempty"` // that was asked
	Sidecars []checkedSidecar `json:"sidecars"`         // of this host
	Findings []api.Finding    `json:"findings"`
}

// checkedSidecar is a sidecar of this host in a line.
type checkedSidecar struct {
	ID          string    `json:"id"`
	State       string    `json:"state"`
	Server      string    `json:"server,omitempty"` // that it is connected to
	LastUpdate  time.Time `json:"last_update,omitzero"`
	LastGood    time.Time `json:"last_good,omitzero"`
	Certificate time.Time `json:"certificate_expires,omitzero"`
	StateDir    string    `json:"state_dir"`
}

// askWithin bounds the question to the server: what is stale is to be said at once.
const askWithin = 5 * time.Second

func newCheck(s streams) *cobra.Command {
	var dirs []string
	var local, remote bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what is stale or broken, and since when",
		Long: `Say what is stale or broken, and since when: of the sidecars of this host, by what they
keep in their state directories, and of a server, if one is to be asked.

A host's sidecars are looked at without a server: whether each runs and serves, which server
it is connected to, how old the configuration is that it would start from, when its
certificate expires, and whether Envoy runs what it was told. A server is asked when --http-addr or
its variables name one, or when this host has no sidecar; it tells what of the registry can't be
read, which Envoys are behind, what is not saved, and which of its certificates were not renewed.

The exit code is 0 when nothing is found, 1 for warnings and 2 for what is critical, as
Consul and Nomad read it of a check's script.`,
		Example: `  crossfade check
  crossfade check --local --state-dir /var/lib/crossfade/web
  crossfade check --server --http-addr 10.0.0.1:8500 -o json`,
		Args: exactly(),
	}
	t, o := addTarget(cmd, s), addOutput(cmd)
	cmd.Flags().StringSliceVar(&dirs, "state-dir", nil, "sidecars' state directories, or one that holds them (default: all of this host)")
	cmd.Flags().BoolVar(&local, "local", false, "look at this host's sidecars only")
	cmd.Flags().BoolVar(&remote, "server", false, "ask a server only")
	complete(cmd, "state-dir", folders())
	cmd.MarkFlagsMutuallyExclusive("local", "server")
	cmd.MarkFlagsMutuallyExclusive("state-dir", "server")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		out := checkedAll{Sidecars: []checkedSidecar{}, Findings: []api.Finding{}}
		found := 0
		if !remote {
			list, err := stateDirs(s, dirs)
			if err != nil && (local || len(dirs) > 0) {
				return err
			}
			found = len(list)
			out.lookAt(list, time.Now())
		}
		named := t.addr != "" || s.env("CROSSFADE_HTTP_ADDR") != "" || s.env("CONSUL_HTTP_ADDR") != ""
		if !local && (remote || named || found == 0) {
			out.ask(cmd.Context(), t)
		}
		slices.SortFunc(out.Findings, api.Finding.Compare)
		if err := o.print(s.out, out, out.print); err != nil {
			return err
		}
		switch {
		case len(out.Findings) == 0:
			return nil
		case out.Findings[0].Severity == api.Critical: // the worst come first
			return exitCode(2)
		default:
			return exitCode(1)
		}
	}
	return cmd
}

// lookAt adds the sidecars with these state directories.
func (c *checkedAll) lookAt(dirs []string, now time.Time) {
	for _, dir := range dirs {
		l, err := sidecar.LookAt(dir)
		if err != nil {
			c.Findings = append(c.Findings, api.Finding{Severity: api.Critical, Subject: "state directory " + dir, Text: err.Error()})
			continue
		}
		one := checkedSidecar{ID: l.Status.ID, State: l.Status.State, LastUpdate: l.Status.XDS.LastUpdate, LastGood: l.LastGood.UTC(), StateDir: dir}
		if l.Status.XDS.Connected {
			one.Server = l.Status.XDS.Server
		}
		if l.LastGood.IsZero() {
			one.LastGood = time.Time{}
		}
		if l.Status.Certificate != nil {
			one.Certificate = l.Status.Certificate.NotAfter
		}
		if !l.Alive && one.State != sidecar.Stopped {
			one.State, one.Server = "gone", ""
		}
		c.Sidecars = append(c.Sidecars, one)
		c.Findings = append(c.Findings, l.Check(now)...)
	}
}

// ask adds what a server says. That none answers is a finding like any other.
func (c *checkedAll) ask(ctx context.Context, t *target) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	c.Server = t.httpAddr()
	var health api.Health
	if err := t.call(ctx, http.MethodGet, "/v1/crossfade/health", nil, &health); err != nil {
		c.Findings = append(c.Findings, api.Finding{Severity: api.Critical, Subject: "server " + c.Server, Text: err.Error()})
		return
	}
	c.Findings = append(c.Findings, health.Findings...)
}

func (c checkedAll) print(w io.Writer) {
	if len(c.Sidecars) > 0 {
		fmt.Fprintln(w, "Sidecar\tState\tServer\tLast update\tLast good\tCertificate until")
		for _, r := range c.Sidecars {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.State, orNobody(r.Server), moment(r.LastUpdate), moment(r.LastGood), moment(r.Certificate))
		}
		fmt.Fprintln(w)
	}
	if len(c.Findings) == 0 {
		fmt.Fprintln(w, "nothing is stale")
		return
	}
	fmt.Fprintln(w, "Severity\tSubject\tSince\tFinding")
	for _, f := range c.Findings {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", f.Severity, f.Subject, moment(f.Since), clip(f.Text, maxSaid))
	}
}

// moment is a time for people; "-" for none.
func moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}
