package config

import "slices"

// Keys of Consul's escape hatches in a proxy's Config: text that is Envoy's own.
const (
	PublicListenerHatch = "envoy_public_listener_json"
	LocalClusterHatch   = "envoy_local_cluster_json"
	ListenerHatch       = "envoy_listener_json" // of an upstream
	ClusterHatch        = "envoy_cluster_json"  // of an upstream
)

// bootstrapHatches are the escape hatches that reach into Envoy's bootstrap. What a
// sidecar starts from on its own is not to depend on them.
func bootstrapHatches() []string {
	return []string{
		"envoy_bootstrap_json_tpl", "envoy_extra_static_clusters_json", "envoy_extra_static_listeners_json",
		"envoy_extra_stats_sinks_json", "envoy_stats_config_json", "envoy_tracing_json", "envoy_listener_tracing_json",
	}
}

// WhyUnknown says what is to be done about a key of an opaque Config that
// [DecodeProxyConfig] or [DecodeUpstreamSettings] does not know.
func WhyUnknown(key string) string {
	if slices.Contains(bootstrapHatches(), key) {
		return "this escape hatch is not served, only " + PublicListenerHatch + ", " + LocalClusterHatch + ", " + ListenerHatch + " and " + ClusterHatch + " are"
	}
	return "unknown key, it would have no effect"
}
