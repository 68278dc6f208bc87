package relay

import (
	"cmp"
	"net"
	"slices"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/shift"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// WayTo is how Envoy reaches a destination on one way.
type WayTo struct {
	Destination string
	Way         shift.Way
	Protocol    string   // http for HTTP/1.1, http2 or tcp
	Host        string   // that requests are given; empty: as the app sends it
	Addresses   []string // host:port, sorted; of several any will do
	Of          string   // the legacy address of another name that Addresses stand for; empty: none
}

// Ways are the ways of the destinations that have a traffic-shift, as Envoy is told of them,
// sorted by destination, then legacy, direct, plain, mtls. One may stand there twice, by
// different clusters; what nobody is on has no addresses.
func (r *Relay) Ways() (out []WayTo) {
	shifted, ways := r.shifts(), shift.Ways()
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, res := range r.held[xds.ClusterType] {
		way, sni, _ := strings.Cut(name, "~")
		destination, _, _ := strings.Cut(sni, ".default.")
		if _, ok := shifted[destination]; !ok || !slices.Contains(ways, shift.Way(way)) {
			continue
		}
		var c clusterv3.Cluster
		if !read(res, &c) {
			continue
		}
		to := WayTo{Destination: destination, Way: shift.Way(way), Protocol: protocolOf(&c)}
		load := c.GetLoadAssignment()
		if load == nil {
			load = r.endpointsLocked(name)
		}
		to.add(load, func(*endpointv3.LbEndpoint) bool { return true })
		out = append(out, to)
	}
	for name := range r.held[xds.EndpointType] {
		if of, _, found := strings.Cut(name, ".default."); found && !strings.Contains(of, "~") {
			of = of[strings.LastIndexByte(of, '.')+1:] // a subset may stand before it
			if _, ok := shifted[of]; ok {
				to := WayTo{Destination: of, Way: shift.MTLS}
				to.add(r.endpointsLocked(name), func(*endpointv3.LbEndpoint) bool { return true })
				out = append(out, to)
			}
			continue
		}
		destination := destinationOf(xds.Key{Type: xds.EndpointType, Name: name})
		if _, ok := shifted[destination]; !ok || !strings.HasPrefix(name, sharedWays) {
			continue
		}
		for _, way := range ways {
			to := WayTo{Destination: destination, Way: way, Protocol: config.TCP}
			for _, from := range []string{name, xds.SparePrefix + name} {
				to.add(r.endpointsLocked(from), func(ep *endpointv3.LbEndpoint) bool {
					return wayAt(ep) == way
				})
			}
			if len(to.Addresses) > 0 {
				out = append(out, to)
			}
		}
	}
	slices.SortFunc(out, func(a, b WayTo) int {
		return cmp.Or(cmp.Compare(a.Destination, b.Destination), cmp.Compare(slices.Index(ways, a.Way), slices.Index(ways, b.Way)))
	})
	return out
}

// OldWays are those that a revert goes back to, one of each destination: legacy if it has one.
func (r *Relay) OldWays() []WayTo {
	out := slices.DeleteFunc(r.Ways(), func(w WayTo) bool { return w.Way != shift.Legacy && w.Way != shift.Direct })
	return slices.CompactFunc(out, func(a, b WayTo) bool { return a.Destination == b.Destination })
}

func (w *WayTo) add(load *endpointv3.ClusterLoadAssignment, of func(*endpointv3.LbEndpoint) bool) {
	for ep := range endpointsIn(load) {
		at := ep.GetEndpoint().GetAddress().GetSocketAddress()
		if at == nil || !of(ep) {
			continue
		}
		w.Addresses = append(w.Addresses, net.JoinHostPort(at.GetAddress(), strconv.Itoa(int(at.GetPortValue()))))
		w.Host = cmp.Or(w.Host, ep.GetEndpoint().GetHostname())
		w.Of = cmp.Or(w.Of, metadataOf(ep.GetMetadata(), "address"))
	}
	slices.Sort(w.Addresses)
	w.Addresses = slices.Compact(w.Addresses)
}

func (r *Relay) endpointsLocked(name string) *endpointv3.ClusterLoadAssignment {
	var out endpointv3.ClusterLoadAssignment
	if !read(r.held[xds.EndpointType][name], &out) {
		return nil
	}
	return &out
}

// read decodes a resource, if there is one.
func read(res *xds.Resource, into proto.Message) bool {
	if res == nil {
		return false
	}
	body, err := res.Body()
	return err == nil && proto.Unmarshal(body, into) == nil
}

// metadataWay is what an endpoint says of its way; one of mtls says nothing.
func metadataWay(m *corev3.Metadata) shift.Way {
	return shift.Way(metadataOf(m, "way"))
}

func metadataOf(m *corev3.Metadata, key string) string {
	return m.GetFilterMetadata()["crossfade"].GetFields()[key].GetStringValue()
}

func protocolOf(c *clusterv3.Cluster) string {
	for _, any := range c.GetTypedExtensionProtocolOptions() {
		var o httpv3.HttpProtocolOptions
		if any.UnmarshalTo(&o) != nil {
			continue
		}
		if o.GetExplicitHttpConfig().GetHttp2ProtocolOptions() != nil {
			return config.HTTP2
		}
		return config.HTTP
	}
	return config.TCP
}
