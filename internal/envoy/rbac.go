package envoy

import (
	"fmt"
	"strconv"
	"strings"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	filterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	networkrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	setfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	sslv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/ssl/v3"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// Names under which a TCP listener asks for its rules.
const (
	IntentionsExtension = "intentions" // decides on the caller's first byte, by a map
	AdmissionExtension  = "admission"  // decides before the app is connected to, by a list
)

// callerMatcher looks a caller's URI up in a map, so that its cost does not grow
// with the number of intentions.
func (b *builder) callerMatcher(in proxy.Intentions) *xdsmatcherv3.Matcher {
	out := &xdsmatcherv3.Matcher{OnNoMatch: b.verdict(in.Otherwise)}
	if len(in.Callers) == 0 {
		return out
	}
	verdicts := make(map[string]*xdsmatcherv3.Matcher_OnMatch, len(in.Callers))
	for _, c := range in.Callers {
		verdicts[c.URI] = b.verdict(c.Verdict)
	}
	out.MatcherType = exactly(&xdscorev3.TypedExtensionConfig{Name: "envoy.matching.inputs.uri_san", TypedConfig: b.pack(&sslv3.UriSanInput{})}, verdicts)
	return out
}

func exactly(input *xdscorev3.TypedExtensionConfig, verdicts map[string]*xdsmatcherv3.Matcher_OnMatch) *xdsmatcherv3.Matcher_MatcherTree_ {
	return &xdsmatcherv3.Matcher_MatcherTree_{MatcherTree: &xdsmatcherv3.Matcher_MatcherTree{
		Input: input,
		TreeType: &xdsmatcherv3.Matcher_MatcherTree_ExactMatchMap{
			ExactMatchMap: &xdsmatcherv3.Matcher_MatcherTree_MatchMap{Map: verdicts},
		},
	}}
}

func (b *builder) verdict(v proxy.Verdict) *xdsmatcherv3.Matcher_OnMatch {
	if v.Conditional() {
		return b.judge(v)
	}
	return b.action(v.Allow, v.Because)
}

func (b *builder) action(allow bool, because string) *xdsmatcherv3.Matcher_OnMatch {
	action := rbacv3.RBAC_DENY
	if allow {
		action = rbacv3.RBAC_ALLOW
	}
	return &xdsmatcherv3.Matcher_OnMatch{OnMatch: &xdsmatcherv3.Matcher_OnMatch_Action{Action: &xdscorev3.TypedExtensionConfig{
		Name:        "action",
		TypedConfig: b.pack(&rbacv3.Action{Name: because, Action: action}),
	}}}
}

// requestIntentions are the rules for requests. Those that are only watched stand
// beside the ones that bind, and count as denied (shadow_denied) what they would.
func (b *builder) requestIntentions(in proxy.Intentions) *rbacfilterv3.RBACPerRoute {
	out := &rbacfilterv3.RBAC{Matcher: b.callerMatcher(in.Enforced())}
	if watched, audited := in.Watched(); audited {
		out.ShadowMatcher = b.callerMatcher(watched)
	}
	return &rbacfilterv3.RBACPerRoute{Rbac: out}
}

// connectionIntentions are the rules of a TCP listener, which asks for them by name.
func (b *builder) connectionIntentions(in *proxy.Inbound) *corev3.TypedExtensionConfig {
	intentions := in.Intentions.Connections()
	out := &networkrbacv3.RBAC{
		StatPrefix: proxy.PublicListener + ".",
		Matcher:    b.callerMatcher(intentions.Enforced()),
	}
	if watched, audited := intentions.Watched(); audited {
		out.ShadowMatcher = b.callerMatcher(watched)
	}
	return &corev3.TypedExtensionConfig{Name: IntentionsExtension, TypedConfig: b.pack(out)}
}

// admission gives a caller that is let in the app's address, by the filter state
// from which the cluster takes it. Without it there is nowhere to connect to.
func (b *builder) admission(a *proxy.Admission) *corev3.TypedExtensionConfig {
	out := &setfilterstatev3.Config{}
	address := a.Address.String()
	if len(a.Exceptions) > 0 {
		yes, no := address, ""
		if a.Otherwise {
			yes, no = no, yes
		}
		quoted := make([]string, len(a.Exceptions))
		for i, uri := range a.Exceptions {
			quoted[i] = strconv.Quote(uri)
		}
		address = fmt.Sprintf("%%CEL(connection.uri_san_peer_certificate in [%s] ? %q : %q)%%", strings.Join(quoted, ","), yes, no)
	} else if !a.Otherwise {
		address = ""
	}
	if address != "" {
		out.OnDownstreamTlsHandshake = []*filterstatev3.FilterStateValue{appAddress(address)}
	}
	return &corev3.TypedExtensionConfig{Name: AdmissionExtension, TypedConfig: b.pack(out)}
}

// appAddress is where the cluster of the app connects to, as a substitution format string.
func appAddress(format string) *filterstatev3.FilterStateValue {
	return &filterstatev3.FilterStateValue{
		Key:         &filterstatev3.FilterStateValue_ObjectKey{ObjectKey: "envoy.network.transport_socket.original_dst_address"},
		Value:       &filterstatev3.FilterStateValue_FormatString{FormatString: textFormat(format)},
		SkipIfEmpty: true,
	}
}

// discovered is a network filter whose configuration comes by name, so that a
// change does not touch its listener. It has no default: until a configuration is
// there, connections are closed.
func discovered(name string, config proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_ConfigDiscovery{ConfigDiscovery: &corev3.ExtensionConfigSource{
		ConfigSource: ads(),
		TypeUrls:     []string{typeURL(config)},
	}}}
}

func typeURL(m proto.Message) string {
	return "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName())
}
