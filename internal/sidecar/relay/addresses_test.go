package relay

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func endpointAt(a *corev3.Address) *endpointv3.LbEndpoint {
	return &endpointv3.LbEndpoint{
		HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Hostname: "callee", Address: a}},
		HealthStatus:        corev3.HealthStatus_HEALTHY,
		LoadBalancingWeight: wrapperspb.UInt32(7),
	}
}

func socketAt(host string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port}}}}
}

func assignment(t testing.TB) []byte {
	t.Helper()
	load := &endpointv3.ClusterLoadAssignment{ClusterName: "catalog", Policy: &endpointv3.ClusterLoadAssignment_Policy{OverprovisioningFactor: wrapperspb.UInt32(140)}}
	for zone := range 3 {
		group := &endpointv3.LocalityLbEndpoints{Priority: uint32(zone), Locality: &corev3.Locality{SubZone: "z"}}
		for i := range 4 {
			group.LbEndpoints = append(group.LbEndpoints, endpointAt(socketAt(fmt.Sprintf("10.0.%d.%d", zone, i), uint32(20_000+i))))
		}
		load.Endpoints = append(load.Endpoints, group)
	}
	for _, a := range []*corev3.Address{
		socketAt("::ffff:10.0.9.9", 443), socketAt("2001:db8::1", 65535), socketAt("not an address", 1), socketAt("10.9.9.9", 0),
		{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: "/run/app.sock"}}},
	} {
		load.Endpoints[0].LbEndpoints = append(load.Endpoints[0].LbEndpoints, endpointAt(a))
	}
	b, err := proto.Marshal(load)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// decoded are the same addresses, by the decoded message.
func decoded(load *endpointv3.ClusterLoadAssignment) (out []netip.AddrPort) {
	for ep := range endpointsIn(load) {
		if at, ok := addressOf(ep); ok {
			out = append(out, at)
		}
	}
	return out
}

func TestAddresses(t *testing.T) {
	b := assignment(t)
	var load endpointv3.ClusterLoadAssignment
	if err := proto.Unmarshal(b, &load); err != nil {
		t.Fatal(err)
	}
	got, want := slices.Collect(addressesIn(b)), decoded(&load)
	if len(want) != 15 || !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	for at := range addressesIn(b) {
		if at != want[0] {
			t.Errorf("%v came after a break", at)
		}
		break
	}
}

// What is no message gives some addresses or none, and what is one gives those that are in it.
func FuzzAddresses(f *testing.F) {
	b := assignment(f)
	f.Add(b)
	f.Add(b[:len(b)/2])
	f.Fuzz(func(t *testing.T, b []byte) {
		got := slices.Collect(addressesIn(b))
		again, err := proto.Marshal(parsed(b))
		if err != nil {
			return
		}
		if clean := slices.Collect(addressesIn(again)); !slices.Equal(clean, decoded(parsed(b))) {
			t.Errorf("got  %v\nwant %v (of the bytes as they came: %v)", clean, decoded(parsed(b)), got)
		}
	})
}

// parsed is empty where the bytes are none.
func parsed(b []byte) *endpointv3.ClusterLoadAssignment {
	var load endpointv3.ClusterLoadAssignment
	if proto.Unmarshal(b, &load) != nil {
		load.Reset()
	}
	return &load
}
