package proxy

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// localConnectTimeout is Consul's: an app on the same host that takes longer is down.
const localConnectTimeout = 5 * time.Second

// PublicListener begins the name of the inbound listener, and is its stat prefix
// and the name of its routes. No upstream may be called so.
const PublicListener = "public_listener"

const exactBalance = "exact_balance"

func (b *builder) inbound(reg *catalog.Proxy) *Inbound {
	settings := b.inboundSettings(reg)
	address, port := b.in.Instance.Address(), b.in.Instance.Service.Port
	if b.in.BindAny && b.in.Instance.Service.Address == "" {
		address = netip.IPv4Unspecified().String()
	}
	if settings.BindAddress != "" {
		address = settings.BindAddress
	}
	if settings.BindPort != 0 {
		port = settings.BindPort
	}
	addr, err := netip.ParseAddr(address)
	if err != nil {
		b.problem(PublicListener, "address %q is no IP address: register the sidecar with one or set bind_address; nothing is accepted", address)
		return nil
	}
	if port < 1 || port > 65535 {
		b.problem(PublicListener, "port %d is out of range; nothing is accepted", port)
		return nil
	}
	b.claim(bind{addr: addr, port: port}, PublicListener)

	protocol := settings.Protocol
	if protocol == "" {
		var reads []config.Key
		var problems []Problem
		protocol, reads, problems = routing.Protocol(b.in.Config, b.service)
		b.read(reads...)
		b.problems = append(b.problems, problems...)
	}
	in := &Inbound{
		ListenerName:   fmt.Sprintf("%s:%s:%d", PublicListener, addr, port),
		Address:        addr.String(),
		Port:           port,
		Protocol:       protocol,
		ExactBalance:   settings.BalanceInboundConnections == exactBalance,
		MaxConnections: max(0, settings.MaxInboundConnections),
		PeerURIPrefix:  peerURIPrefix(b.in.TrustDomain, b.in.Datacenter),
		TLS12:          b.in.ConsulCallers,
		Intentions:     b.intentions(protocol),
		App: App{
			SocketPath:     reg.LocalServiceSocketPath,
			Address:        reg.LocalServiceAddress,
			Port:           reg.LocalServicePort,
			ConnectTimeout: millis(settings.LocalConnectTimeoutMs, localConnectTimeout),
			RequestTimeout: millis(settings.LocalRequestTimeoutMs, 0),
			IdleTimeout:    millis(settings.LocalIdleTimeoutMs, 0),
		},
	}
	if in.App.Address == "" || in.App.Address == "localhost" {
		in.App.Address = "127.0.0.1"
	}
	in.ListenerJSON = b.hatch(PublicListener, config.PublicListenerHatch, settings.PublicListenerJSON)
	in.ClusterJSON = b.hatch("local app", config.LocalClusterHatch, settings.LocalClusterJSON)
	in.Admission = b.admission(in)
	in.Plaintext = b.plaintext(in, settings)
	in.Exposed = b.exposed(in, reg.Expose.Paths)
	return in
}

// peerURIPrefix is what the SPIFFE ID of every service of the datacenter starts
// with. Intentions name services without a datacenter and are compiled to exact
// IDs of this one, so a caller from another must not get as far as a deny rule
// that would not match it.
func peerURIPrefix(trustDomain, datacenter string) string {
	return "spiffe://" + trustDomain + "/ns/default/dc/" + datacenter + "/svc/"
}

// inboundSettings merges what is said about the public listener. The registration
// beats the service's defaults, which beat the global ones.
func (b *builder) inboundSettings(reg *catalog.Proxy) config.ProxyConfig {
	b.read(config.Key{Kind: config.KindProxyDefaults, Name: config.Global})
	own := b.proxyConfig("proxy config", reg.Config)
	var global config.ProxyConfig
	if e := b.in.Config.ProxyDefaults(); e != nil {
		global = b.proxyConfig(config.KeyOf(e).String(), e.Config)
	}
	var service config.ServiceDefaults
	if b.defaults != nil {
		service = *b.defaults
	}

	// The global protocol is routing's: it belongs to the service, not to the sidecar.
	if own.Protocol != "" && !routing.KnownProtocol(own.Protocol) {
		b.problem("proxy config", "%s", routing.UnknownProtocol(own.Protocol))
		own.Protocol = ""
	}
	own.LocalConnectTimeoutMs = first(own.LocalConnectTimeoutMs, service.LocalConnectTimeoutMs, global.LocalConnectTimeoutMs)
	own.LocalRequestTimeoutMs = first(own.LocalRequestTimeoutMs, service.LocalRequestTimeoutMs, global.LocalRequestTimeoutMs)
	own.LocalIdleTimeoutMs = first(own.LocalIdleTimeoutMs, global.LocalIdleTimeoutMs)
	own.MaxInboundConnections = first(own.MaxInboundConnections, service.MaxInboundConnections, global.MaxInboundConnections)
	own.BalanceInboundConnections = first(own.BalanceInboundConnections, service.BalanceInboundConnections, global.BalanceInboundConnections)
	return own
}

func (b *builder) proxyConfig(subject string, opaque map[string]any) config.ProxyConfig {
	c, unknown, err := config.DecodeProxyConfig(opaque)
	b.opaqueProblems(subject, unknown, err)
	return c
}

// opaqueProblems reports what a decoder of an opaque map could not use.
func (b *builder) opaqueProblems(subject string, unknown []string, err error) {
	if err != nil {
		b.problem(subject, "%v", err)
	}
	for _, key := range unknown {
		b.problem(subject, "%q: %s", key, config.WhyUnknown(key))
	}
}

// first is the first value that is not zero.
func first[T comparable](values ...T) T {
	var zero T
	for _, v := range values {
		if v != zero {
			return v
		}
	}
	return zero
}

func millis(ms int, unset time.Duration) time.Duration {
	if ms <= 0 {
		return unset
	}
	return time.Duration(ms) * time.Millisecond
}
