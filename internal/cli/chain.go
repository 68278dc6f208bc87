package cli

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// chaining is what decides which chain is shown.
type chaining struct {
	service, datacenter, protocol string
	source                        string   // a caller; none: nobody in particular
	entries                       []string // files; none: the server's
}

func newChain(s streams) *cobra.Command {
	var c chaining
	var format string
	cmd := &cobra.Command{
		Use:   "chain SERVICE",
		Short: "Show what becomes of requests for a service",
		Long: `Show the chain that service-router, -splitter and -resolver entries make for a service:
its routes, and for each leg what it was meant to get and what it gets now. A leg
without a healthy instance gets nothing, unless a failover stands in.

With --source the table, or JSON, also shows the ways by which that caller's requests
travel, as a traffic-shift divides them and as they are divided now.

With --config the chain is made from files alone; nothing is known of instances then.`,
		Example: `  crossfade chain catalog
  crossfade chain catalog --source storefront
  crossfade chain catalog -o svg > catalog.svg
  crossfade chain catalog --config splitter.hcl --config resolver.hcl`,
		Args: exactly("SERVICE"),
	}
	t := addTarget(cmd, s)
	addChoice(cmd, &format, "output", "o", "table", `"table" for people, "json" for machines, "dot" for Graphviz, "svg" for a picture`, "table", "json", "dot", "svg")
	cmd.Flags().StringVar(&c.datacenter, "dc", "", "datacenter in which the service is looked for (default: the server's; dc1 with --config)")
	addChoice(cmd, &c.protocol, "protocol", "", "", "what the caller says that the service speaks, instead of what entries say", config.TCP, config.HTTP, config.HTTP2, config.GRPC)
	cmd.Flags().StringVar(&c.source, "source", "", "calling service whose ways are shown")
	cmd.Flags().StringArrayVar(&c.entries, "config", nil, "file of a configuration entry, instead of a server's; may be given several times")
	complete(cmd, "config", written())
	complete(cmd, "dc", words())
	complete(cmd, "source", t.serviceNames())
	cmd.ValidArgsFunction = first(t.serviceNames())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c.service = args[0]
		var view routing.View
		var err error
		if len(c.entries) > 0 {
			view, err = c.offline(s)
		} else {
			q := url.Values{}
			for name, value := range map[string]string{"dc": c.datacenter, "protocol": c.protocol, "source": c.source} {
				if value != "" {
					q.Set(name, value)
				}
			}
			err = t.call(cmd.Context(), http.MethodGet, "/v1/crossfade/chain/"+url.PathEscape(c.service)+"?"+q.Encode(), nil, &view)
		}
		if err != nil {
			return err
		}
		switch format {
		case "dot":
			_, err = io.WriteString(s.out, graphOf(view).dot())
		case "svg":
			_, err = io.WriteString(s.out, graphOf(view).svg())
		default:
			err = (&output{format}).print(s.out, view, func(w io.Writer) { printChain(w, view) })
		}
		return err
	}
	return cmd
}

// offline makes the chain from files.
func (c chaining) offline(s streams) (view routing.View, err error) {
	var entries []config.Entry
	var errs []error
	for _, file := range c.entries {
		b, err := readFile(s, file)
		if err == nil {
			var e config.Entry
			if e, err = config.DecodeEntry(file, b); err == nil {
				entries = append(entries, e)
			}
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return view, err
	}
	req := routing.Request{Config: config.NewSet(entries...), Service: c.service, Datacenter: c.datacenter, Protocol: c.protocol}
	if req.Datacenter == "" {
		req.Datacenter = "dc1"
	}
	chain, _ := routing.Compile(req)
	view = chain.View(nil)
	if c.source != "" {
		view.Pair = chain.PairOf(c.source, req.Config.TrafficShift(c.source, c.service), nil)
	}
	return view, nil
}

// printChain says the chain in words, and then in figures.
func printChain(w io.Writer, v routing.View) {
	fmt.Fprint(w, v.Words)
	if v.LastGood {
		fmt.Fprintf(w, "\nThis is the chain of the last entries that made one, and it is in force. Those that are there now make none: %s\n", v.Broken)
	}
	fmt.Fprintln(w, "\nRoute\tTarget\tWanted\tEffective\tHealthy")
	for _, r := range v.Routes {
		for _, l := range r.Legs {
			fmt.Fprintf(w, "%s\t%s\t%.2f\t%.2f\t%s\n", clip(r.Match, maxSaid), l.Target, l.Wanted, l.Effective, healthyOf(l.Healthy))
			for _, f := range l.Failover {
				fmt.Fprintf(w, "\telse %s\t\t\t%s\n", f.Target, healthyOf(f.Healthy))
			}
		}
	}
	if v.Pair == nil {
		return
	}
	entry := "no traffic-shift"
	if v.Pair.Entry != "" {
		entry = "traffic-shift/" + v.Pair.Entry
	}
	fmt.Fprintf(w, "\nWays from %s (%s)\nWay\tTo\tWanted\tEffective\tHealthy\n", v.Pair.Source, entry)
	for _, way := range v.Pair.Ways {
		fmt.Fprintf(w, "%s\t%s\t%.2f\t%.2f\t%s\n", way.Way, way.To, way.Wanted, way.Effective, healthyOf(way.Healthy))
	}
}

func healthyOf(n *int) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprint(*n)
}
