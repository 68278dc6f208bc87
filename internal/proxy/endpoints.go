package proxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/identity"
)

// Endpoints is where the sidecars of one target are. It is the same for all
// callers.
type Endpoints struct {
	ClusterName string
	Service     string
	Datacenter  string
	// Endpoints are sorted by address, then port; no two share both. Empty when
	// no instance is in service.
	Endpoints []Endpoint
	// Problems are instances that were left out for their address.
	Problems []Problem
}

// Endpoint is one sidecar, or one instance that speaks mTLS itself.
type Endpoint struct {
	Address string // an IP
	Port    int
	Weight  int // relative to its peers, 1 or more
}

// BuildEndpoints finds the sidecars of a service in snap's datacenter. An instance
// is left out when it, or the service instance that it stands for, is critical.
func BuildEndpoints(snap *catalog.Snapshot, trustDomain, service string) Endpoints {
	id := identity.SPIFFE{TrustDomain: trustDomain, Datacenter: snap.Datacenter, Service: service}
	out := Endpoints{ClusterName: id.SNI(), Service: service, Datacenter: snap.Datacenter}
	apps := instancesByID(snap.Set(service))
	for _, in := range snap.Connect(service) {
		weight := in.Weight()
		if in.Service.Kind == catalog.ConnectProxy {
			if app, ok := apps[instanceKey{in.Node.Name, in.Service.Proxy.DestinationServiceID}]; ok {
				weight = behind(in, app)
			}
		}
		if weight == 0 {
			continue
		}
		subject := fmt.Sprintf("instance %q on node %q", in.Service.ID, in.Node.Name)
		addr, err := netip.ParseAddr(in.Address())
		if err != nil {
			out.Problems = append(out.Problems, Problem{Service: service, Subject: subject,
				Reason: fmt.Sprintf("address %q is no IP address: register it with one, nobody can reach it", in.Address())})
			continue
		}
		if in.Service.Port < 1 || in.Service.Port > 65535 {
			out.Problems = append(out.Problems, Problem{Service: service, Subject: subject,
				Reason: fmt.Sprintf("port %d is out of range: nobody can reach it", in.Service.Port)})
			continue
		}
		out.Endpoints = append(out.Endpoints, Endpoint{Address: addr.String(), Port: in.Service.Port, Weight: weight})
	}
	// Of two registrations of one address the heavier stays: the other is most
	// likely what a previous owner of the port left behind.
	slices.SortFunc(out.Endpoints, func(x, y Endpoint) int {
		return cmp.Or(cmp.Compare(x.Address, y.Address), cmp.Compare(x.Port, y.Port), -cmp.Compare(x.Weight, y.Weight))
	})
	out.Endpoints = slices.CompactFunc(out.Endpoints, func(x, y Endpoint) bool { return x.Address == y.Address && x.Port == y.Port })
	slices.SortFunc(out.Problems, Problem.Compare)
	return out
}

type instanceKey struct{ node, id string }

func instancesByID(set *catalog.Set) map[instanceKey]catalog.Instance {
	if set == nil {
		return nil
	}
	out := make(map[instanceKey]catalog.Instance, len(set.Instances))
	for _, in := range set.Instances {
		out[instanceKey{in.Node.Name, in.Service.ID}] = in
	}
	return out
}

// behind is the weight of a sidecar whose app is known: the worse of both states
// counts, and the app's own weights unless the sidecar was given other than
// Consul's defaults.
func behind(sidecar, app catalog.Instance) int {
	if sidecar.Status() == catalog.Critical || app.Status() == catalog.Critical {
		return 0
	}
	w := sidecar.Service.Weights
	if w == (catalog.Weights{}) || w == (catalog.Weights{Passing: 1, Warning: 1}) {
		w = app.Service.Weights
	}
	if sidecar.Status() == catalog.Warning || app.Status() == catalog.Warning {
		return max(1, w.Warning)
	}
	return max(1, w.Passing)
}
