package envoy

import (
	"slices"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	httpfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlymutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// maxStreams is how many requests a connection may carry at once.
const maxStreams = 1024

// What one message may carry. The hop between sidecars lets a little more pass: it
// adds headers of its own, and over HTTP/2 can only reset what is too much, which
// would look like a failing instance.
const (
	maxHeaders   = 100
	maxHeadersKB = 60
	headroom     = 20
	headroomKB   = 4
)

// httpRBAC is the filter's name, under which routes carry its rules.
const httpRBAC = "envoy.filters.http.rbac"

// inboundHTTP receives requests from other sidecars.
func (b *builder) inboundHTTP(in *proxy.Inbound) *hcmv3.HttpConnectionManager {
	m := b.inboundCommon(proxy.PublicListener, in)
	m.ForwardClientCertDetails = hcmv3.HttpConnectionManager_SANITIZE_SET
	m.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{Uri: true}
	return m
}

// inboundCommon is what does not depend on how a caller proves itself. name is the stat
// prefix and that of the routes.
func (b *builder) inboundCommon(name string, in *proxy.Inbound) *hcmv3.HttpConnectionManager {
	m := b.connectionManager(name, name, in.Protocol)
	m.NormalizePath = truth(b.proxy.Normalization.Path)
	m.MergeSlashes = b.proxy.Normalization.MergeSlashes
	m.PathWithEscapedSlashesAction = escapedSlashes(b.proxy.Normalization.EscapedSlashesAction)
	m.LocalReplyConfig = b.inboundReplies(b.proxy.Identity.Service, in.Protocol)
	m.EarlyHeaderMutationExtensions = []*corev3.TypedExtensionConfig{b.withoutEnvoysHeaders()}
	m.CommonHttpProtocolOptions.MaxHeadersCount = number(maxHeaders + headroom)
	m.MaxRequestHeadersKb = number(maxHeadersKB + headroomKB)
	// The rules come with the routes; these filters only have to be there. Those that
	// most services do not need cost nothing until a route asks for them.
	path, tokens := b.httpFilter(httpFilterState, &httpfilterstatev3.Config{}), discoveredHTTP(TokensExtension, &jwtv3.JwtAuthentication{})
	path.Disabled, tokens.Disabled = true, true
	m.HttpFilters = append([]*hcmv3.HttpFilter{path, tokens, b.httpFilter(httpRBAC, &rbacfilterv3.RBAC{})}, m.HttpFilters...)
	return m
}

// outboundHTTP receives requests from the app for one upstream. It is what all
// upstreams of a protocol have in common, encoded once, followed by what is this one's
// own: messages are merged by putting their encodings one after the other.
func (b *builder) outboundHTTP(u proxy.Upstream, own *hcmv3.HttpConnectionManager) *listenerv3.Filter {
	own.StatPrefix = u.StatPrefix()
	own.HttpProtocolOptions = &corev3.Http1ProtocolOptions{DefaultHostForHttp_10: u.Target.Service}
	packed := b.pack(own)
	common := once(b, commonKey(u.Protocol), func() []byte { return b.pack(b.outboundCommon(u.Protocol)).GetValue() })
	packed.Value = slices.Concat(common, packed.Value)
	return &listenerv3.Filter{Name: httpConnectionManager, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed}}
}

// commonKey is that of a protocol's common part among the parts made once.
type commonKey string

const httpConnectionManager = "envoy.filters.network.http_connection_manager"

func (b *builder) outboundCommon(protocol string) *hcmv3.HttpConnectionManager {
	m := b.connectionManager("", "", protocol)
	m.RouteSpecifier = nil
	m.HttpFilters = []*hcmv3.HttpFilter{b.httpFilter("envoy.filters.http.router", &routerv3.Router{
		DynamicStats: truth(false), SuppressEnvoyHeaders: true, UpstreamLog: b.attempts(),
	})}
	m.LocalReplyConfig = b.outboundReplies(protocol)
	m.GenerateRequestId = truth(true)
	m.HttpProtocolOptions.AcceptHttp_10 = true
	return m
}

// rds asks for routes by name.
func (b *builder) rds(name string) *hcmv3.HttpConnectionManager_Rds {
	return &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: once(b, "ads", ads), RouteConfigName: name}}
}

// acceptHTTP10 lets in what proxies and probes still speak. A request without a
// host, which HTTP/1.0 allows, gets that one.
func acceptHTTP10(m *hcmv3.HttpConnectionManager, host string) {
	m.HttpProtocolOptions.AcceptHttp_10 = true
	m.HttpProtocolOptions.DefaultHostForHttp_10 = host
}

// withoutEnvoysHeaders drops x-envoy-*, which an app may take for its sidecar's
// word, before anything reads them.
func (b *builder) withoutEnvoysHeaders() *corev3.TypedExtensionConfig {
	return &corev3.TypedExtensionConfig{
		Name: "envoy.http.early_header_mutation.header_mutation",
		TypedConfig: b.pack(&earlymutationv3.HeaderMutation{Mutations: []*mutationv3.HeaderMutation{{
			Action: &mutationv3.HeaderMutation_RemoveOnMatch_{RemoveOnMatch: &mutationv3.HeaderMutation_RemoveOnMatch{
				KeyMatcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "x-envoy-"}},
			}},
		}}}),
	}
}

// connectionManager is what both directions have in common.
func (b *builder) connectionManager(statPrefix, routes, protocol string) *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		StatPrefix:     statPrefix,
		CodecType:      hcmv3.HttpConnectionManager_AUTO,
		RouteSpecifier: b.rds(routes),
		HttpFilters:    []*hcmv3.HttpFilter{once(b, "router", b.router)},
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			IdleTimeout:     seconds(3600),
			MaxHeadersCount: number(maxHeaders),
			// Refused on the way out too: a callee can only reset such a stream, and
			// its callers would take that for a failing instance.
			HeadersWithUnderscoresAction: underscores(b.proxy.Normalization.Underscores(protocol)),
		},
		HttpProtocolOptions:        &corev3.Http1ProtocolOptions{EnableTrailers: true},
		Http2ProtocolOptions:       once(b, "http2 of listeners", http2OfListeners),
		Proxy_100Continue:          true,
		MaxRequestHeadersKb:        number(maxHeadersKB),
		RequestHeadersTimeout:      seconds(10),
		StreamIdleTimeout:          seconds(streamIdle(protocol)),
		ServerHeaderTransformation: hcmv3.HttpConnectionManager_PASS_THROUGH,
		GenerateRequestId:          truth(false),
		UseRemoteAddress:           truth(false),
		SkipXffAppend:              true,
		UpgradeConfigs:             []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
	}
}

func http2OfListeners() *corev3.Http2ProtocolOptions {
	h2 := http2Options()
	h2.MaxConcurrentStreams = number(maxStreams)
	return h2
}

func (b *builder) router() *hcmv3.HttpFilter {
	return b.httpFilter("envoy.filters.http.router", &routerv3.Router{DynamicStats: truth(false), SuppressEnvoyHeaders: true})
}

// streamIdle is, in seconds, how long a request may stand still. A gRPC stream
// that says nothing for minutes is alive and well more often than not.
func streamIdle(protocol string) int64 {
	if protocol == config.GRPC {
		return 3600
	}
	return 300
}

func (b *builder) httpFilter(name string, config proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: b.pack(config)}}
}

func escapedSlashes(action string) hcmv3.HttpConnectionManager_PathWithEscapedSlashesAction {
	return hcmv3.HttpConnectionManager_PathWithEscapedSlashesAction(hcmv3.HttpConnectionManager_PathWithEscapedSlashesAction_value[action])
}

func underscores(action string) corev3.HttpProtocolOptions_HeadersWithUnderscoresAction {
	return corev3.HttpProtocolOptions_HeadersWithUnderscoresAction(corev3.HttpProtocolOptions_HeadersWithUnderscoresAction_value[action])
}
