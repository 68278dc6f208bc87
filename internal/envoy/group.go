package envoy

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	compositev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/composite/v3"

	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// groupLimits is the key of a group's limits among the parts made once.
type groupLimits proxy.Limits

// groupCluster is a cluster of clusters, whose attempts go through its list one by one.
// Its bound of retries counts, while limits of connections are its members'.
func (b *builder) groupCluster(g proxy.Group) *clusterv3.Cluster {
	list := &compositev3.ClusterConfig{}
	for _, m := range g.Members {
		list.Clusters = append(list.Clusters, &compositev3.ClusterConfig_ClusterEntry{Name: m})
	}
	return &clusterv3.Cluster{
		Name:                          g.Name,
		AltStatName:                   g.StatName,
		PerConnectionBufferLimitBytes: number(bufferLimit),
		LbPolicy:                      clusterv3.Cluster_CLUSTER_PROVIDED,
		CircuitBreakers:               once(b, groupLimits(g.Limits), func() *clusterv3.CircuitBreakers { return breakers(g.Limits, minGroupRetries) }),
		ClusterDiscoveryType: &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
			Name: "envoy.clusters.composite", TypedConfig: b.pack(list),
		}},
	}
}
