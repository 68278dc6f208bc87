package config

// Global is the only name a proxy-defaults entry may have.
const Global = "global"

// ProxyDefaults is Consul's proxy-defaults entry: what all sidecars have in common.
type ProxyDefaults struct {
	Kind Kind              `json:"Kind"`
	Name string            `json:"Name"`
	Meta map[string]string `json:"Meta,omitempty"`
	// Config takes "protocol", "local_connect_timeout_ms", "local_request_timeout_ms",
	// "local_idle_timeout_ms", "max_inbound_connections" and "balance_inbound_connections";
	// what a service-defaults entry or a registration says wins.
	Config map[string]any `json:"Config,omitempty"`
}

// EntryKind implements [Entry].
func (e *ProxyDefaults) EntryKind() Kind { return KindProxyDefaults }

// EntryName implements [Entry].
func (e *ProxyDefaults) EntryName() string { return e.Name }
