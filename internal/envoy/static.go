package envoy

import (
	"cmp"
	"fmt"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
)

// StaticBootstrap writes everything into one bootstrap that needs no control
// plane, as JSON: for `envoy --mode validate`, for tests, and for reading. It
// differs from what an Envoy gets over ADS only in where each part comes from.
func StaticBootstrap(o BootstrapOptions, r Resources, endpoints []*endpointv3.ClusterLoadAssignment, secrets ...*tlsv3.Secret) ([]byte, error) {
	boot, err := o.common()
	if err != nil {
		return nil, err
	}
	s := &static{builder: &builder{}, routes: map[string]*routev3.RouteConfiguration{}, extensions: map[string]*corev3.TypedExtensionConfig{}, endpoints: map[string]*endpointv3.ClusterLoadAssignment{}}
	for _, rc := range r.Routes {
		s.routes[rc.Name] = rc
	}
	for _, e := range r.Extensions {
		s.extensions[e.Name] = e
	}
	for _, e := range endpoints {
		s.endpoints[e.ClusterName] = e
	}

	out := &bootstrapv3.Bootstrap_StaticResources{Secrets: secrets}
	for _, c := range r.Clusters {
		out.Clusters = append(out.Clusters, s.cluster(c))
	}
	for _, l := range r.Listeners {
		out.Listeners = append(out.Listeners, s.listener(l))
	}
	boot.StaticResources = out
	for _, rt := range r.Runtimes {
		boot.LayeredRuntime.Layers = append(boot.LayeredRuntime.Layers, &bootstrapv3.RuntimeLayer{
			Name: rt.Name, LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: rt.Layer},
		})
	}
	boot.LayeredRuntime.Layers = append(boot.LayeredRuntime.Layers, adminLayer())
	if s.err != nil {
		return nil, fmt.Errorf("static bootstrap %q: %w", o.NodeID, s.err)
	}
	return marshal(boot)
}

// static puts what resources refer to by name in place of the reference.
type static struct {
	*builder
	routes     map[string]*routev3.RouteConfiguration
	extensions map[string]*corev3.TypedExtensionConfig
	endpoints  map[string]*endpointv3.ClusterLoadAssignment
}

func (s *static) cluster(c *clusterv3.Cluster) *clusterv3.Cluster {
	c = proto.CloneOf(c)
	if c.GetType() == clusterv3.Cluster_EDS {
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
		name := cmp.Or(c.GetEdsClusterConfig().GetServiceName(), c.Name)
		c.EdsClusterConfig = nil
		c.LoadAssignment = s.endpoints[name]
		if c.LoadAssignment == nil {
			c.LoadAssignment = &endpointv3.ClusterLoadAssignment{ClusterName: c.Name}
		}
	}
	s.socket(c.TransportSocket, &tlsv3.UpstreamTlsContext{})
	for _, m := range c.TransportSocketMatches {
		s.socket(m.TransportSocket, &tlsv3.UpstreamTlsContext{})
	}
	return c
}

func (s *static) listener(l *listenerv3.Listener) *listenerv3.Listener {
	l = proto.CloneOf(l)
	for _, chain := range chains(l) {
		s.socket(chain.TransportSocket, &tlsv3.DownstreamTlsContext{})
		for _, f := range chain.Filters {
			s.filter(f)
		}
	}
	return l
}

func (s *static) filter(f *listenerv3.Filter) {
	if f.GetConfigDiscovery() != nil {
		e := s.extensions[f.Name]
		if e == nil {
			s.fail(fmt.Errorf("extension %q is not among the resources", f.Name))
			return
		}
		f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: e.TypedConfig}
		return
	}
	m := &hcmv3.HttpConnectionManager{}
	if !f.GetTypedConfig().MessageIs(m) {
		return
	}
	if err := f.GetTypedConfig().UnmarshalTo(m); err != nil {
		s.fail(err)
		return
	}
	for _, h := range m.HttpFilters {
		if h.GetConfigDiscovery() == nil {
			continue
		}
		e := s.extensions[h.Name]
		if e == nil {
			s.fail(fmt.Errorf("extension %q is not among the resources", h.Name))
			return
		}
		h.ConfigType = &hcmv3.HttpFilter_TypedConfig{TypedConfig: e.TypedConfig}
	}
	if m.GetRds() == nil {
		return // has its routes in it
	}
	routes := s.routes[m.GetRds().GetRouteConfigName()]
	if routes == nil {
		s.fail(fmt.Errorf("routes %q are not among the resources", m.GetRds().GetRouteConfigName()))
		return
	}
	m.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: routes}
	f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: s.pack(m)}
}

// tlsContext is an upstream's or a downstream's.
type tlsContext interface {
	proto.Message
	GetCommonTlsContext() *tlsv3.CommonTlsContext
}

// socket makes the TLS context, which ctx is of the type of, look its secrets up
// in the bootstrap: an SDS reference without a source does.
func (s *static) socket(ts *corev3.TransportSocket, ctx tlsContext) {
	if !ts.GetTypedConfig().MessageIs(ctx) {
		return // none, or somebody's own
	}
	if err := ts.GetTypedConfig().UnmarshalTo(ctx); err != nil {
		s.fail(err)
		return
	}
	common := ctx.GetCommonTlsContext()
	for _, c := range common.GetTlsCertificateSdsSecretConfigs() {
		c.SdsConfig = nil
	}
	if roots := common.GetCombinedValidationContext().GetValidationContextSdsSecretConfig(); roots != nil {
		roots.SdsConfig = nil
	}
	ts.ConfigType = &corev3.TransportSocket_TypedConfig{TypedConfig: s.pack(ctx)}
}

func (s *static) fail(err error) {
	if s.err == nil {
		s.err = err
	}
}
