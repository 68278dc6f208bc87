package server

import (
	"fmt"
	"runtime/debug"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
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
	own      map[xds.Type]xds.Resources
	problems []proxy.Problem // set beside an error too
}

// input is what one sidecar is decided from.
func (m *mesh) input(in catalog.Instance, snap *catalog.Snapshot, entries *config.Set, known map[string]struct{}) proxy.Input {
	return proxy.Input{
		Instance: in, Config: entries, Datacenter: m.datacenter, TrustDomain: m.trustDomain, DefaultAllow: m.defaultAllow, AllowEscapeHatches: m.allowHatches, BindAny: m.bindAny, ConsulCallers: m.consulCallers,
		Known:     func(service string) bool { _, ok := known[service]; return ok },
		Addresses: snap.Addresses,
	}
}

// make builds for one sidecar. It may be called by several goroutines.
func (m *mesh) make(in catalog.Instance, snap *catalog.Snapshot, entries *config.Set, known map[string]struct{}) (made, error) {
	return m.makeOf(m.input(in, snap, entries, known))
}

func (m *mesh) makeOf(in proxy.Input) (out made, err error) {
	err = isolated(func() error {
		out.proxy, out.problems = m.decide(in)
		own, unread, err := m.memo.encode(out.proxy)
		out.own, out.problems = own, append(out.problems, unread...)
		return err
	})
	if err != nil {
		out.problems = append(out.problems, proxy.Problem{
			Service: in.Instance.Service.Proxy.DestinationServiceName, Subject: "sidecar " + in.Instance.Service.ID,
			Reason: "its configuration cannot be built, it keeps the one it has; the server's log says why",
		})
	}
	return out, err
}

// makeEndpoints builds one endpoint resource.
func makeEndpoints(snap *catalog.Snapshot, ref proxy.EndpointsRef, names proxy.Names, filters *proxy.Filters) (res *xds.Resource, problems []proxy.Problem, err error) {
	err = isolated(func() error {
		made := proxy.BuildEndpoints(snap, ref, names, filters)
		problems = made.Problems
		res, err = xds.NewResource(xds.EndpointType, made.ClusterName, envoy.Endpoints(made))
		return err
	})
	return res, problems, err
}
