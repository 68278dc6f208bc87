package envoy

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	accessdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	filterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	networkrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	setfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	networkv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// Names under which plaintext connections ask for their rules; see [IntentionsExtension].
const (
	PlaintextIntentionsExtension = "plaintext_intentions"
	PlaintextAdmissionExtension  = "plaintext_admission"
)

// stillOpenEvery is how often plaintext that is still open counts again: a connection of weeks
// is no silence.
const stillOpenEvery = time.Minute

// plaintextHTTP takes requests without TLS. It knows callers by their address alone, and
// what they say of their certificate is dropped.
func (b *builder) plaintextHTTP(in *proxy.Inbound) *listenerv3.FilterChain {
	m := b.inboundCommon(proxy.PlaintextListener, in)
	m.ForwardClientCertDetails = hcmv3.HttpConnectionManager_SANITIZE
	acceptHTTP10(m, b.proxy.Identity.Service) // callers are anything, not sidecars alone
	m.AccessLog = []*accesslogv3.AccessLog{b.plaintextCounter(at(accessdatav3.AccessLogType_DownstreamStart, accessdatav3.AccessLogType_DownstreamPeriodic))}
	m.AccessLogOptions = &hcmv3.HttpConnectionManager_HcmAccessLogOptions{FlushAccessLogOnNewRequest: true, AccessLogFlushInterval: durationpb.New(stillOpenEvery)}
	return &listenerv3.FilterChain{
		Name: "plaintext", FilterChainMatch: &listenerv3.FilterChainMatch{TransportProtocol: "raw_buffer"},
		Filters: []*listenerv3.Filter{b.networkFilter(httpConnectionManager, m)},
	}
}

// plaintextTCP takes all connections that are not the mesh's TLS.
func (b *builder) plaintextTCP(in *proxy.Inbound) *listenerv3.FilterChain {
	tcp := b.tcpProxy(proxy.PlaintextListener, LocalApp, duration(in.App.IdleTimeout))
	// At once where it gets as far as the app, and else in the end.
	once := &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_OrFilter{OrFilter: &accesslogv3.OrFilter{
		Filters: []*accesslogv3.AccessLogFilter{at(accessdatav3.AccessLogType_TcpUpstreamConnected, accessdatav3.AccessLogType_TcpPeriodic), unconnected()},
	}}}
	tcp.AccessLog = []*accesslogv3.AccessLog{b.plaintextCounter(once)}
	tcp.AccessLogOptions = &tcpv3.TcpProxy_TcpAccessLogOptions{FlushAccessLogOnConnected: true, AccessLogFlushInterval: durationpb.New(stillOpenEvery)}
	var filters []*listenerv3.Filter
	if in.Plaintext.Admission != nil {
		filters = append(filters, discovered(PlaintextAdmissionExtension, &setfilterstatev3.Config{}))
	}
	filters = append(filters, discovered(PlaintextIntentionsExtension, &networkrbacv3.RBAC{}), b.networkFilter("envoy.filters.network.tcp_proxy", tcp))
	return &listenerv3.FilterChain{Name: "plaintext", FilterChainMatch: &listenerv3.FilterChainMatch{}, Filters: filters}
}

// plaintextListener takes what plaintextTCP does, on a port of its own.
func (b *builder) plaintextListener(in *proxy.Inbound) *listenerv3.Listener {
	return b.listener(&listenerv3.Listener{
		Name:             in.Plaintext.ListenerName,
		Address:          socketAddress(in.Address, in.Plaintext.Port),
		TrafficDirection: corev3.TrafficDirection_INBOUND,
		SocketOptions:    tcpKeepalive(),
		FilterChains:     []*listenerv3.FilterChain{b.plaintextTCP(in)},
	}, in.ExactBalance)
}

// plaintextRoutes are the way in of plaintext requests.
func (b *builder) plaintextRoutes(in *proxy.Inbound) *routev3.RouteConfiguration {
	who := &rbacfilterv3.RBAC{Matcher: b.hostMatcher(in.Plaintext.Enforced())}
	if watched, audited := in.Plaintext.Watched(); audited {
		who.ShadowMatcher = b.hostMatcher(watched)
	}
	return b.appRoutes(proxy.PlaintextListener, in, toApp(in), &rbacfilterv3.RBACPerRoute{Rbac: who})
}

// plaintextExtensions are the rules of plaintext connections.
func (b *builder) plaintextExtensions(in *proxy.Inbound) []*corev3.TypedExtensionConfig {
	p := in.Plaintext.Connections()
	rules := &networkrbacv3.RBAC{StatPrefix: proxy.PlaintextListener + ".", Matcher: b.hostMatcher(p.Enforced())}
	if watched, audited := p.Watched(); audited {
		rules.ShadowMatcher = b.hostMatcher(watched)
	}
	out := []*corev3.TypedExtensionConfig{{Name: PlaintextIntentionsExtension, TypedConfig: b.pack(rules)}}
	if p.Admission != nil {
		out = append(out, b.plaintextAdmission(p.Admission))
	}
	return out
}

// hostMatcher looks a caller's address up in a map.
func (b *builder) hostMatcher(p *proxy.Plaintext) *xdsmatcherv3.Matcher {
	out := &xdsmatcherv3.Matcher{OnNoMatch: b.verdict(p.Otherwise)}
	if len(p.Hosts) == 0 {
		return out
	}
	verdicts := make(map[string]*xdsmatcherv3.Matcher_OnMatch, len(p.Hosts))
	for _, h := range p.Hosts {
		verdicts[h.Address.String()] = b.verdict(h.Verdict)
	}
	out.MatcherType = exactly(&xdscorev3.TypedExtensionConfig{Name: "envoy.matching.inputs.direct_source_ip", TypedConfig: b.pack(&networkv3.DirectSourceIPInput{})}, verdicts)
	return out
}

// plaintextAdmission is [builder.admission] for callers known by their address.
func (b *builder) plaintextAdmission(a *proxy.PlainAdmission) *corev3.TypedExtensionConfig {
	address := a.Address.String()
	switch {
	case len(a.Exceptions) > 0:
		from := make([]string, len(a.Exceptions))
		for i, at := range a.Exceptions {
			text := at.String()
			if at.Is6() {
				text = "[" + text + "]"
			}
			from[i] = "source.address.startsWith(" + strconv.Quote(text+":") + ")"
		}
		yes, no := address, ""
		if a.Otherwise {
			yes, no = no, yes
		}
		address = fmt.Sprintf("%%CEL((%s) ? %q : %q)%%", strings.Join(from, " || "), yes, no)
	case !a.Otherwise:
		address = ""
	}
	out := &setfilterstatev3.Config{}
	if address != "" {
		out.OnNewConnection = []*filterstatev3.FilterStateValue{appAddress(address)}
	}
	return &corev3.TypedExtensionConfig{Name: PlaintextAdmissionExtension, TypedConfig: b.pack(out)}
}
