package envoy

import (
	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	networkrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	sslv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/ssl/v3"

	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// IntentionsExtension is the name under which a TCP listener asks for its rules.
const IntentionsExtension = "intentions"

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
	out.MatcherType = &xdsmatcherv3.Matcher_MatcherTree_{MatcherTree: &xdsmatcherv3.Matcher_MatcherTree{
		Input: &xdscorev3.TypedExtensionConfig{Name: "envoy.matching.inputs.uri_san", TypedConfig: b.pack(&sslv3.UriSanInput{})},
		TreeType: &xdsmatcherv3.Matcher_MatcherTree_ExactMatchMap{
			ExactMatchMap: &xdsmatcherv3.Matcher_MatcherTree_MatchMap{Map: verdicts},
		},
	}}
	return out
}

func (b *builder) verdict(v proxy.Verdict) *xdsmatcherv3.Matcher_OnMatch {
	action := rbacv3.RBAC_DENY
	if v.Allow {
		action = rbacv3.RBAC_ALLOW
	}
	return &xdsmatcherv3.Matcher_OnMatch{OnMatch: &xdsmatcherv3.Matcher_OnMatch_Action{Action: &xdscorev3.TypedExtensionConfig{
		Name:        "action",
		TypedConfig: b.pack(&rbacv3.Action{Name: v.Because, Action: action}),
	}}}
}

// connectionIntentions are the rules of a TCP listener, which asks for them by name.
func (b *builder) connectionIntentions(in *proxy.Inbound) *corev3.TypedExtensionConfig {
	return &corev3.TypedExtensionConfig{Name: IntentionsExtension, TypedConfig: b.pack(&networkrbacv3.RBAC{
		StatPrefix: proxy.PublicListener + ".",
		Matcher:    b.callerMatcher(in.Intentions),
	})}
}

// connectionIntentionsRef has no default: until rules are there, connections are
// closed.
func connectionIntentionsRef() *listenerv3.Filter {
	return &listenerv3.Filter{Name: IntentionsExtension, ConfigType: &listenerv3.Filter_ConfigDiscovery{ConfigDiscovery: &corev3.ExtensionConfigSource{
		ConfigSource: ads(),
		TypeUrls:     []string{"type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC"},
	}}}
}
