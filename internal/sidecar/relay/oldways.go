package relay

import (
	"net"
	"slices"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// OldWay is where a destination's requests go when they go back.
type OldWay struct {
	Destination string
	Way         string
	Addresses   []string // host:port, sorted
}

// The names of clusters and endpoints of old ways, which package proxy makes.
const (
	legacyWay = "legacy"
	directWay = "direct"
)

// OldWays are those of the pairs that may go back, sorted by destination, from what is kept
// on disk.
func (r *Relay) OldWays() []OldWay {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := map[string]OldWay{}
	add := func(destination, way string, at []string) {
		if old, there := found[destination]; there && old.Way == legacyWay || destination == "" {
			return
		}
		slices.Sort(at)
		found[destination] = OldWay{destination, way, slices.Compact(at)}
	}
	for name, res := range r.good[xds.EndpointType] {
		if sni, ok := strings.CutPrefix(name, directWay+"~"); ok {
			add(serviceOf(sni), directWay, addresses(decoded(res, &endpointv3.ClusterLoadAssignment{}), ""))
		}
		if rest, ok := strings.CutPrefix(name, xds.SparePrefix); ok {
			e := decoded(res, &endpointv3.ClusterLoadAssignment{})
			for _, way := range []string{directWay, legacyWay} {
				if at := addresses(e, way); len(at) > 0 {
					add(destinationOf(xds.Key{Type: xds.EndpointType, Name: rest}), way, at)
				}
			}
		}
	}
	for name, res := range r.good[xds.ClusterType] {
		if sni, ok := strings.CutPrefix(name, legacyWay+"~"); ok {
			add(serviceOf(sni), legacyWay, addresses(decoded(res, &clusterv3.Cluster{}).GetLoadAssignment(), ""))
		}
	}
	out := make([]OldWay, 0, len(found))
	for _, w := range found {
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b OldWay) int { return strings.Compare(a.Destination, b.Destination) })
	return out
}

func serviceOf(sni string) string {
	service, _, _ := strings.Cut(sni, ".default.")
	return service
}

// decoded reads a resource; what cannot be read is empty.
func decoded[M proto.Message](res *xds.Resource, into M) M {
	if body, err := res.Body(); err == nil {
		_ = proto.Unmarshal(body, into) // nothing is known of it then
	}
	return into
}

// addresses are those of the endpoints in a locality, or of all.
func addresses(e *endpointv3.ClusterLoadAssignment, zone string) (out []string) {
	for _, l := range e.GetEndpoints() {
		if zone != "" && l.GetLocality().GetSubZone() != zone {
			continue
		}
		for _, ep := range l.GetLbEndpoints() {
			if a := ep.GetEndpoint().GetAddress().GetSocketAddress(); a != nil {
				out = append(out, net.JoinHostPort(a.GetAddress(), strconv.Itoa(int(a.GetPortValue()))))
			}
		}
	}
	return out
}
