package config

import (
	"encoding/json"
	"strconv"
)

// ServiceDefaults is Consul's service-defaults entry: how a service is spoken to.
// See Consul's "Service defaults configuration reference".
type ServiceDefaults struct {
	Kind     Kind              `json:"Kind"`
	Name     string            `json:"Name"`
	Protocol string            `json:"Protocol,omitempty"` // tcp, http, http2 or grpc; "" takes proxy-defaults' or tcp
	Meta     map[string]string `json:"Meta,omitempty"`
	// MutualTLSMode is what the service's sidecars take: "strict" mTLS alone, "permissive"
	// plaintext beside it; "" takes proxy-defaults' or mTLS alone. See [Set.MutualTLSMode].
	MutualTLSMode string `json:"MutualTLSMode,omitempty"`

	// UpstreamConfig is this service's view of the services it calls.
	UpstreamConfig *UpstreamConfiguration `json:"UpstreamConfig,omitempty"`
	// Destination says that the service is outside of the mesh.
	Destination *ServiceDestination `json:"Destination,omitempty"`

	// MaxInboundConnections that one sidecar of the service accepts; 0: no limit.
	MaxInboundConnections int `json:"MaxInboundConnections,omitempty"`
	// LocalConnectTimeoutMs from sidecar to app; 0: 5000.
	LocalConnectTimeoutMs int `json:"LocalConnectTimeoutMs,omitempty"`
	// LocalRequestTimeoutMs for a request to the app; 0: no limit.
	LocalRequestTimeoutMs int `json:"LocalRequestTimeoutMs,omitempty"`
	// BalanceInboundConnections is "" or "exact_balance".
	BalanceInboundConnections string `json:"BalanceInboundConnections,omitempty"`
}

// ServiceDestination is where a service outside of the mesh is, for terminating gateways.
// Consul's DestinationConfig.
type ServiceDestination struct {
	Addresses []string `json:"Addresses,omitempty"` // IPs or host names
	Port      int      `json:"Port,omitempty"`
}

// UpstreamConfiguration is settings for all upstreams of a service and overrides by name.
type UpstreamConfiguration struct {
	Defaults  *UpstreamSettings  `json:"Defaults,omitempty"`
	Overrides []UpstreamSettings `json:"Overrides,omitempty"`
}

// UpstreamSettings is how one service calls another. Consul's UpstreamConfig.
type UpstreamSettings struct {
	Name                       string              `json:"Name,omitempty"` // of the upstream; only in Overrides
	Protocol                   string              `json:"Protocol,omitempty"`
	ConnectTimeoutMs           int                 `json:"ConnectTimeoutMs,omitempty"` // 0: see docs/envoy.md
	Limits                     *UpstreamLimits     `json:"Limits,omitempty"`
	PassiveHealthCheck         *PassiveHealthCheck `json:"PassiveHealthCheck,omitempty"`
	BalanceOutboundConnections string              `json:"BalanceOutboundConnections,omitempty"` // "" or "exact_balance"
	// Escape hatches, see docs/envoy.md. A listener belongs to one upstream.
	EnvoyListenerJSON string `json:"EnvoyListenerJSON,omitempty"`
	EnvoyClusterJSON  string `json:"EnvoyClusterJSON,omitempty"`
}

// UpstreamLimits bound what one sidecar may have open to one upstream. Nil: our default.
type UpstreamLimits struct {
	MaxConnections        *int `json:"MaxConnections,omitempty"`
	MaxPendingRequests    *int `json:"MaxPendingRequests,omitempty"`
	MaxConcurrentRequests *int `json:"MaxConcurrentRequests,omitempty"`
}

// PassiveHealthCheck ejects an instance that fails. Zero values: our defaults.
type PassiveHealthCheck struct {
	Interval                Duration `json:"Interval,omitempty"`
	MaxFailures             uint32   `json:"MaxFailures,omitempty"`             // consecutive 5xx
	EnforcingConsecutive5xx *uint32  `json:"EnforcingConsecutive5xx,omitempty"` // percent
	MaxEjectionPercent      *uint32  `json:"MaxEjectionPercent,omitempty"`
	BaseEjectionTime        Duration `json:"BaseEjectionTime,omitempty"`
}

// EntryKind implements [Entry].
func (e *ServiceDefaults) EntryKind() Kind { return KindServiceDefaults }

// EntryName implements [Entry].
func (e *ServiceDefaults) EntryName() string { return e.Name }

// MarshalJSON writes durations in nanoseconds: Consul's Go client reads nothing else here.
func (p PassiveHealthCheck) MarshalJSON() ([]byte, error) {
	type plain PassiveHealthCheck
	return json.Marshal(struct {
		Interval int64 `json:"Interval,omitempty"`
		plain
		BaseEjectionTime int64 `json:"BaseEjectionTime,omitempty"`
	}{int64(p.Interval), plain(p), int64(p.BaseEjectionTime)})
}

// Normalize implements [Entry].
func (e *ServiceDefaults) Normalize() {
	e.Kind = KindServiceDefaults
	lower(&e.Protocol)
	if u := e.UpstreamConfig; u != nil {
		if u.Defaults != nil {
			lower(&u.Defaults.Protocol)
		}
		for i := range u.Overrides {
			lower(&u.Overrides[i].Protocol)
		}
	}
}

// Validate implements [Entry].
func (e *ServiceDefaults) Validate() error { return validate(e) }

func (e *ServiceDefaults) check(r *report) {
	r.name("Name", e.Name)
	r.meta("Meta", e.Meta)
	r.protocol("Protocol", e.Protocol)
	r.mutualTLSMode(e.MutualTLSMode)
	r.count("MaxInboundConnections", e.MaxInboundConnections)
	r.count("LocalConnectTimeoutMs", e.LocalConnectTimeoutMs)
	r.count("LocalRequestTimeoutMs", e.LocalRequestTimeoutMs)
	r.oneOf("BalanceInboundConnections", e.BalanceInboundConnections, "", exactBalance)
	if d := e.Destination; d != nil {
		if len(d.Addresses) == 0 {
			r.addf("Destination.Addresses", "is empty: name an IP or a host at least")
		}
		for i, a := range d.Addresses {
			path := index("Destination.Addresses", i)
			if a == "" {
				r.addf(path, "is empty: want an IP or a host name, without a port")
			}
			r.host(path, a)
		}
		r.port("Destination.Port", d.Port, false)
	}
	if e.UpstreamConfig == nil {
		return
	}
	if d := e.UpstreamConfig.Defaults; d != nil {
		if d.Name != "" {
			r.addf("UpstreamConfig.Defaults.Name", "must be empty: defaults are for all upstreams")
		}
		if d.EnvoyListenerJSON != "" {
			r.addf("UpstreamConfig.Defaults.EnvoyListenerJSON", "a listener belongs to one upstream: set it in Overrides")
		}
		d.check(r, "UpstreamConfig.Defaults")
	}
	seen := map[string]int{}
	for i := range e.UpstreamConfig.Overrides {
		o := &e.UpstreamConfig.Overrides[i]
		path := index("UpstreamConfig.Overrides", i)
		r.name(path+".Name", o.Name)
		if first, again := seen[o.Name]; again && o.Name != "" {
			r.addf(path+".Name", "%q: already in Overrides[%s]", cut(o.Name), strconv.Itoa(first))
		} else {
			seen[o.Name] = i
		}
		o.check(r, path)
	}
}

const exactBalance = "exact_balance"

// check is for the settings of either place and of an upstream's opaque config.
func (u *UpstreamSettings) check(r *report, path string) {
	r.protocol(join(path, "Protocol"), u.Protocol)
	r.count(join(path, "ConnectTimeoutMs"), u.ConnectTimeoutMs)
	r.oneOf(join(path, "BalanceOutboundConnections"), u.BalanceOutboundConnections, "", exactBalance)
	if l := u.Limits; l != nil {
		for _, limit := range []struct {
			name  string
			value *int
		}{
			{"MaxConnections", l.MaxConnections},
			{"MaxPendingRequests", l.MaxPendingRequests},
			{"MaxConcurrentRequests", l.MaxConcurrentRequests},
		} {
			if limit.value != nil {
				r.count(join(path, "Limits."+limit.name), *limit.value)
			}
		}
	}
	if p := u.PassiveHealthCheck; p != nil {
		path = join(path, "PassiveHealthCheck.")
		r.notNegative(path+"Interval", p.Interval)
		r.notNegative(path+"BaseEjectionTime", p.BaseEjectionTime)
		r.percent(path+"EnforcingConsecutive5xx", p.EnforcingConsecutive5xx)
		r.percent(path+"MaxEjectionPercent", p.MaxEjectionPercent)
	}
}
