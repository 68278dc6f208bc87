package nodeproxy

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// object is JSON, whose keys are written in order.
type object = map[string]any

// Files are what Envoy watches, by name: cds.json, front.json and peer.json (routes), and
// one of endpoints for each cluster. The bootstrap is not among them: it never changes.
type Files map[string][]byte

const (
	clustersFile = "cds.json"
	frontFile    = "front.json"
	peerFile     = "peer.json"

	frontPrefix = "front~" // clusters of node proxies that have a service
	peerPrefix  = "peer~"  // clusters of a service's instances on this host

	typeURL      = "type.googleapis.com/"
	connectLimit = "1s"
	most         = 1 << 20      // connections and requests at a time
	clusterOf    = "node-proxy" // of the node, as Envoy names it
	via          = "node-proxy" // in the header Via, of requests and answers
)

// Build is what Envoy has to be told of all services, in a folder. Instances that cannot
// be told are left out and named. A nil snapshot has no services.
func Build(l Layout, dir string, all *catalog.Snapshot) (Files, []string) {
	byService, problems := apps(all)
	for _, t := range l.TCP {
		if _, ok := byService[t.Service]; !ok {
			byService[t.Service] = nil
		}
	}
	var clusters, front, peer []any
	files := Files{}
	for _, service := range slices.Sorted(maps.Keys(byService)) {
		tcp := l.tcp(service)
		for prefix, endpoints := range map[string][]object{
			frontPrefix: peers(byService[service], l.peerPort(service)),
			peerPrefix:  locals(byService[service], l.Node),
		} {
			name := prefix + service
			files[endpointsFile(name)] = response(object{
				"@type": typeURL + "envoy.config.endpoint.v3.ClusterLoadAssignment", "cluster_name": name,
				"endpoints": []any{object{"lb_endpoints": endpoints}},
			})
		}
		clusters = append(clusters, cluster(dir, frontPrefix+service, tcp), cluster(dir, peerPrefix+service, tcp))
		if tcp {
			continue
		}
		front = append(front, virtualHost(service, l.Domain, frontPrefix+service))
		peer = append(peer, virtualHost(service, l.Domain, peerPrefix+service))
	}
	files[clustersFile] = response(clusters...)
	files[frontFile] = response(routes("front", front))
	files[peerFile] = response(routes("peer", peer))
	return files, problems
}

// apps are the instances of each service that are no proxy for another.
func apps(all *catalog.Snapshot) (map[string][]catalog.Instance, []string) {
	out := map[string][]catalog.Instance{}
	var problems []string
	if all == nil {
		return out, nil
	}
	for _, name := range all.Services() {
		for _, in := range all.Set(name).Instances {
			switch {
			case in.Service.Kind != catalog.Typical:
			case !usable(name):
				problems = append(problems, fmt.Sprintf("service %q: its name cannot be one of a Host", name))
			case net.ParseIP(in.Address()) == nil || net.ParseIP(in.Node.Address) == nil || !port(in.Service.Port):
				problems = append(problems, fmt.Sprintf("service %q: instance %q on node %q: address %q port %d, node's address %q: want IP addresses and a port",
					name, in.Service.ID, in.Node.Name, in.Address(), in.Service.Port, in.Node.Address))
			default:
				out[name] = append(out[name], in)
			}
		}
	}
	slices.Sort(problems)
	return out, slices.Compact(problems)
}

// fit are those that are not critical, or all where none is: an unhealthy one is no worse
// than a 503.
func fit(all []catalog.Instance) []catalog.Instance {
	healthy := slices.DeleteFunc(slices.Clone(all), func(in catalog.Instance) bool { return in.Status() == catalog.Critical })
	if len(healthy) == 0 {
		return all
	}
	return healthy
}

// peers are the node proxies of the hosts that have a service, each as often as it has it.
func peers(all []catalog.Instance, port int) []object {
	weights := map[string]int{}
	for _, in := range fit(all) {
		weights[in.Node.Address]++
	}
	out := []object{}
	for _, address := range slices.Sorted(maps.Keys(weights)) {
		out = append(out, endpoint(address, port, weights[address]))
	}
	return out
}

// locals are the instances of a service on one node.
func locals(all []catalog.Instance, node string) []object {
	here := slices.DeleteFunc(slices.Clone(all), func(in catalog.Instance) bool { return in.Node.Name != node })
	out := []object{}
	for _, in := range fit(here) {
		out = append(out, endpoint(in.Address(), in.Service.Port, 1))
	}
	return out
}

func endpoint(address string, port, weight int) object {
	return object{"endpoint": object{"address": socket(address, port)}, "load_balancing_weight": weight}
}

func socket(address string, port int) object {
	return object{"socket_address": object{"address": address, "port_value": port}}
}

// endpointsFile is where the endpoints of a cluster are.
func endpointsFile(cluster string) string { return "eds-" + cluster + ".json" }

func watched(dir, file string) object {
	return object{"resource_api_version": "V3", "path_config_source": object{"path": filepath.Join(dir, file)}}
}

// cluster is one of either hop.
func cluster(dir, name string, tcp bool) object {
	c := object{
		"@type": typeURL + "envoy.config.cluster.v3.Cluster", "name": name, "type": "EDS", "connect_timeout": connectLimit,
		"eds_cluster_config": object{"eds_config": watched(dir, endpointsFile(name))},
		"common_lb_config":   object{"healthy_panic_threshold": object{"value": 0}},
		"circuit_breakers": object{"thresholds": []any{object{
			"max_connections": most, "max_pending_requests": most, "max_requests": most, "max_retries": most,
		}}},
	}
	if !tcp {
		// A request goes on in the protocol in which it came.
		c["typed_extension_protocol_options"] = object{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": object{
			"@type":                          typeURL + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
			"use_downstream_protocol_config": object{"http_protocol_options": object{}, "http2_protocol_options": object{"allow_connect": true}},
		}}
	}
	return c
}

func virtualHost(service, domain, cluster string) object {
	domains := []string{service}
	if domain != "" {
		domains = append(domains, service+"."+domain)
	}
	return object{
		"name": service, "domains": domains,
		"routes": []any{object{
			"match": object{"prefix": "/"},
			"route": object{
				"cluster": cluster, "timeout": "0s",
				// Only what nobody has seen is tried again.
				"retry_policy": object{"retry_on": "connect-failure,refused-stream,reset-before-request", "num_retries": 2},
			},
		}},
	}
}

func routes(name string, hosts []any) object {
	if hosts == nil {
		hosts = []any{}
	}
	return object{
		"@type": typeURL + "envoy.config.route.v3.RouteConfiguration", "name": name,
		"virtual_hosts": hosts, "ignore_port_in_host_matching": true,
	}
}

// Bootstrap is what Envoy is started with; its admin interface is at a Unix socket.
func Bootstrap(l Layout, dir, admin string) []byte {
	listeners := []any{listener("front", l.Front, httpFilter(dir, "front", frontFile)), listener("peer", l.Peer, httpFilter(dir, "peer", peerFile))}
	for _, t := range l.TCP {
		listeners = append(listeners,
			listener(frontPrefix+t.Service, l.frontOf(t), tcpFilter(frontPrefix+t.Service)),
			listener(peerPrefix+t.Service, l.peerOf(t), tcpFilter(peerPrefix+t.Service)))
	}
	return encode(object{
		"node":  object{"id": l.Node, "cluster": clusterOf},
		"admin": object{"address": object{"pipe": object{"path": admin, "mode": 0o600}}},
		"dynamic_resources": object{
			"cds_config": watched(dir, clustersFile),
		},
		"static_resources": object{"listeners": listeners},
		"overload_manager": object{"resource_monitors": []any{object{
			"name": "envoy.resource_monitors.global_downstream_max_connections", "typed_config": object{
				"@type":                             typeURL + "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
				"max_active_downstream_connections": most,
			},
		}}},
	})
}

func listener(name, addr string, filter object) object {
	host, port := split(addr)
	return object{
		"name": name, "address": socket(host, port), "traffic_direction": "INBOUND",
		"filter_chains": []any{object{"filters": []any{filter}}},
	}
}

func httpFilter(dir, name, routesFile string) object {
	return object{"name": "http", "typed_config": object{
		"@type": typeURL + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": name,
		"rds":                          object{"route_config_name": name, "config_source": watched(dir, routesFile)},
		"codec_type":                   "AUTO",
		"http2_protocol_options":       object{"allow_connect": true},
		"upgrade_configs":              []any{object{"upgrade_type": "websocket"}},
		"stream_idle_timeout":          "0s",
		"generate_request_id":          false,
		"server_header_transformation": "PASS_THROUGH",
		"via":                          via,
		"http_filters": []any{object{"name": "router", "typed_config": object{
			"@type": typeURL + "envoy.extensions.filters.http.router.v3.Router", "suppress_envoy_headers": true,
		}}},
	}}
}

func tcpFilter(cluster string) object {
	return object{"name": "tcp", "typed_config": object{
		"@type":       typeURL + "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
		"stat_prefix": strings.ReplaceAll(cluster, "~", "_"), "cluster": cluster, "idle_timeout": "0s",
	}}
}

// response is a file of resources as Envoy reads it.
func response(resources ...any) []byte {
	if resources == nil {
		resources = []any{}
	}
	return encode(object{"version_info": "1", "resources": resources})
}

// encode writes keys in order and so the same bytes for the same value.
func encode(v any) []byte {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		panic(err) // there is nothing in it that could fail
	}
	return append(b, '\n')
}
