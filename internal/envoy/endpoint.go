package envoy

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// Endpoints is where a target's sidecars are. Without any it is still a resource,
// since a cluster waits for one. The targets of a split are localities of their own.
// An empty one is left out, so that what it would get goes to the others, unless
// it has its priority for itself: priorities count from 0 without a gap.
func Endpoints(e proxy.Endpoints) *endpointv3.ClusterLoadAssignment {
	out := &endpointv3.ClusterLoadAssignment{ClusterName: e.ClusterName}
	for _, g := range e.Groups {
		if len(g.Endpoints) == 0 && !alone(e.Groups, g.Priority) {
			continue
		}
		locality := &endpointv3.LocalityLbEndpoints{LbEndpoints: make([]*endpointv3.LbEndpoint, 0, len(g.Endpoints))}
		metadata := wayMetadata(g.Way)
		if g.Legacy != "" {
			metadata.FilterMetadata[wayNamespace].Fields[addressKey] = structpb.NewStringValue(g.Legacy)
		}
		if g.Name != "" {
			locality.Locality = &corev3.Locality{SubZone: g.Name}
			locality.LoadBalancingWeight = number(g.Weight)
			locality.Priority = g.Priority
			if metadata == nil {
				metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{}}
			}
			metadata.FilterMetadata[socketMatchKey] = partMetadata(g.Name)
		}
		for _, ep := range g.Endpoints {
			locality.LbEndpoints = append(locality.LbEndpoints, &endpointv3.LbEndpoint{
				HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socketAddress(ep.Address, ep.Port)}},
				HealthStatus:        corev3.HealthStatus_HEALTHY,
				LoadBalancingWeight: number(uint32(ep.Weight)),
				Metadata:            metadata,
			})
		}
		out.Endpoints = append(out.Endpoints, locality)
	}
	return out
}

// wayMetadata tells what counts attempts by which way an endpoint is reached; nil for mtls.
func wayMetadata(way string) *corev3.Metadata {
	if way == "" {
		return nil
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
		wayNamespace: {Fields: map[string]*structpb.Value{wayKey: structpb.NewStringValue(way)}},
	}}
}

// alone reports whether others follow a priority that has one group.
func alone(groups []proxy.EndpointGroup, priority uint32) bool {
	n, last := 0, uint32(0)
	for _, g := range groups {
		if g.Priority == priority {
			n++
		}
		last = max(last, g.Priority)
	}
	return n == 1 && priority < last
}
