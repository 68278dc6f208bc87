package envoy

import (
	"regexp"
	"strings"

	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// statFamily is stats that share a beginning.
type statFamily struct {
	prefix string   // a regular expression
	names  []string // literal
}

// families are what Envoy counts. Each stat costs memory per upstream and a line
// per scrape, so only those are kept that a question is answered with.
func families() []statFamily {
	const tls = "ssl."
	return []statFamily{
		{`cluster\.(?:.+\.internal\..+|` + LocalApp + `|exposed_cluster_\w+)\.`, []string{
			"upstream_cx_active", "upstream_cx_total", "upstream_cx_rx_bytes_total", "upstream_cx_tx_bytes_total",
			"upstream_cx_connect_fail", "upstream_cx_connect_timeout", "upstream_cx_overflow", "upstream_cx_none_healthy",
			"upstream_cx_destroy_local_with_active_rq", "upstream_cx_destroy_remote_with_active_rq", "upstream_cx_protocol_error",
			"upstream_rq_active", "upstream_rq_total", "upstream_rq_timeout", "upstream_rq_pending_overflow", "upstream_rq_active_overflow", "upstream_rq_rx_reset",
			"upstream_rq_retry", "upstream_rq_retry_success", "upstream_rq_retry_overflow", "upstream_rq_retry_limit_exceeded",
			"membership_total", "membership_healthy", "outlier_detection.ejections_active", "outlier_detection.ejections_enforced_total",
			tls + "handshake", tls + "session_reused", tls + "connection_error", tls + "fail_verify_san", tls + "fail_verify_error",
			"client_ssl_socket_factory.ssl_context_update_by_sds", "http2.keepalive_timeout", "update_success", "update_rejected",
		}},
		{`http\.(?:public_listener|public_listener_plaintext|exposed_path_filter_\w+|upstream\..+)\.`, []string{
			"downstream_cx_active", "downstream_cx_total", "downstream_cx_rx_bytes_total", "downstream_cx_tx_bytes_total",
			"downstream_cx_drain_close", "downstream_cx_idle_timeout", "downstream_cx_protocol_error",
			"downstream_rq_active", "downstream_rq_total", "downstream_rq_time",
			"downstream_rq_1xx", "downstream_rq_2xx", "downstream_rq_3xx", "downstream_rq_4xx", "downstream_rq_5xx",
			"downstream_rq_rx_reset", "downstream_rq_tx_reset", "downstream_rq_timeout", "downstream_rq_idle_timeout",
			"downstream_rq_header_timeout", "downstream_rq_too_large", "downstream_rq_overload_close", "rbac.allowed", "rbac.denied", "rbac.shadow_denied",
		}},
		{`cf\..+`, []string{""}},
		{`http\..+\.rds\..+\.`, []string{"update_success", "update_rejected"}},
		{`tcp\.(?:public_listener|public_listener_plaintext|upstream\..+)\.`, []string{
			"downstream_cx_total", "downstream_cx_rx_bytes_total", "downstream_cx_tx_bytes_total", "downstream_cx_no_route", "idle_timeout",
		}},
		{`public_listener(?:_plaintext)?\.`, []string{"rbac.allowed", "rbac.denied", "rbac.shadow_denied"}},
		// A listener's name is its address, without the stats per worker and the copies
		// of its HTTP stats.
		{`listener\.[0-9a-fA-F_.:\[\]]+\.`, []string{
			"downstream_cx_active", "downstream_cx_total", "downstream_cx_overflow", "downstream_global_cx_overflow", "downstream_cx_overload_reject",
			tls + "handshake", tls + "session_reused", tls + "connection_error", tls + "fail_verify_san", tls + "fail_verify_error", tls + "fail_verify_no_cert",
			tls + "versions.TLSv1.3", "server_ssl_socket_factory.ssl_context_update_by_sds",
		}},
		{`extension_config_discovery\..+\.`, []string{"config_reload", "update_rejected"}},
		{`cluster_manager\.`, []string{"active_clusters", "warming_clusters", "cds.update_success", "cds.update_rejected"}},
		{`listener_manager\.`, []string{
			"listener_added", "listener_modified", "listener_removed", "listener_in_place_updated", "listener_create_failure",
			"total_listeners_active", "total_listeners_warming", "total_listeners_draining", "total_filter_chains_draining",
			"lds.update_success", "lds.update_rejected",
		}},
		{`control_plane\.`, []string{"connected_state", "rate_limit_enforced", "pending_requests"}},
		{`runtime\.`, []string{"load_success", "load_error", "num_keys"}},
		{`overload\.envoy\.`, []string{
			"resource_monitors.fixed_heap.pressure", "resource_monitors.global_downstream_max_connections.pressure",
			"overload_actions.disable_http_keepalive.active", "overload_actions.stop_accepting_requests.active", "overload_actions.reject_incoming_connections.active",
		}},
		{`server\.`, []string{"live", "state", "uptime", "concurrency", "memory_allocated", "memory_heap_size", "total_connections", "envoy_bug_failures", "days_until_first_cert_expiring"}},
	}
}

// statsConfig keeps what families name. source and datacenter become labels under
// Consul's names, on every line, and so does each "name=value" of tags.
func statsConfig(source, datacenter string, tags []string) *metricsv3.StatsConfig {
	keep := &matcherv3.ListStringMatcher{}
	for _, f := range families() {
		keep.Patterns = append(keep.Patterns, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{
			SafeRegex: &matcherv3.RegexMatcher{Regex: f.pattern()},
		}})
	}
	fixed := func(name, value string) *metricsv3.TagSpecifier {
		return &metricsv3.TagSpecifier{TagName: name, TagValue: &metricsv3.TagSpecifier_FixedValue{FixedValue: value}}
	}
	parsed := func(name, regex string) *metricsv3.TagSpecifier {
		return &metricsv3.TagSpecifier{TagName: name, TagValue: &metricsv3.TagSpecifier_Regex{Regex: regex}}
	}
	out := &metricsv3.StatsConfig{
		StatsMatcher: &metricsv3.StatsMatcher{StatsMatcher: &metricsv3.StatsMatcher_InclusionList{InclusionList: keep}},
	}
	if source != "" {
		out.StatsTags = append(out.StatsTags, fixed("consul.source.service", source))
	}
	if datacenter != "" {
		out.StatsTags = append(out.StatsTags, fixed("consul.source.datacenter", datacenter))
	}
	for _, tag := range tags {
		name, value, _ := strings.Cut(tag, "=")
		out.StatsTags = append(out.StatsTags, fixed(name, value))
	}
	// Of a cluster's name. The first group is cut out of the stat's name, the second
	// is the label's value.
	out.StatsTags = append(out.StatsTags,
		parsed("consul.destination.service", `^cluster\.(([^.]+)\.default\.[^.]+\.internal\.[^.]+\.consul\.)`),
		parsed("consul.destination.datacenter", `^cluster\.([^.]+\.default\.([^.]+)\.internal\.[^.]+\.consul\.)`),
	)
	return out
}

// pattern matches the whole name of each stat of the family.
func (f statFamily) pattern() string {
	names := make([]string, len(f.names))
	for i, n := range f.names {
		names[i] = regexp.QuoteMeta(n)
	}
	return "^" + f.prefix + "(?:" + strings.Join(names, "|") + ")$"
}
