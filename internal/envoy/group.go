package envoy

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	aggregatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/aggregate/v3"
	compositev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/composite/v3"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// groupCluster is a cluster of clusters: composite for requests, whose attempts go
// through its list one by one, aggregate for connections, which a composite resets.
func (b *builder) groupCluster(g proxy.Group) *clusterv3.Cluster {
	out := &clusterv3.Cluster{
		Name:                          g.Name,
		AltStatName:                   g.StatName,
		PerConnectionBufferLimitBytes: number(bufferLimit),
		LbPolicy:                      clusterv3.Cluster_CLUSTER_PROVIDED,
		CircuitBreakers:               once(b, g.Limits, func() *clusterv3.CircuitBreakers { return breakers(g.Limits) }),
	}
	if out.AltStatName == out.Name {
		out.AltStatName = ""
	}
	var kind string
	var config proto.Message
	if g.Requests {
		list := &compositev3.ClusterConfig{}
		for _, m := range g.Members {
			list.Clusters = append(list.Clusters, &compositev3.ClusterConfig_ClusterEntry{Name: m})
		}
		kind, config = "envoy.clusters.composite", list
	} else {
		// Without this a member is only passed over when all of it is unhealthy and panic
		// routing is off, which it is on the members.
		out.CommonLbConfig = once(b, "common lb", commonLB)
		kind, config = "envoy.clusters.aggregate", &aggregatev3.ClusterConfig{Clusters: g.Members}
		out.ConnectTimeout = seconds(5) // of no connection: those are its members'
	}
	out.ClusterDiscoveryType = &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{Name: kind, TypedConfig: b.pack(config)}}
	return out
}
