package envoy

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// Endpoints is where a target's sidecars are. Without any it is still a resource,
// since a cluster waits for one.
func Endpoints(e proxy.Endpoints) *endpointv3.ClusterLoadAssignment {
	out := &endpointv3.ClusterLoadAssignment{ClusterName: e.ClusterName}
	if len(e.Endpoints) == 0 {
		return out
	}
	locality := &endpointv3.LocalityLbEndpoints{LbEndpoints: make([]*endpointv3.LbEndpoint, 0, len(e.Endpoints))}
	for _, ep := range e.Endpoints {
		locality.LbEndpoints = append(locality.LbEndpoints, &endpointv3.LbEndpoint{
			HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socketAddress(ep.Address, ep.Port)}},
			HealthStatus:        corev3.HealthStatus_HEALTHY,
			LoadBalancingWeight: number(uint32(ep.Weight)),
		})
	}
	out.Endpoints = []*endpointv3.LocalityLbEndpoints{locality}
	return out
}
