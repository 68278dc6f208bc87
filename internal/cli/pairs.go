package cli

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/api"
)

func newPairs(s streams) *cobra.Command {
	var only api.Filter
	cmd := &cobra.Command{
		Use:   "pairs",
		Short: "Show the ledger: all pairs, their shares, and whether they can go back",
		Long: `Show the ledger: every pair that a registered sidecar declares as an upstream, or that has
a traffic-shift of its own; and callers past their sidecar, of stage "outside", where plaintext
came from an address at which one service alone has instances.

Stage says which ways are open. Shares are those wanted; Measured is what the last minute's
attempts took, by way with how many of them succeeded and the p99 in milliseconds. Attempts
count, not outcomes: one that failed and was saved by a retry on another way is a failure of
its way. Callee sidecars are the destination's instances that have one, of all. Acked are the
source's sidecars whose Envoy has acknowledged all that it was told, of those connected, of
those registered. Shift is what moves or watches the shares. Revertible says whether
crossfade revert would work now, and why.`,
		Example: `  crossfade pairs
  crossfade pairs --destination catalog -o json
  crossfade pairs --watch
  crossfade pairs show storefront catalog`,
		Args: exactly(),
	}
	t, o := addTarget(cmd, s), addOutput(cmd)
	cmd.Flags().StringVar(&only.Source, "source", "", "only pairs of this source")
	cmd.Flags().StringVar(&only.Destination, "destination", "", "only pairs of this destination")
	complete(cmd, "source", t.sources())
	complete(cmd, "destination", t.destinations())
	cmd.AddCommand(newPairsShow(s))
	again := addWatch(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return again.run(cmd.Context(), s, o, func() error {
			rows := []api.Pair{}
			if err := t.call(cmd.Context(), http.MethodGet, only.Path(), nil, &rows); err != nil {
				return err
			}
			return o.print(s.out, rows, func(w io.Writer) { printLedger(w, rows) })
		})
	}
	return cmd
}

func printLedger(w io.Writer, rows []api.Pair) {
	fmt.Fprintln(w, "Source\tDestination\tStage\tShares\tMeasured\tCallee sidecars\tAcked\tShift\tRevertible")
	for _, p := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d/%d\t%d/%d/%d\t%s\t%s: %s\n", p.Source, p.Destination, cmp.Or(p.Stage, "-"), cmp.Or(p.Shares.String(), "-"), measured(p),
			p.Callee.Sidecars, p.Callee.Instances, p.Sidecars.Acknowledged, p.Sidecars.Connected, p.Sidecars.Registered,
			shiftInShort(p.Shift), revertible(p.Revertible), p.Revertible.Why)
	}
}

// revertible is "yes", or "no since 15:04:05".
func revertible(r api.Revertible) string {
	if r.Since.IsZero() {
		return r.State
	}
	format := time.TimeOnly
	if time.Since(r.Since) > 20*time.Hour {
		format = time.DateTime
	}
	return r.State + " since " + r.Since.Local().Format(format)
}

// measured is "legacy 50.2% ok 100% p99 3.1ms, mtls …".
func measured(p api.Pair) string {
	if p.Measured == nil {
		return "-"
	}
	var out []string
	for _, w := range p.Ways {
		if w.Attempts > 0 {
			out = append(out, fmt.Sprintf("%s %.4g%% ok %.4g%% p99 %.3gms", w.Way, p.Measured.Of(w.Way), 100*w.Success, w.P99))
		}
	}
	return strings.Join(out, ", ")
}

func shiftInShort(at *api.ShiftStatus) string {
	switch {
	case at == nil:
		return "-"
	case at.Held && at.Status == "running" && at.GuardOff:
		return "guard off"
	case at.Held && at.Status == "running":
		return "watched"
	case at.Wait != "":
		return fmt.Sprintf("to %s %s, waits: %s", at.To, at.Status, at.Wait)
	}
	return fmt.Sprintf("to %s %s", at.To, at.Status)
}

func newPairsShow(s streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show SOURCE DESTINATION",
		Short: "Show all that is known of one pair, and its history",
		Long: `Show all that is known of one pair: what crossfade pairs shows, the source's sidecars that
do not run all that they should and why, and the history of the traffic-shift that decides,
the newest change first. The old way is probed anew.`,
		Example: "  crossfade pairs show storefront catalog",
		Args:    exactly("SOURCE", "DESTINATION"),
	}
	t, o := addTarget(cmd, s), addOutput(cmd)
	again := addWatch(cmd)
	cmd.ValidArgsFunction = t.pairArgs()
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return again.run(cmd.Context(), s, o, func() error {
			var p api.PairDetail
			if err := t.call(cmd.Context(), http.MethodGet, api.PairName{Source: args[0], Destination: args[1]}.Path(), nil, &p); err != nil {
				return err
			}
			return o.print(s.out, p, func(w io.Writer) { showPair(w, p) })
		})
	}
	return cmd
}

func showPair(w io.Writer, p api.PairDetail) {
	fmt.Fprintf(w, "Pair:\t%s\n", p.PairName)
	if !p.Declared && p.Stage != "outside" {
		fmt.Fprintf(w, "Declared:\tno registered sidecar of %s names %s as an upstream\n", p.Source, p.Destination)
	}
	fmt.Fprintf(w, "Stage:\t%s\n", cmp.Or(p.Stage, "-"))
	fmt.Fprintf(w, "Shares wanted:\t%s\n", cmp.Or(p.Shares.String(), "-"))
	fmt.Fprintf(w, "Last minute:\t%s\n", measured(p.Pair))
	for _, f := range p.Failing {
		fmt.Fprintf(w, "Failing:\t%s: %s, %d times\n", f.Way, clip(f.What, maxSaid), f.Count)
	}
	entry := "none: all goes by mtls"
	if p.Stage == "outside" {
		entry = "nobody: " + p.Source + " does not call its sidecar"
	}
	if p.Entry != "" {
		entry = fmt.Sprintf("traffic-shift/%s, index %d", p.Entry, p.Index)
	}
	fmt.Fprintf(w, "Decided by:\t%s\n", entry)
	if c := p.Changed; c != nil {
		fmt.Fprintf(w, "Since:\t%s, %s by %s\n", orDash(c.Time), c.What, orNobody(c.Who))
	}
	if l := p.Legacy; l != nil {
		host := ""
		if l.Host != "" {
			host = ", Host " + l.Host
		}
		fmt.Fprintf(w, "Legacy address:\t%s%s\n", l.Address, host)
	}
	fmt.Fprintf(w, "Sidecars of %s:\t%d registered, %d connected, %d have acknowledged all\n", p.Source, p.Sidecars.Registered, p.Sidecars.Connected, p.Sidecars.Acknowledged)
	fmt.Fprintf(w, "Instances of %s:\t%d, %d healthy, %d with a sidecar\n", p.Destination, p.Callee.Instances, p.Callee.Healthy, p.Callee.Sidecars)
	fmt.Fprintf(w, "Revertible:\t%s: %s\n", revertible(p.Revertible), p.Revertible.Why)
	if !p.LastPlaintext.IsZero() {
		fmt.Fprintf(w, "Last plaintext:\t%s, from a host of %s\n", orDash(p.LastPlaintext), p.Source)
	}
	if p.Unsaved != "" {
		fmt.Fprintf(w, "Not saved:\tthe shares are in force, the server's disk takes nothing: %s\n", clip(p.Unsaved, maxSaid))
	}
	for _, why := range p.Blockers {
		fmt.Fprintf(w, "Blocks:\t%s\n", clip(why, maxSaid))
	}
	for _, text := range p.Notes {
		fmt.Fprintf(w, "Note:\t%s\n", clip(text, maxSaid))
	}
	if at := p.Shift; at != nil {
		what := fmt.Sprintf("from %s to %s, %s", at.From, at.To, at.Status)
		if at.Held {
			what = fmt.Sprintf("shares set by hand are watched, %s against %s: %s", at.To, at.From, at.Status)
		}
		if at.GuardOff {
			what += "; the shift guard is off, nothing is compared"
		}
		fmt.Fprintf(w, "Shift:\t%s\n", what)
		if at.Reason != "" && at.Breach == "" {
			fmt.Fprintf(w, "\t%s\n", clip(at.Reason, maxSaid))
		}
		for line := range strings.SplitSeq(strings.TrimSpace(at.Breach), "\n") {
			if line != "" {
				fmt.Fprintf(w, "Shift guard:\t%s\n", clip(strings.TrimSpace(line), 1000))
			}
		}
	}
	for _, b := range p.Behind {
		fmt.Fprintf(w, "Sidecar %s:\t%s\n", b.Sidecar, clip(b.Why, maxSaid))
	}
	if len(p.History) == 0 {
		return
	}
	fmt.Fprintln(w, "\nIndex\tTime\tWho\tWhat\tShares")
	for _, c := range p.History {
		shares := "-"
		if c.Shares != nil {
			shares = c.Shares.String()
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", c.Index, orDash(c.Time), orNobody(c.Who), c.What, shares)
	}
}

// pairNames completes with one side of all pairs that a filter lets through.
func (t *target) pairNames(only func() api.Filter, side func(api.Pair) string) cobra.CompletionFunc {
	return answers(t, func() string { return only().Path() }, func(all []api.Pair) []string {
		out := make([]string, 0, len(all))
		for _, p := range all {
			out = append(out, side(p))
		}
		return out
	})
}

func (t *target) sources() cobra.CompletionFunc {
	return t.pairNames(func() api.Filter { return api.Filter{} }, func(p api.Pair) string { return p.Source })
}

func (t *target) destinations() cobra.CompletionFunc {
	return t.pairNames(func() api.Filter { return api.Filter{} }, func(p api.Pair) string { return p.Destination })
}

// pairArgs completes SOURCE DESTINATION.
func (t *target) pairArgs() cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		switch len(args) {
		case 0:
			return t.sources()(cmd, args, typed)
		case 1:
			of := func() api.Filter { return api.Filter{Source: args[0]} }
			return t.pairNames(of, func(p api.Pair) string { return p.Destination })(cmd, args, typed)
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

// waysGiven completes a way, and leaves the percent to be typed.
func waysGiven() cobra.CompletionFunc {
	var list []string
	for _, way := range api.Ways() {
		list = append(list, way+"=")
	}
	return cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace)
}
