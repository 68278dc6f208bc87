package drift

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	runtimev3 "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/crossfade-mesh/crossfade/internal/envoyadmin"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// running is what Envoy has, by resource. A listener may be there twice, active and warming;
// endpoints once for each cluster that has them.
type running map[xds.Key][]string

// dump is one kind of resource in Envoy's config_dump: whose versions it tells.
type dump struct {
	Type xds.Type
	path string
}

// dumps leave out the resources themselves. Of endpoints Envoy keeps no version: [endpoints]
// and [runtime] compare content.
var dumps = []dump{
	{xds.ClusterType, "resource=dynamic_active_clusters&mask=cluster.name,version_info"},
	{xds.ClusterType, "resource=dynamic_warming_clusters&mask=cluster.name,version_info"},
	{xds.ListenerType, "resource=dynamic_listeners&mask=name,active_state.version_info,warming_state.version_info"},
	{xds.RouteType, "resource=dynamic_route_configs&mask=route_config.name,version_info"},
	{xds.ExtensionType, "resource=ecds_filters&mask=ecds_filter.name,version_info"},
	{xds.SecretType, "resource=dynamic_active_secrets&mask=name,version_info"},
}

const (
	dumpPath      = "/config_dump?"
	endpointsPath = dumpPath + "include_eds&resource=dynamic_endpoint_configs"
	runtimePath   = "/runtime?format=json"
)

// look asks Envoy what it runs.
func look(ctx context.Context, admin *envoyadmin.Client) (running, error) {
	out := running{}
	for _, d := range dumps {
		body, err := admin.Get(ctx, dumpPath+d.path)
		if err != nil {
			return nil, err
		}
		if err := out.addVersions(d.Type, body); err != nil {
			return nil, fmt.Errorf("envoy admin %s%s: %w", dumpPath, d.path, err)
		}
	}
	body, err := admin.Get(ctx, endpointsPath)
	if err != nil {
		return nil, err
	}
	if err := out.addEndpoints(body); err != nil {
		return nil, fmt.Errorf("envoy admin %s: %w", endpointsPath, err)
	}
	if body, err = admin.Get(ctx, runtimePath); err != nil {
		return nil, err
	}
	if err := out.addRuntime(body); err != nil {
		return nil, fmt.Errorf("envoy admin %s: %w", runtimePath, err)
	}
	return out, nil
}

func (r running) add(t xds.Type, name, version string) {
	k := xds.Key{Type: t, Name: name}
	r[k] = append(r[k], version)
}

// addVersions reads an answer to one of dumps. An Envoy that has none of a kind answers {}.
func (r running) addVersions(t xds.Type, body []byte) error {
	type version struct {
		Info string `json:"version_info"`
	}
	type named struct {
		Name string `json:"name"`
	}
	var answer struct {
		Configs []struct {
			named
			version
			Active    *version `json:"active_state"`
			Warming   *version `json:"warming_state"`
			Cluster   named    `json:"cluster"`
			Route     named    `json:"route_config"`
			Extension named    `json:"ecds_filter"`
		} `json:"configs"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return err
	}
	for _, c := range answer.Configs {
		if t == xds.ListenerType {
			for _, state := range []*version{c.Active, c.Warming} {
				if state != nil {
					r.add(t, c.Name, state.Info)
				}
			}
			continue
		}
		r.add(t, c.Name+c.Cluster.Name+c.Route.Name+c.Extension.Name, c.Info) // three of them are empty
	}
	return nil
}

// address is one endpoint with the place that it has in the set.
func address(priority uint32, zone string, weight uint32, host string, port uint32, pipe string) string {
	at := net.JoinHostPort(host, strconv.Itoa(int(port)))
	if pipe != "" {
		at = pipe
	}
	return fmt.Sprintf("%d/%s/%d/%s", priority, zone, weight, at)
}

// contentOf is the same for endpoints that are the same, in whatever order.
func contentOf(addresses []string) string {
	slices.Sort(addresses)
	return strings.Join(slices.Compact(addresses), " ")
}

func (r running) addEndpoints(body []byte) error {
	var answer struct {
		Configs []struct {
			Config struct {
				Cluster   string `json:"cluster_name"`
				Endpoints []struct {
					Priority uint32 `json:"priority"`
					Weight   uint32 `json:"load_balancing_weight"`
					Locality struct {
						SubZone string `json:"sub_zone"`
					} `json:"locality"`
					Hosts []struct {
						Endpoint struct {
							Address struct {
								Socket struct {
									Address string `json:"address"`
									Port    uint32 `json:"port_value"`
								} `json:"socket_address"`
								Pipe struct {
									Path string `json:"path"`
								} `json:"pipe"`
							} `json:"address"`
						} `json:"endpoint"`
					} `json:"lb_endpoints"`
				} `json:"endpoints"`
			} `json:"endpoint_config"`
		} `json:"configs"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return err
	}
	for _, c := range answer.Configs {
		var all []string
		for _, group := range c.Config.Endpoints {
			for _, h := range group.Hosts {
				at := h.Endpoint.Address
				all = append(all, address(group.Priority, group.Locality.SubZone, group.Weight, at.Socket.Address, at.Socket.Port, at.Pipe.Path))
			}
		}
		r.add(xds.EndpointType, c.Config.Cluster, contentOf(all))
	}
	return nil
}

// addRuntime reads every layer. Envoy shows numbers and booleans, all as text.
func (r running) addRuntime(body []byte) error {
	var answer struct {
		Layers  []string `json:"layers"`
		Entries map[string]struct {
			Values []string `json:"layer_values"`
		} `json:"entries"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return err
	}
	for i, layer := range answer.Layers {
		var all []string
		for key, e := range answer.Entries {
			if i < len(e.Values) && e.Values[i] != "" {
				all = append(all, key+"="+plain(e.Values[i]))
			}
		}
		r.add(xds.RuntimeType, layer, contentOf(all))
	}
	return nil
}

// plain is a number in its shortest form, and anything else as it is.
func plain(value string) string {
	if n, err := strconv.ParseFloat(value, 64); err == nil {
		return strconv.FormatFloat(n, 'g', -1, 64)
	}
	return value
}

// content is how [running] has a resource of which Envoy tells no version. It is false for a
// resource that can't be compared.
func content(res *xds.Resource) (string, bool) {
	body, err := res.Body()
	if err != nil {
		return "", false
	}
	var all []string
	if res.Type == xds.RuntimeType {
		var layer runtimev3.Runtime
		if err := proto.Unmarshal(body, &layer); err != nil {
			return "", false
		}
		for key, value := range layer.GetLayer().GetFields() {
			switch v := value.GetKind().(type) {
			case *structpb.Value_NumberValue:
				all = append(all, key+"="+strconv.FormatFloat(v.NumberValue, 'g', -1, 64))
			case *structpb.Value_BoolValue:
				all = append(all, key+"="+strconv.FormatBool(v.BoolValue))
			}
		}
		return contentOf(all), true
	}
	var load endpointv3.ClusterLoadAssignment
	if err := proto.Unmarshal(body, &load); err != nil {
		return "", false
	}
	seen := map[string]bool{} // of an address that is there twice Envoy takes the first
	for _, group := range load.GetEndpoints() {
		for _, h := range group.GetLbEndpoints() {
			at := h.GetEndpoint().GetAddress()
			host, port, pipe := at.GetSocketAddress().GetAddress(), at.GetSocketAddress().GetPortValue(), at.GetPipe().GetPath()
			if bare := address(0, "", 0, host, port, pipe); !seen[bare] {
				seen[bare] = true
				all = append(all, address(group.GetPriority(), group.GetLocality().GetSubZone(), group.GetLoadBalancingWeight().GetValue(), host, port, pipe))
			}
		}
	}
	return contentOf(all), true
}
