package relay

import (
	"net/netip"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	runtimev3 "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	"google.golang.org/protobuf/proto"

	envoyconfig "github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/shift"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// Cut is an order to close what is open to a destination on other ways than the one to keep.
type Cut struct {
	proxy.Cut
	// InForce says that Envoy has acknowledged shares, routes and endpoints that lead nothing
	// of the destination anywhere but on the way to keep.
	InForce bool
}

// Cuts are the orders that Envoy's runtime layer brought, by destination, sorted.
func (r *Relay) Cuts() (out []Cut) {
	r.mu.Lock()
	defer r.mu.Unlock()
	layer := r.layerLocked()
	if layer == nil {
		return nil
	}
	shares := envoyconfig.Shifts(layer)
	for _, c := range envoyconfig.Cuts(layer) {
		out = append(out, Cut{Cut: c, InForce: r.onlyOnLocked(c.Destination, c.Keep, shares[c.Destination])})
	}
	return out
}

// OnlyOn reports whether what Envoy has acknowledged leads a destination's requests by one way
// alone.
func (r *Relay) OnlyOn(destination, way string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	layer := r.layerLocked()
	return layer != nil && r.onlyOnLocked(destination, way, envoyconfig.Shifts(layer)[destination])
}

// layerLocked is the runtime layer that Envoy has acknowledged, or nil.
func (r *Relay) layerLocked() *runtimev3.Runtime {
	var layer runtimev3.Runtime
	if !read(r.good[xds.RuntimeType][envoyconfig.RuntimeName], &layer) {
		return nil
	}
	return &layer
}

// onlyOnLocked reports whether what Envoy runs leads a destination's requests by one way alone.
func (r *Relay) onlyOnLocked(destination, way, shares string) bool {
	_, s, err := envoyconfig.ParseShift(shares)
	found := false
	for _, t := range []xds.Type{xds.RouteType, xds.EndpointType} {
		for name, held := range r.held[t] {
			k := xds.Key{Type: t, Name: name}
			if isSpare(name) || destinationOf(k) != destination || t == xds.EndpointType && !strings.HasPrefix(name, sharedWays) {
				continue
			}
			found = true
			if over := r.overlayLocked(k); over != nil { // on the old way by order on the host
				if r.acked[k] != over.Version {
					return false
				}
				continue
			}
			if r.acked[k] != held.Version || err != nil || s.Hundredths(way) != 100_00 || !leadsOnly(held, destination, shift.Way(way)) {
				return false
			}
		}
	}
	return found
}

// leadsOnly reports whether routes, or endpoints that are divided among ways, lead to a
// destination by one way alone. Where routes lead to other services does not matter.
func leadsOnly(res *xds.Resource, destination string, way shift.Way) bool {
	if res.Type == xds.EndpointType {
		var load endpointv3.ClusterLoadAssignment
		if !read(res, &load) {
			return false
		}
		for ep := range endpointsIn(&load) {
			if wayAt(ep) != way {
				return false
			}
		}
		return true
	}
	var routes routev3.RouteConfiguration
	if !read(res, &routes) {
		return false
	}
	for _, host := range routes.GetVirtualHosts() {
		for _, route := range host.GetRoutes() {
			clusters := []string{route.GetRoute().GetCluster()}
			for _, w := range route.GetRoute().GetWeightedClusters().GetClusters() {
				if w.GetWeight().GetValue() > 0 {
					clusters = append(clusters, w.GetName())
				}
			}
			for _, name := range clusters {
				if to, by := reachedBy(name); to == destination && by != way {
					return false
				}
			}
		}
	}
	return true
}

// groupedWays begins the names of clusters of clusters; package proxy makes them, and the name
// of the first of them follows.
const groupedWays = "group~"

// reachedBy is the service and the way of a cluster of requests, or of its endpoints, by its
// name: "way~subset.service.default.datacenter.internal....".
func reachedBy(cluster string) (destination string, way shift.Way) {
	name := strings.TrimPrefix(cluster, groupedWays)
	way = shift.MTLS
	if before, after, found := strings.Cut(name, "~"); found && slices.Contains(shift.Ways(), shift.Way(before)) {
		way, name = shift.Way(before), after
	}
	before, _, found := strings.Cut(name, ".default.")
	if !found {
		return "", way
	}
	return before[strings.LastIndexByte(before, '.')+1:], way
}

// Places are where what is open to a destination, on other ways than one, may lead.
type Places struct {
	Addresses map[netip.AddrPort]struct{}
	// Shared are addresses that lead elsewhere as well, so that nobody can tell what is open
	// there from what is not meant. They are not in Addresses.
	Shared   map[netip.AddrPort]struct{}
	Clusters []string // of requests
	TCP      bool     // connections, and no requests
}

// Places says where that is, by all that Envoy was told of since it started: it keeps the
// connections of endpoints that are gone.
func (r *Relay) Places(destination, keep string) Places {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := Places{Addresses: map[netip.AddrPort]struct{}{}, Shared: map[netip.AddrPort]struct{}{}}
	others := map[netip.AddrPort]bool{}
	for u := range r.been {
		if u.destination != destination || u.way == shift.Way(keep) {
			others[u.at] = true
		} else {
			out.Addresses[u.at] = struct{}{}
		}
	}
	for name, res := range r.held[xds.ClusterType] {
		to, way := reachedBy(name)
		if to == destination && way != shift.Way(keep) && !strings.HasPrefix(name, groupedWays) {
			out.Clusters = append(out.Clusters, name)
		}
		var c clusterv3.Cluster
		if read(res, &c) {
			for ep := range endpointsIn(c.GetLoadAssignment()) {
				if at, ok := addressOf(ep); ok {
					others[at] = true // the old mesh's, or the app beside this sidecar
				}
			}
		}
	}
	for name := range r.held[xds.EndpointType] {
		out.TCP = out.TCP || strings.HasPrefix(name, sharedWays) && destinationOf(xds.Key{Type: xds.EndpointType, Name: name}) == destination
	}
	for at := range out.Addresses {
		if others[at] {
			out.Shared[at] = struct{}{}
			delete(out.Addresses, at)
		}
	}
	slices.Sort(out.Clusters)
	return out
}

// use is an address, and what it was told of for.
type use struct {
	at          netip.AddrPort
	destination string
	way         shift.Way
}

// maxBeen bounds the uses that are remembered; those that Envoy has now always are.
const maxBeen = 20_000

// rememberLocked notes where endpoints lead. Only those that are divided among ways are decoded
// as a whole.
func (r *Relay) rememberLocked(res *xds.Resource) {
	if isSpare(res.Name) {
		return
	}
	body, err := res.Body()
	if err != nil {
		return
	}
	if len(r.been) > maxBeen {
		r.been = map[use]struct{}{}
		for name, other := range r.held[xds.EndpointType] {
			if name != res.Name {
				r.rememberLocked(other)
			}
		}
	}
	if strings.HasPrefix(res.Name, sharedWays) {
		var load endpointv3.ClusterLoadAssignment
		if proto.Unmarshal(body, &load) != nil {
			return
		}
		destination := destinationOf(xds.Key{Type: xds.EndpointType, Name: res.Name})
		for ep := range endpointsIn(&load) {
			if at, ok := addressOf(ep); ok {
				r.been[use{at, destination, wayAt(ep)}] = struct{}{}
			}
		}
		return
	}
	destination, way := reachedBy(res.Name)
	for at := range addressesIn(body) {
		r.been[use{at, destination, way}] = struct{}{}
	}
}

// endpointsIn lists the endpoints of all localities.
func endpointsIn(load *endpointv3.ClusterLoadAssignment) func(func(*endpointv3.LbEndpoint) bool) {
	return func(yield func(*endpointv3.LbEndpoint) bool) {
		for _, group := range load.GetEndpoints() {
			for _, ep := range group.GetLbEndpoints() {
				if !yield(ep) {
					return
				}
			}
		}
	}
}

// wayAt is the way by which an endpoint is reached.
func wayAt(ep *endpointv3.LbEndpoint) shift.Way {
	if way := metadataWay(ep.GetMetadata()); way != "" {
		return way
	}
	return shift.MTLS
}

func addressOf(ep *endpointv3.LbEndpoint) (netip.AddrPort, bool) {
	at := ep.GetEndpoint().GetAddress().GetSocketAddress()
	if at == nil {
		return netip.AddrPort{}, false
	}
	ip, err := netip.ParseAddr(at.GetAddress())
	return netip.AddrPortFrom(ip.Unmap(), uint16(at.GetPortValue())), err == nil
}
