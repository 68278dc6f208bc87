package proxy

import (
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// What a sidecar does when nobody said otherwise; the reasons are in docs/envoy.md.
const (
	connectTimeout = time.Second
	limit          = 65536

	outlierInterval     = time.Second
	outlierBaseEjection = 5 * time.Second
	outlierMaxPercent   = 50
	outlierFailures     = 5
)

// Limits bound what one sidecar has open to one target.
type Limits struct {
	MaxConnections     uint32
	MaxPendingRequests uint32
	MaxRequests        uint32
	// RetryBudget bounds retries to a part of the requests, since some are of requests that the callee may have seen.
	// Without one each request may be retried, as nobody has seen it.
	RetryBudget bool
}

// Outlier says when an instance that fails is left out, and for how long.
type Outlier struct {
	Interval     time.Duration
	BaseEjection time.Duration // times the number of ejections in a row
	// MaxPercent of the instances may be out at once.
	MaxPercent uint32
	// AlwaysOne lets one instance go out even where MaxPercent would not.
	AlwaysOne bool
	// GatewayFailures (502, 503, 504) and connection failures in a row put an instance out.
	GatewayFailures uint32
	// Consecutive5xx in a row put an instance out with this probability in percent.
	Consecutive5xx uint32
	Enforcing5xx   uint32
}

// cluster decides how a target is called, under the target's own name.
func (b *builder) cluster(r routing.Resolver, s config.UpstreamSettings, multiplexed bool) Cluster {
	return Cluster{
		Name:           r.Target.SNI(b.in.TrustDomain),
		SNI:            r.Target.SNI(b.in.TrustDomain),
		Target:         r.Target,
		PeerURI:        r.Target.Identity(b.in.TrustDomain).URI(),
		Multiplexed:    multiplexed,
		Unreachable:    b.unreachable(r.Target),
		ConnectTimeout: millis(s.ConnectTimeoutMs, first(r.ConnectTimeout, connectTimeout)),
		Limits:         limits(s),
		Outlier:        outlier(s),
		LoadBalancer:   r.LoadBalancer,
	}
}

// unreachable is why nobody of a target can be called, or "".
func (b *builder) unreachable(t routing.Target) string {
	if t.Datacenter != b.in.Datacenter {
		return "no mesh gateway for " + t.Datacenter
	}
	if e := b.in.Config.ServiceDefaults(t.Service); e != nil && e.Destination != nil {
		return "no terminating gateway for " + t.Service
	}
	return ""
}

func limits(s config.UpstreamSettings) Limits {
	out := Limits{MaxConnections: limit, MaxPendingRequests: limit, MaxRequests: limit}
	if l := s.Limits; l != nil {
		bound(&out.MaxConnections, l.MaxConnections)
		bound(&out.MaxPendingRequests, l.MaxPendingRequests)
		bound(&out.MaxRequests, l.MaxConcurrentRequests)
	}
	return out
}

func outlier(s config.UpstreamSettings) Outlier {
	o := Outlier{
		Interval: outlierInterval, BaseEjection: outlierBaseEjection, MaxPercent: outlierMaxPercent,
		GatewayFailures: outlierFailures, Consecutive5xx: outlierFailures,
	}
	if h := s.PassiveHealthCheck; h != nil {
		o.Interval = first(time.Duration(h.Interval), o.Interval)
		o.BaseEjection = first(time.Duration(h.BaseEjectionTime), o.BaseEjection)
		// Whoever asks for passive checks asks, as with Consul, for 5xx to count.
		o.Consecutive5xx, o.Enforcing5xx = first(h.MaxFailures, o.Consecutive5xx), 100
		if h.EnforcingConsecutive5xx != nil {
			o.Enforcing5xx = *h.EnforcingConsecutive5xx
		}
		if h.MaxEjectionPercent != nil {
			o.MaxPercent, o.AlwaysOne = *h.MaxEjectionPercent, *h.MaxEjectionPercent > 0
		}
	}
	return o
}

func bound(into *uint32, value *int) {
	if value != nil && *value >= 0 {
		*into = uint32(*value)
	}
}

// upstreamSettings merges what is said about calling decl's destination: the
// registration beats the caller's override for that destination, which beats the
// caller's defaults.
func (b *builder) upstreamSettings(decl catalog.Upstream, subject string) config.UpstreamSettings {
	own, unknown, err := config.DecodeUpstreamSettings(decl.Config)
	b.opaqueProblems(subject, unknown, err)
	layers := []namedSettings{{subject, own}}
	if b.defaults != nil && b.defaults.UpstreamConfig != nil {
		from := config.KeyOf(b.defaults).String()
		for _, o := range b.defaults.UpstreamConfig.Overrides {
			if o.Name == decl.DestinationName {
				layers = append(layers, namedSettings{from, o})
			}
		}
		if d := b.defaults.UpstreamConfig.Defaults; d != nil {
			layers = append(layers, namedSettings{from, *d})
		}
	}

	var out config.UpstreamSettings
	for _, l := range layers {
		s := l.settings
		if s.Protocol != "" && !routing.KnownProtocol(s.Protocol) {
			b.problem(l.from, "%s", routing.UnknownProtocol(s.Protocol))
			s.Protocol = ""
		}
		out.Protocol = first(out.Protocol, s.Protocol)
		out.ConnectTimeoutMs = first(out.ConnectTimeoutMs, s.ConnectTimeoutMs)
		out.Limits = first(out.Limits, s.Limits)
		out.PassiveHealthCheck = first(out.PassiveHealthCheck, s.PassiveHealthCheck)
		out.BalanceOutboundConnections = first(out.BalanceOutboundConnections, s.BalanceOutboundConnections)
		out.EnvoyListenerJSON = first(out.EnvoyListenerJSON, s.EnvoyListenerJSON)
		out.EnvoyClusterJSON = first(out.EnvoyClusterJSON, s.EnvoyClusterJSON)
	}
	return out
}

type namedSettings struct {
	from     string // who says so
	settings config.UpstreamSettings
}
