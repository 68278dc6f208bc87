package envoy

import (
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// What Envoy counts. Each stat costs memory per upstream and a line per scrape, so
// only those are kept that a question is answered with.
var (
	statPrefixes = []string{
		"cluster_manager.active_clusters", "cluster_manager.warming_clusters", "cluster_manager.update_",
		"listener_manager.listener_", "listener_manager.lds.", "listener_manager.total_",
		"control_plane.", "runtime.load_", "server.",
	}
	statSuffixes = []string{
		// Upstream and downstream connections, requests and bytes.
		"_cx_active", "_cx_total", "_cx_rx_bytes_total", "_cx_tx_bytes_total",
		"_cx_overflow", "_cx_connect_fail", "_cx_connect_timeout", "_cx_destroy_remote_with_active_rq", "_cx_destroy_local_with_active_rq",
		"_cx_idle_timeout", "_cx_protocol_error", "_cx_drain_close", "_cx_none_healthy", "_cx_length_ms",
		"_rq_active", "_rq_total", "_rq_time", "_rq_1xx", "_rq_2xx", "_rq_3xx", "_rq_4xx", "_rq_5xx",
		"_rq_timeout", "_rq_rx_reset", "_rq_tx_reset", "_rq_pending_overflow", "_rq_idle_timeout", "_rq_header_timeout",
		"_rq_retry", "_rq_retry_success", "_rq_retry_overflow", "_rq_retry_limit_exceeded", "_rq_too_large",
		// Who is in, who is out.
		".membership_total", ".membership_healthy", ".outlier_detection.ejections_active", ".outlier_detection.ejections_enforced_total",
		// TLS and intentions.
		".ssl.handshake", ".ssl.session_reused", ".ssl.connection_error", ".ssl.fail_verify_san", ".ssl.fail_verify_error", ".ssl.fail_verify_no_cert",
		".ssl_context_update_by_sds", "rbac.allowed", "rbac.denied",
		// Refused before routing.
		".requests_rejected_with_underscores_in_headers", ".dropped_headers_with_underscores", ".failed_path_normalization",
		// Configuration taken and refused.
		".update_success", ".update_rejected", ".keepalive_timeout",
	}
)

// statsConfig keeps what the lists above name. source and datacenter become
// labels under Consul's names, on every line.
func statsConfig(source, datacenter string) *metricsv3.StatsConfig {
	keep := &matcherv3.ListStringMatcher{}
	for _, p := range statPrefixes {
		keep.Patterns = append(keep.Patterns, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: p}})
	}
	for _, s := range statSuffixes {
		keep.Patterns = append(keep.Patterns, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: s}})
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
	out.StatsTags = append(out.StatsTags,
		// Of a cluster's name; the group that is cut out of the stat's name is the
		// first, the tag's value the second.
		parsed("consul.destination.service", `^cluster\.((([^.]+)\.)default\.[^.]+\.internal\.[^.]+\.consul\.)`),
	)
	return out
}
