package config

// ServiceDefaults is Consul's service-defaults entry: how a service is spoken to.
// See Consul's "Service defaults configuration reference".
type ServiceDefaults struct {
	Kind     Kind              `json:"Kind"`
	Name     string            `json:"Name"`
	Protocol string            `json:"Protocol,omitempty"` // tcp, http, http2 or grpc; "" takes proxy-defaults' or tcp
	Meta     map[string]string `json:"Meta,omitempty"`

	// UpstreamConfig is this service's view of the services it calls.
	UpstreamConfig *UpstreamConfiguration `json:"UpstreamConfig,omitempty"`

	// MaxInboundConnections that one sidecar of the service accepts; 0: no limit.
	MaxInboundConnections int `json:"MaxInboundConnections,omitempty"`
	// LocalConnectTimeoutMs from sidecar to app; 0: 5000.
	LocalConnectTimeoutMs int `json:"LocalConnectTimeoutMs,omitempty"`
	// LocalRequestTimeoutMs for a request to the app; 0: no limit.
	LocalRequestTimeoutMs int `json:"LocalRequestTimeoutMs,omitempty"`
	// BalanceInboundConnections is "" or "exact_balance".
	BalanceInboundConnections string `json:"BalanceInboundConnections,omitempty"`
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
