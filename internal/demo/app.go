package demo

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/crossfade-mesh/crossfade/client"
	"github.com/crossfade-mesh/crossfade/internal/demo/shop"
)

// App is the body of the command that runs one of the shop's apps:
//
//	SERVICE --instance NAME --listen HOST:PORT
//
// It serves until ctx ends. For each upstream it opens a pair of the client library, which
// takes both addresses and the percent of each from the environment, as whoever starts an app
// sets them, and follows the percent in KV: with CROSSFADE_LEGACY_ADDR_<name> alone it calls
// the old mesh, with NOMAD_UPSTREAM_ADDR_<name> alone its sidecar.
func App(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("demo-app: want a service: storefront, catalog, assignments or payments")
	}
	a := shop.App{Service: args[0], Upstreams: map[string]shop.Road{}}
	f := flag.NewFlagSet("demo-app", flag.ContinueOnError)
	f.StringVar(&a.Instance, "instance", a.Service+"-1", "the name to answer under")
	f.StringVar(&a.Listen, "listen", "", "host:port to listen on")
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	if a.Listen == "" || f.NArg() > 0 {
		return fmt.Errorf("demo-app: app %q: want --listen HOST:PORT and no further arguments", a.Service)
	}
	for _, name := range shop.Upstreams(a.Service) {
		p, err := openPair(a.Service, name, os.Getenv)
		if err != nil {
			return fmt.Errorf("demo-app: app %q: %w", a.Service, err)
		}
		defer p.Close()
		a.Upstreams[name] = road(p, name)
	}
	return a.Serve(ctx)
}

// openPair is what an app does to be moved from outside, without a restart.
func openPair(source, destination string, getenv func(string) string) (*client.Pair, error) {
	o := client.Options{Source: source, Destination: destination, Getenv: getenv}
	if getenv("CONSUL_HTTP_ADDR") == "" {
		o.Source = "" // there is no KV to follow
	}
	return client.Open(o)
}

// road leads by the pair's way of the moment. The old mesh tells services apart by Host.
func road(p *client.Pair, destination string) shop.Road {
	return func() (addr, host string) {
		c, err := p.Choose("")
		if err != nil {
			return "127.0.0.1:9", "" // nobody is there, and the call says so
		}
		if c.Way == client.Old {
			return c.Addr, destination + "." + oldDomain
		}
		return c.Addr, c.Addr
	}
}
