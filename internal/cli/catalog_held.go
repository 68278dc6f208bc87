package cli

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/api"
)

func newCatalogHeld(s streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "held",
		Short: "Show instances that the endpoint guard holds, and those left out",
		Long: `Show the instances that the endpoint guard holds: the registry no longer has them and nothing
explains it, or it has them and many nodes fell silent at once. They stay in use until they are
registered again, their absence is explained, or crossfade catalog release lets them go. Instances
that are left out alone, as for a port that cannot be, are listed below.`,
		Example: `  crossfade catalog held
  crossfade catalog held -o json`,
		Args: exactly(),
	}
	t, o := addTarget(cmd, s), addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var held api.CatalogHeld
		if err := t.call(cmd.Context(), http.MethodGet, "/v1/crossfade/catalog/held", nil, &held); err != nil {
			return err
		}
		return o.print(s.out, held, func(w io.Writer) { showHeld(w, held) })
	}
	return cmd
}

func showHeld(w io.Writer, held api.CatalogHeld) {
	switch {
	case !held.Guard.On:
		fmt.Fprintln(w, "The endpoint guard is off: nothing is held.")
	case len(held.Services) == 0:
		fmt.Fprintln(w, "Nothing is held.")
	default:
		fmt.Fprintln(w, "Service\tInstance\tNode\tAddress\tState\tSince\tKept by")
	}
	for _, h := range held.Services {
		row := func(state string, list []api.HeldInstance) {
			for _, in := range list {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s:%d\t%s\t%s\t%s\n", h.Service, in.ID, in.Node, in.Address, in.Port, state, h.Since.Format(time.RFC3339), cmp.Or(h.KeptBy, "-"))
			}
		}
		row("gone", h.Gone)
		row("silent", h.Silent)
	}
	for _, h := range held.Services {
		fmt.Fprintf(w, "\n%s.\n", h.Why)
	}
	if len(held.LeftOut) > 0 {
		fmt.Fprintln(w, "\nLeft out\tReason")
	}
	for _, l := range held.LeftOut {
		fmt.Fprintf(w, "%s\t%s\n", l.Service, l.Reason)
	}
}

func newCatalogDecision(s streams, verb, short, long string) *cobra.Command {
	cmd := &cobra.Command{
		Use: verb + " SERVICE", Short: short, Long: long, Args: exactly("SERVICE"),
		Example: "  crossfade catalog " + verb + " catalog",
	}
	t := addTarget(cmd, s)
	cmd.ValidArgsFunction = first(t.heldServices())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var done api.HeldDecision
		if err := t.call(cmd.Context(), http.MethodPut, "/v1/crossfade/catalog/"+verb+"/"+url.PathEscape(args[0]), nil, &done); err != nil {
			return err
		}
		what := map[string]string{"release": "may go", "keep": "stay until they are registered again or released"}[verb]
		fmt.Fprintf(s.out, "%d instances of %s %s: said %s at %s\n", done.Instances, done.Service, what, done.By, done.Time.Format(time.RFC3339))
		return nil
	}
	return cmd
}
