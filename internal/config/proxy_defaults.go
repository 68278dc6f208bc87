package config

import "strings"

// Global is the only name a proxy-defaults entry may have.
const Global = "global"

// ProxyDefaults is Consul's proxy-defaults entry: what all sidecars have in common.
type ProxyDefaults struct {
	Kind Kind              `json:"Kind"`
	Name string            `json:"Name"`
	Meta map[string]string `json:"Meta,omitempty"`
	// Config takes "protocol", "local_connect_timeout_ms", "local_request_timeout_ms",
	// "local_idle_timeout_ms", "max_inbound_connections" and "balance_inbound_connections";
	// what a service-defaults entry or a registration says wins. See [ProxyDefaults.ProxyConfig].
	Config map[string]any `json:"Config,omitempty"`
	// MutualTLSMode is for services that have none of their own. See [Set.MutualTLSMode].
	MutualTLSMode string `json:"MutualTLSMode,omitempty"`
}

// EntryKind implements [Entry].
func (e *ProxyDefaults) EntryKind() Kind { return KindProxyDefaults }

// EntryName implements [Entry].
func (e *ProxyDefaults) EntryName() string { return e.Name }

// Normalize implements [Entry].
func (e *ProxyDefaults) Normalize() {
	e.Kind = KindProxyDefaults
	if e.Name == "" {
		e.Name = Global
	}
}

// Validate implements [Entry].
func (e *ProxyDefaults) Validate() error { return validate(e) }

func (e *ProxyDefaults) check(r *report) {
	r.oneOf("Name", e.Name, "", Global)
	r.meta("Meta", e.Meta)
	r.mutualTLSMode(e.MutualTLSMode)
	c, unknown, problems := decodeProxyConfig(e.Config)
	r.nested("Config", problems)
	r.unknownKeys("Config", unknown)
	if c.BindAddress != "" || c.BindPort != 0 || c.PlaintextPort != 0 || c.ServerFirst {
		r.addf("Config", "bind_address, bind_port, plaintext_port and server_first belong to one proxy: set them in its registration")
	}
	if c.PublicListenerJSON != "" || c.LocalClusterJSON != "" {
		r.addf("Config", "%s and %s belong to one proxy: set them in its registration", PublicListenerHatch, LocalClusterHatch)
	}
	if c.StatsTags != nil {
		r.addf(join("Config", statsTagsKey), "labels belong to one proxy, whose Envoy starts with them: set them in its registration")
	}
	if c.Sizing != (Sizing{}) {
		r.addf("Config.crossfade_sizing", "a size belongs to one proxy: set it in its registration")
	}
}

// ProxyConfig is Config by its known keys; zero for a nil entry. The entry is valid.
func (e *ProxyDefaults) ProxyConfig() ProxyConfig {
	if e == nil {
		return ProxyConfig{}
	}
	c, _, _ := decodeProxyConfig(e.Config)
	return c
}

// Protocol is what services speak that have no entry of their own; "" when nothing is said.
func (e *ProxyDefaults) Protocol() string { return e.ProxyConfig().Protocol }

// lower is for words that Consul takes in any case.
func lower(s *string) { *s = strings.ToLower(*s) }
