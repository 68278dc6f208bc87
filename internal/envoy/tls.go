package envoy

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rawbufferv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// upstreamTLS proves this sidecar to a target and accepts the target's identity alone.
func (b *builder) upstreamTLS(sni, peerURI string, multiplexed bool) *corev3.TransportSocket {
	peer := &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: peerURI}}
	ctx := &tlsv3.UpstreamTlsContext{CommonTlsContext: b.commonTLS(peer), Sni: sni}
	if multiplexed {
		ctx.CommonTlsContext.AlpnProtocols = []string{"h2"}
	}
	return b.tlsSocket(ctx)
}

// downstreamTLS asks every caller for a certificate of the own datacenter.
func (b *builder) downstreamTLS(in *proxy.Inbound) *corev3.TransportSocket {
	peer := &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: in.PeerURIPrefix}}
	ctx := &tlsv3.DownstreamTlsContext{CommonTlsContext: b.commonTLS(peer), RequireClientCertificate: truth(true)}
	if in.TLS12 {
		ctx.CommonTlsContext.TlsParams = once(b, "tls of Consul's callers", tlsParametersFrom12)
	}
	if config.IsHTTP(in.Protocol) {
		ctx.CommonTlsContext.AlpnProtocols = []string{"h2", "http/1.1"}
	}
	return b.tlsSocket(ctx)
}

func (b *builder) commonTLS(peer *matcherv3.StringMatcher) *tlsv3.CommonTlsContext {
	return &tlsv3.CommonTlsContext{
		TlsParams:                      once(b, "tls", tlsParameters),
		TlsCertificateSdsSecretConfigs: once(b, "leaf", leafSecret),
		ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext: &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{
				SanType: tlsv3.SubjectAltNameMatcher_URI,
				Matcher: peer,
			}}},
			ValidationContextSdsSecretConfig: once(b, "roots", rootsSecret),
		}},
	}
}

func tlsParameters() *tlsv3.TlsParameters {
	return &tlsv3.TlsParameters{
		TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		EcdhCurves:                []string{"X25519"},
	}
}

// tlsParametersFrom12 are for callers that Consul configures: Envoy's clients, unless told
// otherwise, stop at TLS 1.2. Of its ciphers those stay that have forward secrecy and AEAD.
func tlsParametersFrom12() *tlsv3.TlsParameters {
	out := tlsParameters()
	out.TlsMinimumProtocolVersion = tlsv3.TlsParameters_TLSv1_2
	out.CipherSuites = []string{"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"}
	out.EcdhCurves = append(out.EcdhCurves, "P-256")
	return out
}

func leafSecret() []*tlsv3.SdsSecretConfig {
	return []*tlsv3.SdsSecretConfig{{Name: LeafSecretName, SdsConfig: ads()}}
}

func rootsSecret() *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: RootsSecretName, SdsConfig: ads()}
}

// plaintext is how an old way is spoken where others are not.
func (b *builder) plaintext() *corev3.TransportSocket {
	return &corev3.TransportSocket{Name: "envoy.transport_sockets.raw_buffer", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: b.pack(&rawbufferv3.RawBuffer{})}}
}

func (b *builder) tlsSocket(ctx proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{Name: "envoy.transport_sockets.tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: b.pack(ctx)}}
}
