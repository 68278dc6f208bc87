package config

import (
	"reflect"
	"slices"
)

// ProxyConfig is the part of a proxy's opaque Config that has a meaning: in a
// registration's Proxy.Config and in proxy-defaults. Zero: nothing is said.
type ProxyConfig struct {
	Protocol    string `json:"protocol"`
	BindAddress string `json:"bind_address"` // of the public listener; default the proxy's address
	BindPort    int    `json:"bind_port"`    // of the public listener; default the proxy's port
	// PlaintextPort is where a permissive tcp service takes plaintext alone, beside the
	// public port; 0: on the public port only.
	PlaintextPort int `json:"plaintext_port"`
	// ServerFirst says that the app speaks before its callers do. A permissive tcp service
	// then takes plaintext on PlaintextPort alone, where nobody waits to be told apart.
	ServerFirst               bool   `json:"server_first"`
	LocalConnectTimeoutMs     int    `json:"local_connect_timeout_ms"`
	LocalRequestTimeoutMs     int    `json:"local_request_timeout_ms"`
	LocalIdleTimeoutMs        int    `json:"local_idle_timeout_ms"`
	MaxInboundConnections     int    `json:"max_inbound_connections"`
	BalanceInboundConnections string `json:"balance_inbound_connections"` // "" or "exact_balance"
	// StatsTags are labels of every stat of the proxy, each "name=value". They are part of what Envoy starts with.
	StatsTags []string `json:"envoy_stats_tags"`
	// Escape hatches, see docs/envoy.md.
	PublicListenerJSON string `json:"envoy_public_listener_json"`
	LocalClusterJSON   string `json:"envoy_local_cluster_json"`
	// Sizing is ours, and for the sidecar itself: no resource of Envoy's depends on it.
	Sizing Sizing `json:"crossfade_sizing"`
}

// DecodeProxyConfig reads a proxy's opaque Config, with numbers also as strings as
// Consul takes them. unknown are the keys that mean nothing here, sorted. Beside an
// error the value holds what could be read.
func DecodeProxyConfig(config map[string]any) (c ProxyConfig, unknown []string, err error) {
	c, unknown, problems := decodeProxyConfig(config)
	return c, unknown, (&report{list: problems}).err()
}

func decodeProxyConfig(config map[string]any) (c ProxyConfig, unknown []string, problems []problem) {
	unknown, r := decodeOpaque(config, &c)
	lower(&c.Protocol)
	r.protocol("protocol", c.Protocol)
	r.host("bind_address", c.BindAddress)
	r.port("bind_port", c.BindPort, true)
	r.port("plaintext_port", c.PlaintextPort, true)
	r.count("local_connect_timeout_ms", c.LocalConnectTimeoutMs)
	r.count("local_request_timeout_ms", c.LocalRequestTimeoutMs)
	r.count("local_idle_timeout_ms", c.LocalIdleTimeoutMs)
	r.count("max_inbound_connections", c.MaxInboundConnections)
	r.oneOf("balance_inbound_connections", c.BalanceInboundConnections, "", exactBalance)
	c.StatsTags = r.statsTags(statsTagsKey, c.StatsTags)
	c.Sizing.check(r, sizingKey)
	return c, unknown, r.list
}

// DecodeUpstreamSettings reads the opaque Config of an upstream in a registration:
// protocol, connect_timeout_ms, limits, passive_health_check,
// balance_outbound_connections, envoy_listener_json, envoy_cluster_json. Otherwise as [DecodeProxyConfig].
func DecodeUpstreamSettings(config map[string]any) (u UpstreamSettings, unknown []string, err error) {
	u, unknown, problems := decodeUpstreamSettings(config)
	return u, unknown, (&report{list: problems}).err()
}

func decodeUpstreamSettings(config map[string]any) (u UpstreamSettings, unknown []string, problems []problem) {
	if len(config) == 0 { // as most are
		return u, nil, nil
	}
	unknown, r := decodeOpaque(config, &u)
	if u.Name != "" { // the upstream has one of its own
		unknown, u.Name = append(unknown, "name"), ""
		slices.Sort(unknown)
	}
	lower(&u.Protocol)
	u.check(r, "")
	return u, unknown, r.list
}

func decodeOpaque(config map[string]any, target any) (unknown []string, r *report) {
	r = &report{}
	n, err := nodeOf(config, 0)
	if err != nil {
		r.addf("", "%s", oneLine(err.Error()))
		return nil, r
	}
	d := decoder{r: r, weak: true, unknown: func(path string) { unknown = append(unknown, path) }}
	d.decode(n, reflect.ValueOf(target).Elem(), "")
	slices.Sort(unknown)
	return unknown, r
}

// nested adds problems found below path.
func (r *report) nested(path string, problems []problem) {
	for _, p := range problems {
		at := join(path, p.path)
		if p.path == "" {
			at = path
		}
		r.addf(at, "%s", p.text)
	}
}

// unknownKeys refuses what would have no effect in an opaque map.
func (r *report) unknownKeys(path string, unknown []string) {
	for _, key := range unknown {
		r.addf(join(path, shown(key)), "%s", WhyUnknown(key))
	}
}
