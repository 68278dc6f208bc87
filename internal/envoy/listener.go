package envoy

import (
	"fmt"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	inspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	networkrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	setfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// Seconds, seconds and a count: a peer whose host is gone is noticed within 45 s.
const (
	keepaliveIdle     = 30
	keepaliveInterval = 5
	keepaliveProbes   = 3
)

// inspectTimeout is how long a connection of protocol tcp may say nothing before it counts
// as one of plaintext whose caller waits for the app to speak.
const inspectTimeout = 250 * time.Millisecond

// handshakeTimeout is, in seconds, how long a caller may take to prove itself.
const handshakeTimeout = 10

// inboundListener is the public listener: mTLS outside, the app inside. Whether it takes
// plaintext as well is a matter of one more filter chain: nothing else of it depends on
// that, so that no connection of mTLS notices a change.
func (b *builder) inboundListener(in *proxy.Inbound) *listenerv3.Listener {
	var filters []*listenerv3.Filter
	if config.IsHTTP(in.Protocol) {
		filters = []*listenerv3.Filter{b.networkFilter(httpConnectionManager, b.inboundHTTP(in))}
	} else {
		tcp := b.tcpProxy(proxy.PublicListener, LocalApp, duration(in.App.IdleTimeout))
		if in.Admission != nil {
			filters = append(filters, discovered(AdmissionExtension, &setfilterstatev3.Config{}))
			tcp.UpstreamConnectMode = tcpv3.UpstreamConnectMode_ON_DOWNSTREAM_TLS_HANDSHAKE
			tcp.MaxEarlyDataBytes = number(0)
		}
		filters = append(filters, discovered(IntentionsExtension, &networkrbacv3.RBAC{}), b.networkFilter("envoy.filters.network.tcp_proxy", tcp))
	}
	l := &listenerv3.Listener{
		Name:             in.ListenerName,
		Address:          socketAddress(in.Address, in.Port),
		TrafficDirection: corev3.TrafficDirection_INBOUND,
		SocketOptions:    tcpKeepalive(),
		ListenerFilters: []*listenerv3.ListenerFilter{{
			Name:       "envoy.filters.listener.tls_inspector",
			ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: b.pack(&tlsinspectorv3.TlsInspector{})},
		}},
		ListenerFiltersTimeout: seconds(handshakeTimeout),
	}
	mtls := func(name string, match *listenerv3.FilterChainMatch) *listenerv3.FilterChain {
		return &listenerv3.FilterChain{
			Name: name, FilterChainMatch: match, Filters: filters,
			TransportSocket: b.downstreamTLS(in), TransportSocketConnectTimeout: seconds(handshakeTimeout),
		}
	}
	switch {
	case config.IsHTTP(in.Protocol):
		l.FilterChains = []*listenerv3.FilterChain{mtls("mtls", &listenerv3.FilterChainMatch{TransportProtocol: "tls"})}
		if in.Plaintext != nil {
			l.FilterChains = append(l.FilterChains, b.plaintextHTTP(in))
		}
	default:
		// A caller that waits for the app to speak first says nothing to tell it by, and an
		// app's own TLS is told from the mesh's by the name that is asked for. Without
		// plaintext whoever is slow to begin a handshake still may.
		l.ListenerFiltersTimeout, l.ContinueOnListenerFiltersTimeout = duration(inspectTimeout), true
		l.FilterChains = []*listenerv3.FilterChain{mtls("mtls", &listenerv3.FilterChainMatch{TransportProtocol: "tls", ServerNames: []string{"*.internal." + b.proxy.Identity.TrustDomain}})}
		if in.Plaintext != nil && !in.Plaintext.Apart {
			l.FilterChains = append(l.FilterChains, b.plaintextTCP(in))
		} else {
			l.FilterChains = append(l.FilterChains, mtls("mtls, any other", &listenerv3.FilterChainMatch{}))
		}
	}
	return b.listener(l, in.ExactBalance)
}

// exposedListener lets anybody call one path of the app. What its HTTP connection
// manager drops by default, a caller's word on its own certificate, stays dropped.
func (b *builder) exposedListener(e proxy.Exposed) *listenerv3.Listener {
	m := b.connectionManager(e.StatPrefix, "", e.App.Protocol)
	m.LocalReplyConfig = b.inboundReplies(b.proxy.Identity.Service, e.App.Protocol)
	m.UpgradeConfigs = nil
	m.EarlyHeaderMutationExtensions = []*corev3.TypedExtensionConfig{b.withoutEnvoysHeaders()}
	acceptHTTP10(m, b.proxy.Identity.Service)
	m.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
		Name: e.StatPrefix,
		VirtualHosts: []*routev3.VirtualHost{{Name: e.StatPrefix, Domains: []string{"*"}, Routes: []*routev3.Route{{
			Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: e.Path}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{
				ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: e.App.Cluster},
				Timeout:          duration(e.App.RequestTimeout),
			}},
		}}}},
	}}
	return b.listener(&listenerv3.Listener{
		Name:             e.ListenerName,
		Address:          socketAddress(e.Address, e.Port),
		TrafficDirection: corev3.TrafficDirection_INBOUND,
		SocketOptions:    tcpKeepalive(),
		FilterChains:     []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{b.networkFilter(httpConnectionManager, m)}}},
	}, false)
}

// outboundListener is where the app reaches one upstream.
func (b *builder) outboundListener(u proxy.Upstream) *listenerv3.Listener {
	var filter *listenerv3.Filter
	if config.IsHTTP(u.Protocol) {
		filter = b.outboundHTTP(u, &hcmv3.HttpConnectionManager{RouteSpecifier: b.rds(u.Name)})
	} else {
		tcp := b.tcpProxy(u.StatPrefix(), u.Cluster, seconds(0))
		tcp.AccessLog = once(b, "connections", b.connections)
		tcp.AccessLogOptions = &tcpv3.TcpProxy_TcpAccessLogOptions{FlushAccessLogOnConnected: true}
		filter = b.networkFilter("envoy.filters.network.tcp_proxy", tcp)
	}
	l := &listenerv3.Listener{
		Name:             u.ListenerName,
		Address:          UpstreamAddress(u),
		TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		// With no others to choose from it is the default one, which takes Envoy 2 KB less for each upstream.
		DefaultFilterChain: &listenerv3.FilterChain{Name: u.Name, Filters: []*listenerv3.Filter{filter}},
	}
	if u.Unknown {
		b.answerHTTP(l, u)
	}
	return b.listener(l, u.ExactBalance)
}

// UpstreamAddress is where the listener of an upstream listens.
func UpstreamAddress(u proxy.Upstream) *corev3.Address {
	if u.SocketPath != "" {
		return pipeAddress(u.SocketPath, u.SocketMode)
	}
	return socketAddress(u.Address, u.Port)
}

// answerHTTP makes a TCP listener tell callers that speak HTTP why they get nothing.
func (b *builder) answerHTTP(l *listenerv3.Listener, u proxy.Upstream) {
	l.ListenerFilters = []*listenerv3.ListenerFilter{{
		Name:       "envoy.filters.listener.http_inspector",
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: b.pack(&inspectorv3.HttpInspector{})},
	}}
	// For callers that wait for the callee to speak first.
	l.ListenerFiltersTimeout = duration(200 * time.Millisecond)
	l.ContinueOnListenerFiltersTimeout = true
	text := explain(fmt.Sprintf("upstream %q", u.Name), "no such service is registered", config.HTTP)
	m := &hcmv3.HttpConnectionManager{RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
		Name: u.Name,
		VirtualHosts: []*routev3.VirtualHost{{Name: u.Name, Domains: []string{"*"}, Routes: []*routev3.Route{{
			Match:  everything(),
			Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 503, Body: inlineString(text)}},
		}}}},
	}}}
	l.FilterChains = []*listenerv3.FilterChain{{
		Name:             u.Name,
		FilterChainMatch: &listenerv3.FilterChainMatch{ApplicationProtocols: []string{"http/1.0", "http/1.1", "h2c"}},
		Filters:          []*listenerv3.Filter{b.outboundHTTP(u, m)},
	}}
	l.DefaultFilterChain.Name = "no HTTP"
}

// listener adds what all listeners have.
func (b *builder) listener(l *listenerv3.Listener, exactBalance bool) *listenerv3.Listener {
	l.PerConnectionBufferLimitBytes = number(bufferLimit)
	if exactBalance {
		l.ConnectionBalanceConfig = &listenerv3.Listener_ConnectionBalanceConfig{
			BalanceType: &listenerv3.Listener_ConnectionBalanceConfig_ExactBalance_{ExactBalance: &listenerv3.Listener_ConnectionBalanceConfig_ExactBalance{}},
		}
		// To Envoy a message that is empty is as one that is not there: of the above alone it
		// would see no difference, and leave the balance as it is.
		l.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{wayNamespace: {Fields: map[string]*structpb.Value{
			"exact_balance": structpb.NewBoolValue(true),
		}}}}
	}
	return l
}

func (b *builder) networkFilter(name string, config proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: b.pack(config)}}
}

// tcpProxy passes connections to a cluster. idle 0 never ends one: keep-alive
// finds those whose peer is gone.
func (b *builder) tcpProxy(statPrefix, cluster string, idle *durationpb.Duration) *tcpv3.TcpProxy {
	return &tcpv3.TcpProxy{
		StatPrefix:         statPrefix,
		ClusterSpecifier:   &tcpv3.TcpProxy_Cluster{Cluster: cluster},
		MaxConnectAttempts: number(3),
		IdleTimeout:        idle,
	}
}

// tcpKeepalive is set before the listening socket is bound; what it accepts inherits it.
func tcpKeepalive() []*corev3.SocketOption {
	// Linux's numbers: SOL_SOCKET 1, SO_KEEPALIVE 9; IPPROTO_TCP 6, TCP_KEEPIDLE 4,
	// TCP_KEEPINTVL 5, TCP_KEEPCNT 6.
	option := func(what string, level, name, value int64) *corev3.SocketOption {
		return &corev3.SocketOption{Description: what, Level: level, Name: name, Value: &corev3.SocketOption_IntValue{IntValue: value}}
	}
	return []*corev3.SocketOption{
		option("SO_KEEPALIVE", 1, 9, 1),
		option("TCP_KEEPIDLE", 6, 4, keepaliveIdle),
		option("TCP_KEEPINTVL", 6, 5, keepaliveInterval),
		option("TCP_KEEPCNT", 6, 6, keepaliveProbes),
	}
}
