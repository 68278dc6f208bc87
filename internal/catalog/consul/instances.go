package consul

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// entry is an element of /v1/health/service/:name.
type entry struct {
	Node    *catalog.Node
	Service *catalog.Service
	Checks  []*catalog.Check
}

// joinInstances turns the answer about one service into instances. One that cannot
// be used is left out; which, and why, is returned beside. An error means that the
// answer as a whole is not about this service.
func joinInstances(service string, entries []entry) (instances []catalog.Instance, bad map[string]bool, err error) {
	bad = map[string]bool{}
	type place struct{ node, id string }
	seen := map[place]bool{}
	for i, e := range entries {
		switch {
		case e.Node == nil || e.Service == nil || e.Node.Name == "" || e.Service.ID == "":
			return nil, nil, fmt.Errorf("instance %d has no node or no service, or one of them has no name", i)
		case !strings.EqualFold(e.Service.Name, service):
			return nil, nil, fmt.Errorf("instance %d belongs to service %q", i, e.Service.Name)
		case e.Service.Name != service:
			continue // Consul finds names whatever their case; this one has a watch of its own
		}
		why := problem(e)
		at := place{e.Node.Name, e.Service.ID}
		if why == "" && seen[at] {
			why = "the ID appears twice on this node"
		}
		if why != "" {
			bad[fmt.Sprintf("instance %q on node %q: %s", e.Service.ID, e.Node.Name, why)] = true
			continue
		}
		seen[at] = true
		if e.Service.Kind != catalog.ConnectProxy {
			e.Service.Proxy = nil // Consul gives every service an empty one
		} else {
			e.Service.Proxy.Upstreams = catalog.Declared(e.Service.Proxy.Upstreams)
		}
		// An address that Consul made up for transparent proxies; nobody registered it.
		delete(e.Service.TaggedAddresses, "consul-virtual")
		// The node's checks first, each group by ID: an order of Consul's own would be no change.
		slices.SortFunc(e.Checks, func(a, b *catalog.Check) int {
			return cmp.Or(cmp.Compare(a.ServiceID, b.ServiceID), cmp.Compare(a.CheckID, b.CheckID))
		})
		instances = append(instances, catalog.Instance{Node: e.Node, Service: e.Service, Checks: e.Checks})
	}
	return instances, bad, nil
}

// problem says why an instance cannot be used, or nothing.
func problem(e entry) string {
	s := e.Service
	switch {
	case s.SocketPath == "" && (s.Port < 1 || s.Port > 65535):
		return fmt.Sprintf("port %d is not between 1 and 65535", s.Port)
	case s.SocketPath == "" && s.Address == "" && e.Node.Address == "":
		return "neither the service nor the node has an address"
	case badWeight(s.Weights.Passing) || badWeight(s.Weights.Warning):
		return fmt.Sprintf("weights %d and %d: each is between 0 and %d", s.Weights.Passing, s.Weights.Warning, maxWeight)
	case s.Kind == catalog.ConnectProxy && (s.Proxy == nil || s.Proxy.DestinationServiceName == ""):
		return "a connect-proxy without Proxy.DestinationServiceName"
	}
	for _, c := range e.Checks {
		if c == nil || !c.Status.Valid() {
			return "a check whose status is not one of passing, warning, critical"
		}
	}
	return ""
}

// maxWeight is Consul's own limit.
const maxWeight = 65535

func badWeight(w int) bool { return w < 0 || w > maxWeight }

// sameInstances compares content, and whether it is the same registration. Other indexes do
// not count: Consul raises them on writes that change nothing.
func sameInstances(a, b []catalog.Instance) bool {
	return slices.EqualFunc(a, b, func(a, b catalog.Instance) bool {
		return reflect.DeepEqual(withoutIndex(a), withoutIndex(b))
	})
}

func withoutIndex(in catalog.Instance) catalog.Instance {
	node, service := *in.Node, *in.Service
	node.CreateIndex, node.ModifyIndex, service.ModifyIndex = 0, 0, 0
	checks := make([]*catalog.Check, 0, len(in.Checks))
	for _, c := range in.Checks {
		c := *c
		c.CreateIndex, c.ModifyIndex = 0, 0
		checks = append(checks, &c)
	}
	return catalog.Instance{Node: &node, Service: &service, Checks: checks}
}
