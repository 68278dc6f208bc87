package cli

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/api"
)

func newRevert(s streams) *cobra.Command {
	var in api.RevertRequest
	var local, release bool
	var over time.Duration
	var dirs []string
	cmd := &cobra.Command{
		Use:   "revert [SOURCE DESTINATION]",
		Short: "Put all requests of pairs back on the old way",
		Long: `Put all requests of a pair, of all callers of a service, or of everything that was
shifted back on the old way, in one write: legacy if the traffic-shift that decides has an
address for it, else direct, the destination's own port. It prints the shares before and
after, and returns when every sidecar that this changes has acknowledged it.

A pair whose old way takes no requests stays as it is, and is named: for legacy the server
has to be able to connect to the address, for direct one instance of the destination has to
be healthy. The others go back all the same, and the exit code is 1. --force goes back
without asking. The entries stay, and config history says "reverted" of them. A second
revert changes nothing; to undo one, run config rollback.

A pair that was never shifted has no old way, and is not touched: its requests go by mtls.

What is open stays where it is, WebSockets, streams and connections of tcp for as long as they
last; pairs show counts them. --cut has the callers' sidecars close them, once nothing new
goes there: connection by connection, evenly over the time that --over says, the idlest
first. Requests that end within that time are not touched, but those that share a connection
end with it. It prints how many were closed, and which sidecars could not.

With --local no server is needed: the sidecars of this host put all their shifted pairs back on
the old way from what they have on disk, and hold that, over restarts too, until --release.
Servers see it, and what they send of these pairs meanwhile is kept and not put in force. It
takes the user that the sidecars run as.`,
		Example: `  crossfade revert storefront catalog
  crossfade revert storefront catalog --cut --over 1m
  crossfade revert --service catalog
  crossfade revert --all
  crossfade revert --local
  crossfade revert --local --state-dir /var/lib/crossfade/storefront-1 --release`,
	}
	t, wait := addTarget(cmd, s), addWaiting(cmd)
	f := cmd.Flags()
	f.StringVar(&in.Service, "service", "", "a destination: revert all its callers")
	f.BoolVar(&in.All, "all", false, "revert everything that was shifted")
	f.BoolVar(&in.Force, "force", false, "go back even where nothing takes requests on the old way")
	f.BoolVar(&in.Cut, "cut", false, "close what is open on other ways, spread over a time")
	f.DurationVar(&over, "over", defaultCutOver, "with --cut: the time over which connections are closed")
	f.BoolVar(&local, "local", false, "on this host, without a server: hold old ways until --release")
	f.BoolVar(&release, "release", false, "with --local: let go, servers decide again")
	f.StringArrayVar(&dirs, "state-dir", nil, "with --local: of a sidecar, or a folder with those of several; may be given several times (default $XDG_STATE_HOME/crossfade)")
	complete(cmd, "service", t.destinations())
	cmd.Args = pairOr("SOURCE DESTINATION, --service DESTINATION, --all or --local", func() int { return count(in.Service != "", in.All, local) })
	cmd.ValidArgsFunction = t.pairArgs()
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := wait.check(cmd); err != nil {
			return err
		}
		if !local && (release || len(dirs) > 0) {
			return usageError{errors.New("revert: --release and --state-dir go with --local"), cmd.CommandPath() + " --help"}
		}
		switch {
		case in.Cut && local:
			return usageError{errors.New("revert: --cut takes a server, and --local needs none: give one of them"), cmd.CommandPath() + " --help"}
		case !in.Cut && cmd.Flags().Changed("over"):
			return usageError{errors.New("revert: --over goes with --cut"), cmd.CommandPath() + " --help"}
		case over < 0:
			return usageError{fmt.Errorf("revert: --over %s: want 0 or more", over), cmd.CommandPath() + " --help"}
		case in.Cut:
			in.Over = over.String()
		}
		if local {
			return revertLocal(cmd, s, dirs, release)
		}
		if len(args) > 0 {
			in.Pairs = []api.PairName{{Source: args[0], Destination: args[1]}}
		}
		began := time.Now()
		var done api.Changed
		if err := t.post(cmd, "/v1/crossfade/revert", in, &done); err != nil {
			return err
		}
		if len(done.Pairs) == 0 {
			fmt.Fprintln(s.out, "nothing to revert: no traffic-shift is there")
			return nil
		}
		err := wait.tellPairs(cmd, t, "revert", "reverted", done, began)
		if done.Cut != "" && !wait.not {
			err = errors.Join(err, t.tellCut(cmd, done.Cut))
		}
		return err
	}
	return cmd
}

const (
	defaultCutOver = 30 * time.Second
	// cutAskEvery is how often a server is asked how far sidecars are.
	cutAskEvery = 200 * time.Millisecond
)

// tellCut waits until sidecars have closed what was open, and says what became of it.
func (t *target) tellCut(cmd *cobra.Command, id string) error {
	for {
		var now api.Cut
		if err := t.call(cmd.Context(), http.MethodGet, api.CutPath(id), nil, &now); err != nil {
			return fmt.Errorf("cut %q: it is not known what became of it: %w", id, err)
		}
		if now.Done {
			return t.printCut(now)
		}
		select {
		case <-cmd.Context().Done():
			return cmd.Context().Err()
		case <-time.After(cutAskEvery):
		}
	}
}

func (t *target) printCut(c api.Cut) error {
	sidecars, failed := map[string]bool{}, map[string]bool{}
	var errs []error
	for _, s := range c.Sidecars {
		sidecars[s.Node+"/"+s.Sidecar] = true
		if s.State != api.CutDone {
			failed[s.Node+"/"+s.Sidecar] = true
			errs = append(errs, fmt.Errorf("cut %q: sidecar %q: %s: %s", s.String(), s.Sidecar, s.State, clip(s.Why, maxSaid)))
		}
	}
	fmt.Fprintf(t.s.out, "closed %d requests, streams or connections of tcp, on %d/%d sidecars\n", c.Closed, len(sidecars)-len(failed), len(sidecars))
	if len(errs) > maxNamed {
		errs = append(errs[:maxNamed], fmt.Errorf("cut: and %d more", len(errs)-maxNamed))
	}
	return errors.Join(errs...)
}
