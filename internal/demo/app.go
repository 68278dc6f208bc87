package demo

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/crossfade-mesh/crossfade/internal/demo/shop"
)

// App is the body of the command that runs one of the shop's apps:
//
//	SERVICE --instance NAME --listen HOST:PORT
//
// It finds its upstreams in NOMAD_UPSTREAM_ADDR_<name>, as a sidecar sets them,
// and serves until ctx ends.
func App(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("demo-app: want a service: storefront, catalog, assignments or payments")
	}
	a := shop.App{Service: args[0], Upstreams: map[string]string{}}
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
		a.Upstreams[name] = os.Getenv("NOMAD_UPSTREAM_ADDR_" + name)
	}
	return a.Serve(ctx)
}
