package envoy

import (
	"net/netip"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

const (
	// bufferLimit bounds what Envoy holds for a peer that reads slowly, in bytes
	// per connection and direction; a longer request body cannot be retried.
	bufferLimit = 64 << 10

	// minRetries may be under way whatever a retry budget says: an instance that stops
	// refuses all that is just on its way to it at once.
	minRetries = 25
	// minGroupRetries is that of a group. Its requests are counted at its members, and a budget
	// allows it no more than this.
	minGroupRetries = 100

	// upstreamStreams is how many requests share a connection before another is
	// opened: one connection is one worker at the callee.
	upstreamStreams = 100

	// appIdle is after how many seconds an idle HTTP/1.1 connection is closed: sooner
	// than any common server does, so that no request is sent on one which is just going.
	appIdle = 1

	// streamWindow is how many bytes a peer may send ahead on one HTTP/2 stream.
	// connectionWindow is the same for all streams of a connection together: so much
	// that it never runs out, since then requests whose answers nobody reads would
	// stop all others on their connection. Twice, since a receiver says what it has
	// taken only when that is a third or half of the window.
	streamWindow     = 256 << 10
	connectionWindow = 2 * upstreamStreams * streamWindow
)

// upstreamCluster is a target reached through its sidecars, or on an old way.
func (b *builder) upstreamCluster(c proxy.Cluster) *clusterv3.Cluster {
	out := &clusterv3.Cluster{
		Name:                          c.Name,
		ConnectTimeout:                duration(c.ConnectTimeout),
		PerConnectionBufferLimitBytes: number(bufferLimit),
		CommonLbConfig:                once(b, "common lb", commonLB),
		IgnoreHealthOnHostRemoval:     true,
		CircuitBreakers:               once(b, c.Limits, func() *clusterv3.CircuitBreakers { return breakers(c.Limits, minRetries) }),
		OutlierDetection:              once(b, c.Outlier, func() *clusterv3.OutlierDetection { return outlier(c.Outlier) }),
		UpstreamConnectionOptions:     once(b, "tcp keepalive", upstreamKeepalive),
	}
	b.balance(out, c.LoadBalancer)
	switch {
	case c.Split != nil:
		b.split(out, c)
	case c.Way == "":
		out.TransportSocket = b.upstreamTLS(c.SNI, c.PeerURI, c.Multiplexed)
	}
	switch {
	case c.Way == config.WayLegacy:
		legacy(out, c.Legacy)
	case c.Unreachable == "":
		out.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
		out.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: once(b, "ads", ads)}
		if name := c.EndpointsName(); name != c.Name {
			out.EdsClusterConfig.ServiceName = name
		}
	default:
		out.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
		out.LoadAssignment = &endpointv3.ClusterLoadAssignment{ClusterName: c.Name}
	}
	switch {
	case c.Multiplexed:
		out.TypedExtensionProtocolOptions = once(b, "http of upstreams", b.upstreamHTTP)
	case config.IsHTTP(c.Protocol):
		out.TypedExtensionProtocolOptions = once(b, "http of old ways "+c.Protocol, func() map[string]*anypb.Any { return b.oldHTTP(c.Protocol) })
	}
	return out
}

// split divides connections among the localities of one cluster, each with its own
// identity: a change of weights, or of who is there, is one of endpoints alone.
func (b *builder) split(out *clusterv3.Cluster, c proxy.Cluster) {
	out.CommonLbConfig = commonLB()
	out.CommonLbConfig.LocalityConfigSpecifier = &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
		LocalityWeightedLbConfig: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig{},
	}
	for _, p := range c.Split {
		socket := b.plaintext()
		if p.Way == "" {
			socket = b.upstreamTLS(p.SNI, p.PeerURI, c.Multiplexed)
		}
		out.TransportSocketMatches = append(out.TransportSocketMatches, &clusterv3.Cluster_TransportSocketMatch{
			Name: p.Name(), Match: partMetadata(p.Name()), TransportSocket: socket,
		})
	}
}

// legacy is the one address of the old mesh. A host name is asked for every 5 s.
func legacy(out *clusterv3.Cluster, at proxy.Place) {
	kind := clusterv3.Cluster_STATIC
	if _, err := netip.ParseAddr(at.Address); err != nil {
		kind = clusterv3.Cluster_STRICT_DNS
		out.DnsLookupFamily = clusterv3.Cluster_V4_PREFERRED
	}
	out.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: kind}
	out.LoadAssignment = oneEndpoint(out.Name, socketAddress(at.Address, at.Port))
	out.LoadAssignment.Endpoints[0].LbEndpoints[0].GetEndpoint().Hostname = at.Host
	out.LoadAssignment.Endpoints[0].LbEndpoints[0].Metadata = wayMetadata(config.WayLegacy)
}

// socketMatchKey is where Envoy looks for an endpoint's transport socket.
const socketMatchKey = "envoy.transport_socket_match"

// partMetadata tells the endpoints of one part of a split from others.
func partMetadata(sni string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{"part": structpb.NewStringValue(sni)}}
}

func commonLB() *clusterv3.Cluster_CommonLbConfig {
	return &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{}, UpdateMergeWindow: seconds(0)}
}

func upstreamKeepalive() *clusterv3.UpstreamConnectionOptions {
	return &clusterv3.UpstreamConnectionOptions{TcpKeepalive: &corev3.TcpKeepalive{
		KeepaliveTime: number(keepaliveIdle), KeepaliveInterval: number(keepaliveInterval), KeepaliveProbes: number(keepaliveProbes),
	}}
}

func (b *builder) upstreamHTTP() map[string]*anypb.Any {
	h2 := http2Options()
	h2.ConnectionKeepalive = &corev3.KeepaliveSettings{Interval: seconds(30), Timeout: seconds(5)}
	return b.httpOptions(&httpv3.HttpProtocolOptions{CommonHttpProtocolOptions: upstreamCommon(600), UpstreamProtocolOptions: explicitHTTP2(h2)})
}

// upstreamCommon are the limits of answers, and after how many seconds an idle
// connection is closed.
func upstreamCommon(idle int64) *corev3.HttpProtocolOptions {
	return &corev3.HttpProtocolOptions{
		IdleTimeout:          seconds(idle),
		MaxHeadersCount:      number(maxHeaders + headroom),
		MaxResponseHeadersKb: number(maxHeadersKB + headroomKB),
	}
}

// oldHTTP is what an app, or an old mesh's proxy, is spoken to in. It is not pinged:
// gRPC's servers hang up on whoever does that more than once in five minutes.
func (b *builder) oldHTTP(protocol string) map[string]*anypb.Any {
	if protocol == config.HTTP {
		return b.httpOptions(&httpv3.HttpProtocolOptions{CommonHttpProtocolOptions: upstreamCommon(appIdle), UpstreamProtocolOptions: explicitHTTP1()})
	}
	return b.httpOptions(&httpv3.HttpProtocolOptions{CommonHttpProtocolOptions: upstreamCommon(600), UpstreamProtocolOptions: explicitHTTP2(http2Options())})
}

// http2Options are those of every HTTP/2 hop.
func http2Options() *corev3.Http2ProtocolOptions {
	return &corev3.Http2ProtocolOptions{
		MaxConcurrentStreams:        number(upstreamStreams),
		InitialStreamWindowSize:     number(streamWindow),
		InitialConnectionWindowSize: number(connectionWindow),
		AllowConnect:                true,
		// One malformed message costs its own stream, not the others of the connection.
		OverrideStreamErrorOnInvalidHttpMessage: truth(true),
	}
}

func breakers(l proxy.Limits, minRetries uint32) *clusterv3.CircuitBreakers {
	out := &clusterv3.CircuitBreakers_Thresholds{
		MaxConnections:     number(l.MaxConnections),
		MaxPendingRequests: number(l.MaxPendingRequests),
		MaxRequests:        number(l.MaxRequests),
	}
	if l.RetryBudget {
		out.RetryBudget = &clusterv3.CircuitBreakers_Thresholds_RetryBudget{
			BudgetPercent:       &typev3.Percent{Value: 20},
			MinRetryConcurrency: number(minRetries),
		}
	} else {
		out.MaxRetries = number(l.MaxRequests)
	}
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{out}}
}

func outlier(o proxy.Outlier) *clusterv3.OutlierDetection {
	return &clusterv3.OutlierDetection{
		Interval:                               duration(o.Interval),
		BaseEjectionTime:                       duration(o.BaseEjection),
		MaxEjectionPercent:                     number(o.MaxPercent),
		AlwaysEjectOneHost:                     truth(o.AlwaysOne),
		SplitExternalLocalOriginErrors:         true,
		ConsecutiveGatewayFailure:              number(o.GatewayFailures),
		EnforcingConsecutiveGatewayFailure:     number(100),
		ConsecutiveLocalOriginFailure:          number(o.GatewayFailures),
		EnforcingConsecutiveLocalOriginFailure: number(100),
		Consecutive_5Xx:                        number(o.Consecutive5xx),
		EnforcingConsecutive_5Xx:               number(o.Enforcing5xx),
		EnforcingSuccessRate:                   number(0),
		EnforcingLocalOriginSuccessRate:        number(0),
		EnforcingFailurePercentage:             number(0),
		EnforcingFailurePercentageLocalOrigin:  number(0),
	}
}

// localCluster is the app behind the public listener.
func (b *builder) localCluster(in *proxy.Inbound) *clusterv3.Cluster {
	out := b.appCluster(LocalApp, in.Protocol, in.App)
	if in.Admission != nil {
		// The address comes with each connection that is admitted.
		out.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
		out.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
		out.LoadAssignment = nil
	}
	return out
}

// appCluster is the app: over loopback, in the app's own protocol.
func (b *builder) appCluster(name, protocol string, app proxy.App) *clusterv3.Cluster {
	address, kind := socketAddress(app.Address, app.Port), clusterv3.Cluster_STATIC
	if app.SocketPath != "" {
		address = pipeAddress(app.SocketPath, 0)
	} else if _, err := netip.ParseAddr(app.Address); err != nil {
		kind = clusterv3.Cluster_STRICT_DNS
	}
	out := &clusterv3.Cluster{
		Name:                          name,
		ClusterDiscoveryType:          &clusterv3.Cluster_Type{Type: kind},
		ConnectTimeout:                duration(app.ConnectTimeout),
		PerConnectionBufferLimitBytes: number(bufferLimit),
		LoadAssignment:                oneEndpoint(name, address),
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections: number(65536), MaxPendingRequests: number(65536), MaxRequests: number(65536),
		}}},
	}
	common := &corev3.HttpProtocolOptions{MaxHeadersCount: number(maxHeaders), MaxResponseHeadersKb: number(maxHeadersKB)}
	switch protocol {
	case config.HTTP:
		common.IdleTimeout = seconds(appIdle)
		out.TypedExtensionProtocolOptions = b.httpOptions(&httpv3.HttpProtocolOptions{
			CommonHttpProtocolOptions: common,
			UpstreamProtocolOptions:   explicitHTTP1(),
		})
	case config.HTTP2, config.GRPC:
		out.TypedExtensionProtocolOptions = b.httpOptions(&httpv3.HttpProtocolOptions{CommonHttpProtocolOptions: common, UpstreamProtocolOptions: explicitHTTP2(http2Options())})
	}
	return out
}

func oneEndpoint(cluster string, address *corev3.Address) *endpointv3.ClusterLoadAssignment {
	return &endpointv3.ClusterLoadAssignment{
		ClusterName: cluster,
		Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address}},
		}}}},
	}
}

func explicitHTTP1() *httpv3.HttpProtocolOptions_ExplicitHttpConfig_ {
	return &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{EnableTrailers: true}},
	}}
}

func explicitHTTP2(o *corev3.Http2ProtocolOptions) *httpv3.HttpProtocolOptions_ExplicitHttpConfig_ {
	return &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: o},
	}}
}

func (b *builder) httpOptions(o *httpv3.HttpProtocolOptions) map[string]*anypb.Any {
	return map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": b.pack(o)}
}
