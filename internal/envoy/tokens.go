package envoy

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// TokensExtension is the name under which an HTTP listener asks how tokens are
// verified. It always asks, so that neither the first provider nor a new key
// touches the listener.
const TokensExtension = "tokens"

// httpTokens is under which the filter that verifies tokens keeps their payloads.
const httpTokens = "envoy.filters.http.jwt_authn"

// payloadOf is the key of a provider's payload among them.
func payloadOf(provider string) string { return "jwt_payload_" + provider }

// tokens verifies every token of every provider that a request has, and refuses
// none: that is left to the intentions, some of which may not ask for one.
func (b *builder) tokens(providers []proxy.Provider) *corev3.TypedExtensionConfig {
	out := &jwtv3.JwtAuthentication{}
	var all []*jwtv3.JwtRequirement
	for _, p := range providers {
		if out.Providers == nil {
			out.Providers = map[string]*jwtv3.JwtProvider{}
		}
		out.Providers[p.Name] = provider(p)
		all = append(all, &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAny{RequiresAny: &jwtv3.JwtRequirementOrList{Requirements: []*jwtv3.JwtRequirement{
			{RequiresType: &jwtv3.JwtRequirement_ProviderName{ProviderName: p.Name}},
			{RequiresType: &jwtv3.JwtRequirement_AllowMissingOrFailed{AllowMissingOrFailed: &emptypb.Empty{}}},
		}}}})
	}
	if len(all) > 0 {
		requires := all[0]
		if len(all) > 1 {
			requires = &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAll{RequiresAll: &jwtv3.JwtRequirementAndList{Requirements: all}}}
		}
		out.Rules = []*jwtv3.RequirementRule{{Match: everything(), RequirementType: &jwtv3.RequirementRule_Requires{Requires: requires}}}
	}
	return &corev3.TypedExtensionConfig{Name: TokensExtension, TypedConfig: b.pack(out)}
}

func provider(p proxy.Provider) *jwtv3.JwtProvider {
	out := &jwtv3.JwtProvider{
		Issuer:                  p.Issuer,
		Audiences:               p.Audiences,
		JwksSourceSpecifier:     &jwtv3.JwtProvider_LocalJwks{LocalJwks: inlineString(p.Keys)},
		FromParams:              p.Params,
		FromCookies:             p.Cookies,
		Forward:                 p.Forward,
		ForwardPayloadHeader:    p.PayloadHeader,
		PadForwardPayloadHeader: p.PadPayload,
		PayloadInMetadata:       payloadOf(p.Name),
		ClockSkewSeconds:        uint32(p.ClockSkew),
	}
	for _, h := range p.Headers {
		out.FromHeaders = append(out.FromHeaders, &jwtv3.JwtHeader{Name: h.Name, ValuePrefix: h.Prefix})
	}
	if p.CacheSize > 0 {
		out.JwtCacheConfig = &jwtv3.JwtCacheConfig{JwtCacheSize: uint32(p.CacheSize)}
	}
	return out
}

// discoveredHTTP is an HTTP filter whose configuration comes by name. Until it is
// there, the listener is not ready.
func discoveredHTTP(name string, config proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{ConfigDiscovery: &corev3.ExtensionConfigSource{
		ConfigSource: ads(),
		TypeUrls:     []string{typeURL(config)},
	}}}
}
