package connectfleet

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// entry and proxyOf are as Consul's API gives them.
func entry(text string) json.RawMessage { return json.RawMessage(text) }

func proxyOf(service, proxy string) json.RawMessage {
	return json.RawMessage(fmt.Sprintf(`{"Node": {"Node": "n1", "Address": "10.0.0.1"}, "Service": {"Kind": "connect-proxy", "ID": %q, "Service": %q, "Port": 21000, "Address": "",
		"Connect": {}, "PeerName": "", "Proxy": {"DestinationServiceName": %q, "DestinationServiceID": %q, "Mode": "", "MeshGateway": {}, "Expose": {}%s}}, "Checks": []}`,
		service+"-sidecar-proxy", service+"-sidecar-proxy", service, service, proxy))
}

func TestCheck(t *testing.T) {
	http := entry(`{"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}, "TransparentProxy": {}, "MeshGateway": {}, "Expose": {}, "AccessLogs": {}, "CreateIndex": 9, "ModifyIndex": 9}`)
	for _, tc := range []struct {
		name      string
		entries   []json.RawMessage
		instances []json.RawMessage
		options   Options
		want      []string // "severity subject: problem", by its beginning
	}{
		{name: "nothing odd", entries: []json.RawMessage{http}, instances: []json.RawMessage{
			proxyOf("web", `, "Config": {"protocol": "http"}, "Upstreams": [{"DestinationType": "service", "DestinationName": "db", "Datacenter": "", "LocalBindPort": 7100, "MeshGateway": {}}]`),
			proxyOf("db", ""),
		}},
		{name: "as Nomad registers", instances: []json.RawMessage{proxyOf("web", `, "Mode": "", "Config": {"bind_address": "0.0.0.0", "bind_port": 31556,
			"envoy_stats_tags": ["nomad.alloc_id=5fc65665-8bf4-1864-a408-0d082afda5e4", "nomad.group=api", "nomad.job=catalog", "nomad.namespace=default"]},
			"MeshGateway": {}, "Expose": {"Paths": [{"ListenerPort": 24624, "Path": "/", "LocalPathPort": 9090}]}`)}},
		{name: "what Consul adds for defaults is nobody's", instances: []json.RawMessage{proxyOf("web", `, "Upstreams": [{"DestinationType": "service", "DestinationName": "*", "CentrallyConfigured": true, "MeshGateway": {"Mode": "local"}}]`)}},
		{name: "transparent proxy", instances: []json.RawMessage{proxyOf("web", `, "TransparentProxy": {"OutboundListenerPort": 15001}`)},
			want: []string{"breaks sidecar web-sidecar-proxy on n1: Proxy.TransparentProxy: not served"}},
		{name: "extensions", entries: []json.RawMessage{entry(`{"Kind": "service-defaults", "Name": "web", "EnvoyExtensions": [{"Name": "builtin/wasm"}]}`)},
			want: []string{"breaks service-defaults/web: EnvoyExtensions: builtin/wasm is not served", "breaks service-defaults/web: EnvoyExtensions: not served"}},
		{name: "peering", instances: []json.RawMessage{proxyOf("web", `, "Upstreams": [{"DestinationName": "db", "DestinationPeer": "other", "LocalBindPort": 7100}]`)},
			want: []string{`breaks sidecar web-sidecar-proxy on n1: upstream "db" port 7100: peer "other"`}},
		{name: "prepared query", instances: []json.RawMessage{proxyOf("web", `, "Upstreams": [{"DestinationName": "q", "DestinationType": "prepared_query", "LocalBindPort": 7100}]`)},
			want: []string{`breaks sidecar web-sidecar-proxy on n1: upstream "q" port 7100: destination type "prepared_query"`}},
		{name: "another datacenter", instances: []json.RawMessage{proxyOf("web", `, "Upstreams": [{"DestinationName": "db", "Datacenter": "dc2", "LocalBindPort": 7100}]`)},
			want: []string{"breaks sidecar web-sidecar-proxy on n1: db.default.dc2.internal.td.consul: no mesh gateway for dc2"}},
		{name: "hatch, off", instances: []json.RawMessage{proxyOf("web", `, "Config": {"envoy_local_cluster_json": "{}"}`)},
			want: []string{"breaks sidecar web-sidecar-proxy on n1: local app: envoy_local_cluster_json: escape hatches are off"}},
		{name: "hatch, on", options: Options{AllowEscapeHatches: true}, instances: []json.RawMessage{proxyOf("web", `, "Config": {"envoy_local_cluster_json": "{}"}`)}},
		{name: "hatch into the bootstrap", instances: []json.RawMessage{proxyOf("web", `, "Config": {"envoy_extra_static_clusters_json": "{}"}`)},
			want: []string{`breaks sidecar web-sidecar-proxy on n1: proxy config: "envoy_extra_static_clusters_json"`}},
		{name: "unheard of", instances: []json.RawMessage{proxyOf("web", `, "Config": {"whatever": 1}`)},
			want: []string{`differs sidecar web-sidecar-proxy on n1: proxy config: "whatever": unknown key`}},
		{name: "checks through the proxy", instances: []json.RawMessage{proxyOf("web", `, "Expose": {"Checks": true}`)},
			want: []string{"differs sidecar web-sidecar-proxy on n1: Proxy.Expose.Checks"}},
		{name: "gateways", entries: []json.RawMessage{entry(`{"Kind": "ingress-gateway", "Name": "in"}`), entry(`{"Kind": "terminating-gateway", "Name": "out"}`)},
			instances: []json.RawMessage{entry(`{"Node": {"Node": "n1"}, "Service": {"Kind": "mesh-gateway", "ID": "mgw", "Service": "mgw"}}`)},
			want:      []string{"breaks mesh-gateway mgw on n1: other datacenters", "breaks terminating-gateway/out: services behind it", "differs ingress-gateway/in: stays with Consul"}},
		{name: "enterprise", instances: []json.RawMessage{entry(`{"Node": {"Node": "n1", "Address": "10.0.0.1"}, "Service": {"ID": "web", "Service": "web", "Port": 80, "Namespace": "team", "Partition": "default"}}`)},
			want: []string{`breaks service web on n1: "team": namespaces and partitions`}},
		{name: "no IP address", entries: []json.RawMessage{http}, instances: []json.RawMessage{
			proxyOf("web", `, "Upstreams": [{"DestinationName": "db", "LocalBindPort": 7100}]`),
			json.RawMessage(strings.Replace(string(proxyOf("db", "")), "10.0.0.1", "db.example.com", 1)),
		}, want: []string{`breaks service db: instance "db-sidecar-proxy" on node "n1": address "db.example.com" is no IP address`}},
		{name: "no JSON", entries: []json.RawMessage{entry(`{`)}, instances: []json.RawMessage{entry(`[]`), entry(`{"Node": {"Node": "n1"}, "Service": 7}`)},
			want: []string{"breaks entry: not Consul's JSON", "breaks registration: not Consul's JSON", "breaks registration on node n1: not Consul's JSON"}},
		{name: "another default", options: Options{}, want: []string{"breaks intentions: Consul's default is allow"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.name != "another default" {
				tc.options.DefaultAllow = true
			}
			f := Fleet{Datacenter: "dc1", TrustDomain: "td.consul", DefaultAllow: true, Entries: tc.entries, Instances: tc.instances}
			got := Check(f, tc.options)
			slices.Reverse(f.Entries)
			slices.Reverse(f.Instances)
			if again := Check(f, tc.options); !slices.Equal(again.Findings, got.Findings) {
				t.Errorf("in another order it says\n%+v\nand before\n%+v", again.Findings, got.Findings)
			}
			if len(got.Findings) != len(tc.want) {
				t.Errorf("says %+v, want %q", got.Findings, tc.want)
			}
			for _, want := range tc.want {
				if !slices.ContainsFunc(got.Findings, func(x Finding) bool { return strings.HasPrefix(x.Severity+" "+x.Subject+": "+x.Problem, want) }) {
					t.Errorf("nobody says %q:\n%+v", want, got.Findings)
				}
			}
			if broken := slices.ContainsFunc(tc.want, func(w string) bool { return strings.HasPrefix(w, Breaks) }); got.Broken() != broken {
				t.Errorf("Broken() = %v, want %v", got.Broken(), broken)
			}
		})
	}
}
