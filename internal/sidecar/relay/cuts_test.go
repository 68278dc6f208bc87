package relay

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	runtimev3 "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

func made(t *testing.T, typ xds.Type, name string, m proto.Message) *xds.Resource {
	t.Helper()
	r, err := xds.NewResource(typ, name, m)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// assigned has endpoints on ways, one port each.
func assigned(t *testing.T, name string, ports map[int]string) *xds.Resource {
	t.Helper()
	out := &endpointv3.ClusterLoadAssignment{ClusterName: name}
	for port, way := range ports {
		ep := &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: &corev3.Address{
			Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: "10.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)}}},
		}}}}
		if way != "" {
			ep.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"crossfade": {Fields: map[string]*structpb.Value{"way": structpb.NewStringValue(way)}}}}
		}
		out.Endpoints = append(out.Endpoints, &endpointv3.LocalityLbEndpoints{LbEndpoints: []*endpointv3.LbEndpoint{ep}})
	}
	return made(t, xds.EndpointType, name, out)
}

func layerOf(t *testing.T, fields map[string]string) *xds.Resource {
	t.Helper()
	out := &runtimev3.Runtime{Name: "crossfade", Layer: &structpb.Struct{Fields: map[string]*structpb.Value{}}}
	for k, v := range fields {
		out.Layer.Fields[k] = structpb.NewStringValue(v)
	}
	return made(t, xds.RuntimeType, "crossfade", out)
}

const sni = ".default.dc1.internal.x.consul"

func routes(t *testing.T, weights map[string]uint32) *xds.Resource {
	t.Helper()
	w := &routev3.WeightedCluster{}
	for name, n := range weights {
		w.Clusters = append(w.Clusters, &routev3.WeightedCluster_ClusterWeight{Name: name, Weight: wrapperspb.UInt32(n)})
	}
	elsewhere := &routev3.Route{Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "cart" + sni}}}}
	divided := &routev3.Route{Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_WeightedClusters{WeightedClusters: w}}}}
	return made(t, xds.RouteType, "catalog", &routev3.RouteConfiguration{Name: "catalog", VirtualHosts: []*routev3.VirtualHost{{Routes: []*routev3.Route{elsewhere, divided}}}})
}

// An order is in force once Envoy has acknowledged all that leads elsewhere no more, in whatever
// order that comes.
func TestCutsWaitForEnvoy(t *testing.T) {
	const shared = "ways~web~payments" + sni + "~1234"
	order := "7 keep=legacy over=3000ms part=0/1"
	reverted := layerOf(t, map[string]string{
		"crossfade.shift.catalog": "2 legacy=10000 direct=0 plain=0 mtls=0", "crossfade.cut.catalog": order,
		"crossfade.shift.payments": "2 legacy=10000 direct=0 plain=0 mtls=0", "crossfade.cut.payments": order,
	})
	before := routes(t, map[string]uint32{"group~legacy~catalog" + sni + "~1": 90, "group~v1.catalog" + sni + "~2": 10})
	after := routes(t, map[string]uint32{"legacy~catalog" + sni: 100, "v1.catalog" + sni: 0})
	connected := assigned(t, shared, map[int]string{1: "legacy", 2: ""})
	back := assigned(t, shared, map[int]string{1: "legacy"})
	const way = "legacy"
	for name, c := range map[string]struct {
		acked             []*xds.Resource
		held              []*xds.Resource
		catalog, payments bool
	}{
		"all of it":              {acked: []*xds.Resource{reverted, after, back}, catalog: true, payments: true},
		"routes of before":       {acked: []*xds.Resource{reverted, before, back}, payments: true},
		"endpoints of before":    {acked: []*xds.Resource{reverted, after, connected}, catalog: true},
		"newer ones not taken":   {acked: []*xds.Resource{reverted, after, back}, held: []*xds.Resource{before, connected}},
		"newer ones under way":   {acked: []*xds.Resource{reverted, before, connected}, held: []*xds.Resource{after, back}},
		"shares not yet":         {acked: []*xds.Resource{layerOf(t, map[string]string{"crossfade.cut.catalog": order}), after, back}},
		"no routes at all":       {acked: []*xds.Resource{reverted}},
		"of another destination": {acked: []*xds.Resource{reverted, assigned(t, "ways~web~other"+sni+"~1", map[int]string{1: "legacy"})}},
	} {
		r := &Relay{held: map[xds.Type]map[string]*xds.Resource{}, good: map[xds.Type]map[string]*xds.Resource{}, acked: map[xds.Key]string{}}
		for _, one := range c.acked {
			r.held[one.Type] = with(r.held[one.Type], one.Name, one)
			r.good[one.Type] = with(r.good[one.Type], one.Name, one)
			r.acked[xds.Key{Type: one.Type, Name: one.Name}] = one.Version
		}
		for _, one := range c.held {
			r.held[one.Type] = with(r.held[one.Type], one.Name, one)
		}
		in := map[string]bool{}
		for _, o := range r.Cuts() {
			if o.ID != "7" || o.Keep != way {
				t.Errorf("%s: %+v", name, o)
			}
			if in[o.Destination] = o.InForce; o.InForce != r.OnlyOn(o.Destination, way) {
				t.Errorf("%s: two answers about %s", name, o.Destination)
			}
		}
		if in["catalog"] != c.catalog || in["payments"] != c.payments {
			t.Errorf("%s: %v", name, in)
		}
	}
}

// What is closed is what was told of for the pair's other ways since the start, and nothing that
// leads elsewhere as well.
func TestPlaces(t *testing.T) {
	r := &Relay{held: map[xds.Type]map[string]*xds.Resource{}, been: map[use]struct{}{}}
	hold := func(list ...*xds.Resource) {
		for _, one := range list {
			r.held[one.Type] = with(r.held[one.Type], one.Name, one)
			if one.Type == xds.EndpointType {
				r.rememberLocked(one)
			}
		}
	}
	at := func(ports ...int) (out []string) {
		for _, p := range ports {
			out = append(out, fmt.Sprint("10.0.0.1:", p))
		}
		slices.Sort(out)
		return out
	}
	is := func(what string, p Places, ports, shared []string, clusters []string, tcp bool) {
		t.Helper()
		var have, both []string
		for a := range p.Addresses {
			have = append(have, a.String())
		}
		for a := range p.Shared {
			both = append(both, a.String())
		}
		slices.Sort(have)
		slices.Sort(both)
		if !slices.Equal(have, ports) || !slices.Equal(both, shared) || !slices.Equal(p.Clusters, clusters) || p.TCP != tcp {
			t.Errorf("%s: %v, shared %v, %v, tcp %v", what, have, both, p.Clusters, p.TCP)
		}
	}
	cluster := func(name string, port uint32) *xds.Resource {
		c := &clusterv3.Cluster{Name: name}
		if port != 0 {
			body, err := assigned(t, name, map[int]string{int(port): ""}).Body()
			c.LoadAssignment = &endpointv3.ClusterLoadAssignment{}
			if err != nil || proto.Unmarshal(body, c.LoadAssignment) != nil {
				t.Fatal(err)
			}
		}
		return made(t, xds.ClusterType, name, c)
	}
	hold(
		cluster("legacy~catalog"+sni, 1), cluster("direct~catalog"+sni, 0), cluster("v1.catalog"+sni, 0), cluster("group~v1.catalog"+sni+"~1", 0), cluster("other"+sni, 0), cluster("local_app", 9),
		assigned(t, "direct~catalog"+sni, map[int]string{2: "direct", 9: "direct"}), assigned(t, "v1.catalog"+sni, map[int]string{3: "", 4: ""}), assigned(t, "other"+sni, map[int]string{4: ""}),
	)
	is("requests", r.Places("catalog", "legacy"), at(2, 3), at(4, 9), []string{"direct~catalog" + sni, "v1.catalog" + sni}, false)
	is("the callee's own port stays", r.Places("catalog", "direct"), at(3), at(4), []string{"legacy~catalog" + sni, "v1.catalog" + sni}, false)
	hold(assigned(t, "v1.catalog"+sni, map[int]string{5: ""}))
	is("an instance is gone", r.Places("catalog", "legacy"), at(2, 3, 5), at(4, 9), []string{"direct~catalog" + sni, "v1.catalog" + sni}, false)

	const shared = "ways~web~payments" + sni + "~1"
	hold(assigned(t, shared, map[int]string{20: "legacy", 21: "direct", 22: "plain", 23: ""}))
	hold(assigned(t, shared, map[int]string{20: "legacy"}))
	is("connections", r.Places("payments", "legacy"), at(21, 22, 23), nil, nil, true)
	is("nobody's", r.Places("nobody", "legacy"), nil, nil, nil, false)
	r.been = map[use]struct{}{}
	for i := range maxBeen + 1 {
		r.been[use{at: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), uint16(i))}] = struct{}{}
	}
	hold(assigned(t, "v1.catalog"+sni, map[int]string{6: ""}))
	if len(r.been) > 10 {
		t.Errorf("%d addresses are remembered", len(r.been))
	}
	is("after many", r.Places("catalog", "legacy"), at(2, 6), at(9), []string{"direct~catalog" + sni, "v1.catalog" + sni}, false)
}
