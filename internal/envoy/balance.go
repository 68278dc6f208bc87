package envoy

import (
	"cmp"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// choiceCount is among how many instances the least busy is taken.
const choiceCount = 3

// balance sets how a cluster chooses an instance. Without a word it is the least
// busy of a few.
func (b *builder) balance(out *clusterv3.Cluster, lb *config.LoadBalancer) {
	out.LbPolicy, out.LbConfig = clusterv3.Cluster_LEAST_REQUEST, once(b, "least request", leastRequest)
	if lb == nil {
		return
	}
	switch lb.Policy {
	case "least_request":
		if c := lb.LeastRequestConfig; c != nil {
			out.LbConfig = &clusterv3.Cluster_LeastRequestLbConfig_{LeastRequestLbConfig: &clusterv3.Cluster_LeastRequestLbConfig{
				ChoiceCount: number(max(2, cmp.Or(c.ChoiceCount, choiceCount))),
			}}
		}
	case "round_robin":
		out.LbPolicy, out.LbConfig = clusterv3.Cluster_ROUND_ROBIN, nil
	case "random":
		out.LbPolicy, out.LbConfig = clusterv3.Cluster_RANDOM, nil
	case "maglev":
		out.LbPolicy, out.LbConfig = clusterv3.Cluster_MAGLEV, nil
	case "ring_hash":
		out.LbPolicy, out.LbConfig = clusterv3.Cluster_RING_HASH, nil
		if c := lb.RingHashConfig; c != nil {
			ring := &clusterv3.Cluster_RingHashLbConfig{}
			if c.MinimumRingSize > 0 {
				ring.MinimumRingSize = wrapperspb.UInt64(uint64(c.MinimumRingSize))
			}
			if c.MaximumRingSize > 0 {
				ring.MaximumRingSize = wrapperspb.UInt64(uint64(c.MaximumRingSize))
			}
			out.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: ring}
		}
	}
}

func leastRequest() *clusterv3.Cluster_LeastRequestLbConfig_ {
	return &clusterv3.Cluster_LeastRequestLbConfig_{LeastRequestLbConfig: &clusterv3.Cluster_LeastRequestLbConfig{ChoiceCount: number(choiceCount)}}
}

// hashPolicies are what of a request is hashed.
func hashPolicies(list []config.HashPolicy) []*routev3.RouteAction_HashPolicy {
	var out []*routev3.RouteAction_HashPolicy
	for _, h := range list {
		p := &routev3.RouteAction_HashPolicy{Terminal: h.Terminal}
		switch {
		case h.SourceIP:
			p.PolicySpecifier = &routev3.RouteAction_HashPolicy_ConnectionProperties_{
				ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true},
			}
		case h.Field == "header":
			p.PolicySpecifier = &routev3.RouteAction_HashPolicy_Header_{Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: h.FieldValue}}
		case h.Field == "query_parameter":
			p.PolicySpecifier = &routev3.RouteAction_HashPolicy_QueryParameter_{QueryParameter: &routev3.RouteAction_HashPolicy_QueryParameter{Name: h.FieldValue}}
		case h.Field == "cookie":
			cookie := &routev3.RouteAction_HashPolicy_Cookie{Name: h.FieldValue}
			if c := h.CookieConfig; c != nil {
				cookie.Path = c.Path
				if c.Session || c.TTL > 0 {
					cookie.Ttl = duration(c.TTL.Std())
				}
			}
			p.PolicySpecifier = &routev3.RouteAction_HashPolicy_Cookie_{Cookie: cookie}
		default:
			continue
		}
		out = append(out, p)
	}
	return out
}
