package main

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/fleet"
)

// everyone is the service that every sidecar calls.
const everyone = "everyone"

// own is how many further services each sidecar calls.
const own = 5

// registry is what is registered. Service number 0 is everyone. Each service has as many
// instances, each a sidecar that is its own row; the first of them, as many as there are streams, are connected
// and have the row of their app beside them. The others are served elsewhere.
type registry struct {
	settings
}

func (r registry) service(i int) string {
	if i == 0 {
		return everyone
	}
	return fmt.Sprintf("svc-%05d", i)
}

// each is the number of instances of a service.
func (r registry) each() int { return (r.Instances - r.Streams) / r.Services }

// connected is the number of its instances that have a stream.
func (r registry) connected(service int) int {
	n := r.Streams / r.Services
	if service < r.Streams%r.Services {
		n++
	}
	return n
}

// instance is one sidecar in the registry.
type instance struct {
	service, number int
	generation      int // of a deploy: others have other IDs
}

func (r registry) sidecar(i int) instance {
	return instance{service: i % r.Services, number: i / r.Services}
}

func (r registry) id(in instance) string {
	if in.generation > 0 {
		return fmt.Sprintf("%s-%d-v%d", r.service(in.service), in.number, in.generation)
	}
	return fmt.Sprintf("%s-%d", r.service(in.service), in.number)
}

func (r registry) proxyID(in instance) string { return r.id(in) + "-sidecar-proxy" }

func (r registry) alive(in instance) string { return "service:" + r.proxyID(in) + ":alive" }

// nodes is how many hosts there are, each with an instance of as many services as a service has instances.
func (r registry) nodes() int { return r.Services }

func (r registry) node(i int) string { return fmt.Sprintf("node-%05d", i) }

// host is the number of the node that an instance is on.
func (r registry) host(in instance) int { return (in.service + in.number) % r.nodes() }

func (r registry) nodeOf(in instance) string { return r.node(r.host(in)) }

func (r registry) address(node int) string {
	return net.IPv4(10, 1, byte(node>>8), byte(node)).String()
}

// calls are the services that an instance of a service calls. Each but everyone has
// own × STREAMS/SERVICES callers.
func (r registry) calls(service int) []int {
	out := []int{0}
	for k := range own {
		if to := (service + 1 + 7*k) % r.Services; to != 0 {
			out = append(out, to)
		}
	}
	return out
}

// callers is how many connected sidecars call a service.
func (r registry) callers(service int) (n int) {
	if service == 0 {
		return r.Streams
	}
	for k := range own {
		n += r.connected((service - 1 - 7*k + 10*r.Services) % r.Services)
	}
	return n
}

// sidecars are the connected ones.
func (r registry) sidecars() []fleet.Sidecar {
	out := make([]fleet.Sidecar, r.Streams)
	for i := range out {
		in := r.sidecar(i)
		out[i] = fleet.Sidecar{Service: r.service(in.service), ID: r.proxyID(in), Node: r.nodeOf(in)}
	}
	return out
}

// op is an operation of a transaction, in Consul's words.
type op map[string]map[string]any

// sidecarOf is an instance's connect-proxy, as it is registered.
func (r registry) sidecarOf(in instance) catalog.Service {
	name := r.service(in.service)
	var upstreams []catalog.Upstream
	for k, to := range r.calls(in.service) {
		upstreams = append(upstreams, catalog.Upstream{DestinationName: r.service(to), LocalBindPort: 7100 + k})
	}
	return catalog.Service{
		Kind: catalog.ConnectProxy, ID: r.proxyID(in), Name: name + "-sidecar-proxy", Port: r.port(in) + 10_000,
		Proxy: &catalog.Proxy{
			DestinationServiceName: name, DestinationServiceID: r.id(in), LocalServicePort: r.port(in), Upstreams: upstreams,
		},
	}
}

func (r registry) port(in instance) int { return 10_000 + in.service%10_000 }

// app is the instance itself; only those that are connected have a row for it.
func (r registry) app(in instance) catalog.Service {
	return catalog.Service{ID: r.id(in), Name: r.service(in.service), Port: r.port(in)}
}

func (r registry) alone(in instance) bool { return in.number >= r.connected(in.service) }

func (r registry) check(in instance, status catalog.Status) catalog.Check {
	return catalog.Check{Node: r.nodeOf(in), CheckID: r.alive(in), Name: "crossfade sidecar alive", Status: status, ServiceID: r.proxyID(in)}
}

// fill puts everything into an empty registry.
func (r registry) fill(dir string) error {
	s, err := store.Open(store.Options{Dir: dir, Datacenter: "dc1"})
	if err != nil {
		return err
	}
	err = s.Update(func(w *store.Writer) error {
		defaults := &config.ProxyDefaults{Kind: config.KindProxyDefaults, Name: config.Global, Config: map[string]any{"protocol": "http"}}
		if err := w.PutEntry(defaults, store.Author{Who: "bench", Time: time.Now()}); err != nil {
			return err
		}
		for i := range r.nodes() {
			if err := w.PutNode(catalog.Node{Name: r.node(i), Address: r.address(i)}); err != nil {
				return err
			}
		}
		return nil
	})
	for number := 0; err == nil && number < r.each(); number++ {
		err = s.Update(func(w *store.Writer) error {
			for service := range r.Services {
				in := instance{service: service, number: number}
				node := r.nodeOf(in)
				if !r.alone(in) {
					if err := w.PutService(node, r.app(in)); err != nil {
						return err
					}
				}
				if err := w.PutService(node, r.sidecarOf(in)); err != nil {
					return err
				}
				if err := w.PutCheck(r.check(in, catalog.Passing), nil); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return errors.Join(err, s.Close())
}

// set registers an instance's sidecar, and the check on it.
func (r registry) set(in instance) []op {
	return []op{{"Service": {"Verb": "set", "Node": r.nodeOf(in), "Service": r.sidecarOf(in)}}, r.setCheck(in, catalog.Passing)}
}

func (r registry) setCheck(in instance, status catalog.Status) op {
	c := r.check(in, status)
	return op{"Check": {"Verb": "set", "Check": map[string]any{
		"Node": c.Node, "CheckID": c.CheckID, "Name": c.Name, "Status": c.Status, "ServiceID": c.ServiceID,
		"Output": "looked at", // one without has not run yet, and nobody believes it
	}}}
}

// drop deregisters an instance's sidecar.
func (r registry) drop(in instance) op {
	return op{"Service": {"Verb": "delete", "Node": r.nodeOf(in), "Service": map[string]any{
		"ID": r.proxyID(in), "Service": r.service(in.service) + "-sidecar-proxy",
	}}}
}

// all calls f for every instance.
func (r registry) all(f func(instance)) {
	for number := range r.each() {
		for service := range r.Services {
			f(instance{service: service, number: number})
		}
	}
}
