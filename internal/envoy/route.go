package envoy

import (
	"fmt"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// retryOn names failures after which the callee cannot have seen the request, so
// that a retry is safe whatever the method.
const retryOn = "connect-failure,refused-stream,reset-before-request"

// outboundRoutes are what the app's requests to an upstream follow.
func (b *builder) outboundRoutes(r proxy.Route) *routev3.RouteConfiguration {
	host := &routev3.VirtualHost{Name: r.Name, Domains: []string{"*"}}
	for _, route := range r.Chain.Routes {
		host.Routes = append(host.Routes, b.outboundRoute(r, route))
	}
	return &routev3.RouteConfiguration{Name: r.Name, VirtualHosts: []*routev3.VirtualHost{host}}
}

func (b *builder) outboundRoute(r proxy.Route, route routing.Route) *routev3.Route {
	out := &routev3.Route{Match: everything()}
	if len(route.Legs) == 1 {
		if c, ok := b.proxy.Cluster(route.Legs[0].Target); ok && c.Unreachable != "" {
			text := explain(fmt.Sprintf("upstream %q", r.Chain.Service), c.Unreachable, r.Chain.Protocol)
			out.Action = &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 503, Body: inlineString(text)}}
			return out
		}
	}
	action := &routev3.RouteAction{
		Timeout:     seconds(0),
		RetryPolicy: once(b, "retries", b.retries),
	}
	if len(route.Legs) == 1 {
		action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: b.clusterName(route.Legs[0].Target)}
	} else {
		legs := &routev3.WeightedCluster{}
		for _, l := range route.Legs {
			legs.Clusters = append(legs.Clusters, &routev3.WeightedCluster_ClusterWeight{Name: b.clusterName(l.Target), Weight: number(l.Weight)})
		}
		action.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: legs}
	}
	out.Action = &routev3.Route_Route{Route: action}
	return out
}

func (b *builder) retries() *routev3.RetryPolicy {
	return &routev3.RetryPolicy{
		RetryOn:    retryOn,
		NumRetries: number(2),
		RetryBackOff: &routev3.RetryPolicy_RetryBackOff{
			BaseInterval: duration(2 * time.Millisecond), MaxInterval: duration(20 * time.Millisecond),
		},
		RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
			Name:       "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: b.pack(&previoushostsv3.PreviousHostsPredicate{})},
		}},
		HostSelectionRetryMaxAttempts: 3,
	}
}

// inboundRoutes let callers through to the app as the intentions say.
func (b *builder) inboundRoutes(in *proxy.Inbound) *routev3.RouteConfiguration {
	action := &routev3.RouteAction{
		ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: LocalApp},
		Timeout:          duration(in.App.RequestTimeout),
	}
	if in.App.IdleTimeout > 0 {
		action.IdleTimeout = duration(in.App.IdleTimeout)
	}
	rules := map[string]*anypb.Any{httpRBAC: b.pack(b.requestIntentions(in.Intentions))}
	if in.Intentions.LookAtPaths() {
		rules[httpFilterState] = b.pack(b.pathForRules())
	}
	return &routev3.RouteConfiguration{Name: proxy.PublicListener, VirtualHosts: []*routev3.VirtualHost{{
		Name:                 proxy.PublicListener,
		Domains:              []string{"*"},
		Routes:               []*routev3.Route{{Match: everything(), Action: &routev3.Route_Route{Route: action}}},
		TypedPerFilterConfig: rules,
	}}}
}

func everything() *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
}

// clusterName is the cluster of a target. Proxy has one for every target it routes to.
func (b *builder) clusterName(t routing.Target) string {
	c, ok := b.proxy.Cluster(t)
	if !ok && b.err == nil {
		b.err = fmt.Errorf("target %q has no cluster", t)
	}
	return c.Name
}
