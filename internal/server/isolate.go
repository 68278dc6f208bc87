package server

import (
	"fmt"
	"runtime/debug"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/routing"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// isolated calls f and makes an error of a panic, so that a fault in what is built
// for one sidecar or service leaves all others alone.
func isolated(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("a fault in crossfade, please report it: %v\n%s", v, debug.Stack())
		}
	}()
	return f()
}

// made is what is built for one sidecar.
type made struct {
	proxy    *proxy.Proxy
	own      map[xds.Type]map[string]*xds.Resource
	problems []proxy.Problem // set beside an error too
}

// make builds for one sidecar, from chains that compile gives.
func (m *mesh) make(in catalog.Instance, entries *config.Set, compile func(routing.Request) (routing.Chain, []proxy.Problem)) (out made, err error) {
	err = isolated(func() error {
		out.proxy, out.problems = m.decide(proxy.Input{
			Instance: in, Config: entries, Datacenter: m.datacenter, TrustDomain: m.trustDomain, DefaultAllow: m.defaultAllow, AllowEscapeHatches: m.allowHatches,
			Chain: compile,
			Known: func(service string) bool { _, ok := m.known[service]; return ok },
		})
		own, unread, err := encode(out.proxy)
		out.own, out.problems = own, append(out.problems, unread...)
		return err
	})
	if err != nil {
		out.problems = append(out.problems, proxy.Problem{
			Service: in.Service.Proxy.DestinationServiceName, Subject: "sidecar " + in.Service.ID,
			Reason: "its configuration cannot be built, it keeps the one it has; the server's log says why",
		})
	}
	return out, err
}

// makeEndpoints builds one endpoint resource.
func (m *mesh) makeEndpoints(snap *catalog.Snapshot, ref proxy.EndpointsRef) (res *xds.Resource, problems []proxy.Problem, err error) {
	err = isolated(func() error {
		made := proxy.BuildEndpoints(snap, ref)
		problems = made.Problems
		res, err = xds.NewResource(xds.EndpointType, made.ClusterName, envoy.Endpoints(made))
		return err
	})
	return res, problems, err
}
