package envoy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// retryOn names failures after which the callee cannot have seen the request, so
// that a retry is safe whatever the method.
const retryOn = "connect-failure,refused-stream,reset-before-request"

// hostSelections is how often a retry looks for an instance that has not failed yet. A
// look costs next to nothing.
const hostSelections = 100

// outboundRoutes are what the app's requests to an upstream follow.
func (b *builder) outboundRoutes(r proxy.Route) *routev3.RouteConfiguration {
	host := &routev3.VirtualHost{Name: r.Name, Domains: []string{"*"}}
	for _, rule := range r.Rules {
		host.Routes = append(host.Routes, b.outboundRoute(r, rule))
	}
	return &routev3.RouteConfiguration{Name: r.Name, VirtualHosts: []*routev3.VirtualHost{host}}
}

func (b *builder) outboundRoute(r proxy.Route, rule proxy.Rule) *routev3.Route {
	out := &routev3.Route{
		Match:                   ruleMatch(rule),
		RequestHeadersToAdd:     headersToAdd(rule.RequestHeaders),
		RequestHeadersToRemove:  headersToRemove(rule.RequestHeaders),
		ResponseHeadersToAdd:    headersToAdd(rule.ResponseHeaders),
		ResponseHeadersToRemove: headersToRemove(rule.ResponseHeaders),
	}
	if rule.Unreachable != "" {
		text := explain(fmt.Sprintf("upstream %q", r.Chain.Service), rule.Unreachable, r.Chain.Protocol)
		out.Action = &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 503, Body: inlineString(text)}}
		return out
	}
	if c := rule.NewCookie; c != nil {
		out.ResponseHeadersToAdd = append(out.ResponseHeadersToAdd, newCookie(*c))
	}
	action := &routev3.RouteAction{
		Timeout:       duration(rule.Timeout),
		PrefixRewrite: rule.PrefixRewrite,
		RetryPolicy:   once(b, retryKey(rule.Retry), func() *routev3.RetryPolicy { return b.retries(rule.Retry) }),
		HashPolicy:    hashPolicies(rule.Hash),
	}
	if rule.RewriteHost {
		action.HostRewriteSpecifier = &routev3.RouteAction_AutoHostRewrite{AutoHostRewrite: truth(true)}
	}
	if rule.IdleTimeout > 0 {
		action.IdleTimeout = duration(rule.IdleTimeout)
	}
	if l := rule.Legs[0]; len(rule.Legs) == 1 && l.RequestHeaders == nil && l.ResponseHeaders == nil {
		action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: l.Cluster}
	} else {
		action.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: weightedClusters(rule)}
	}
	out.Action = &routev3.Route_Route{Route: action}
	return out
}

func weightedClusters(rule proxy.Rule) *routev3.WeightedCluster {
	out := &routev3.WeightedCluster{}
	for _, l := range rule.Legs {
		out.Clusters = append(out.Clusters, &routev3.WeightedCluster_ClusterWeight{
			Name: l.Cluster, Weight: number(l.Weight),
			RequestHeadersToAdd: headersToAdd(l.RequestHeaders), RequestHeadersToRemove: headersToRemove(l.RequestHeaders),
			ResponseHeadersToAdd: headersToAdd(l.ResponseHeaders), ResponseHeadersToRemove: headersToRemove(l.ResponseHeaders),
		})
	}
	if rule.Sticky {
		out.RandomValueSpecifier = &routev3.WeightedCluster_UseHashPolicy{UseHashPolicy: truth(true)}
	}
	return out
}

// newCookie gives a caller the cookie that keeps it on its leg: the value is what
// this first request was hashed by, so that the next one hashes alike.
func newCookie(c config.StickyCookie) *corev3.HeaderValueOption {
	text := strings.ReplaceAll(c.Name, "%", "%%") + "=%REQ(x-request-id)%; Path=" + strings.ReplaceAll(cmp.Or(c.Path, "/"), "%", "%%") + "; HttpOnly"
	if c.TTL > 0 {
		text += fmt.Sprintf("; Max-Age=%d", int64(c.TTL.Std()/time.Second))
	}
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: "set-cookie", Value: text},
		AppendAction: corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD,
	}
}

// retryKey is that of a retry policy among the parts made once.
func retryKey(r proxy.Retry) string { return fmt.Sprint("retries ", r) }

func (b *builder) retries(r proxy.Retry) *routev3.RetryPolicy {
	on := append([]string{retryOn}, r.On...)
	if len(r.Codes) > 0 && !slices.Contains(on, "retriable-status-codes") {
		on = append(on, "retriable-status-codes")
	}
	return &routev3.RetryPolicy{
		RetryOn:              strings.Join(on, ","),
		RetriableStatusCodes: r.Codes,
		NumRetries:           number(r.Number),
		RetryBackOff: &routev3.RetryPolicy_RetryBackOff{
			BaseInterval: duration(2 * time.Millisecond), MaxInterval: duration(20 * time.Millisecond),
		},
		RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
			Name:       "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: b.pack(&previoushostsv3.PreviousHostsPredicate{})},
		}},
		// The least busy of a few is most likely the one that just failed: of two
		// instances, in seven of eight looks.
		HostSelectionRetryMaxAttempts: hostSelections,
	}
}

// inboundRoutes let callers through to the app as the intentions say.
func (b *builder) inboundRoutes(in *proxy.Inbound) *routev3.RouteConfiguration {
	return b.appRoutes(proxy.PublicListener, in, toApp(in), b.requestIntentions(in.Intentions))
}

func toApp(in *proxy.Inbound) *routev3.RouteAction {
	action := &routev3.RouteAction{
		ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: LocalApp},
		Timeout:          duration(in.App.RequestTimeout),
	}
	if in.App.IdleTimeout > 0 {
		action.IdleTimeout = duration(in.App.IdleTimeout)
	}
	return action
}

// appRoutes are one way in, with the rules of who may take it.
func (b *builder) appRoutes(name string, in *proxy.Inbound, action *routev3.RouteAction, who *rbacfilterv3.RBACPerRoute) *routev3.RouteConfiguration {
	rules := map[string]*anypb.Any{httpRBAC: b.pack(who)}
	if in.Intentions.LookAtPaths() {
		rules[httpFilterState] = b.pack(b.pathForRules())
	}
	if len(in.Intentions.Providers) > 0 {
		rules[TokensExtension] = b.pack(&routev3.FilterConfig{Config: &anypb.Any{}})
	}
	return &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{{
		Name:                 name,
		Domains:              []string{"*"},
		Routes:               []*routev3.Route{{Match: everything(), Action: &routev3.Route_Route{Route: action}}},
		TypedPerFilterConfig: rules,
	}}}
}

func everything() *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
}
