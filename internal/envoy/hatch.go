package envoy

import (
	"cmp"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	networkrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// message is an Envoy resource that can check itself.
type message interface {
	proto.Message
	Validate() error
}

// hatch reads a resource that somebody wrote in Envoy's own words; own then sets
// what is not theirs to say. One that cannot be read is a problem, and what would
// have been made without it stays.
func (b *builder) hatch(subject, key, text string, into message, own func()) bool {
	if text == "" {
		return false
	}
	err := protojson.Unmarshal([]byte(text), into)
	if err == nil {
		own()
		err = into.Validate()
	}
	if err == nil {
		return true
	}
	// The decoder varies its white space on purpose.
	reason := strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "proto:")), " ")
	b.problem(subject, key+": it has no effect: "+reason)
	return false
}

func (b *builder) problem(subject, reason string) {
	b.problems = append(b.problems, proxy.Problem{Service: b.proxy.Identity.Service, Subject: subject, Reason: reason})
}

// customPublicListener is the written public listener, or nil. Every way in has the
// mesh's TLS and asks for the intentions first, whatever was written.
func (b *builder) customPublicListener(in *proxy.Inbound) *listenerv3.Listener {
	out := &listenerv3.Listener{}
	read := b.hatch(proxy.PublicListener, config.PublicListenerHatch, in.ListenerJSON, out, func() {
		out.Name, out.TrafficDirection = in.ListenerName, corev3.TrafficDirection_INBOUND
		out.Address = cmp.Or(out.Address, socketAddress(in.Address, in.Port))
		for _, chain := range chains(out) {
			chain.TransportSocket, chain.TransportSocketConnectTimeout = b.downstreamTLS(in), nil
			chain.Filters = append([]*listenerv3.Filter{discovered(IntentionsExtension, &networkrbacv3.RBAC{})}, chain.Filters...)
		}
	})
	switch {
	case !read:
		return nil
	case len(chains(out)) == 0:
		b.problem(proxy.PublicListener, config.PublicListenerHatch+": it has no effect: it has no filter chain")
		return nil
	case out.ApiListener != nil || out.ListenerSpecifier != nil || out.UdpListenerConfig != nil:
		b.problem(proxy.PublicListener, config.PublicListenerHatch+": it has no effect: want a listener for TCP")
		return nil
	case in.Intentions.Conditional():
		b.problem(proxy.PublicListener, config.PublicListenerHatch+": intentions are judged once per connection: those with permissions or tokens deny")
	}
	return out
}

// chains are all the ways in.
func chains(l *listenerv3.Listener) []*listenerv3.FilterChain {
	out := slices.Clone(l.GetFilterChains())
	if c := l.GetDefaultFilterChain(); c != nil {
		out = append(out, c)
	}
	return out
}

// customLocalCluster is the written cluster of the app, or nil.
func (b *builder) customLocalCluster(in *proxy.Inbound) *clusterv3.Cluster {
	out := &clusterv3.Cluster{}
	if !b.hatch(LocalApp, config.LocalClusterHatch, in.ClusterJSON, out, func() { out.Name = LocalApp }) {
		return nil
	}
	return out
}

// customOutboundListener is the written listener of an upstream, or nil.
func (b *builder) customOutboundListener(u proxy.Upstream) *listenerv3.Listener {
	out := &listenerv3.Listener{}
	if !b.hatch(u.ListenerName, config.ListenerHatch, u.ListenerJSON, out, func() {
		out.Name, out.TrafficDirection = u.ListenerName, corev3.TrafficDirection_OUTBOUND
		out.Address = cmp.Or(out.Address, UpstreamAddress(u))
	}) {
		return nil
	}
	return out
}

// customCluster is the written cluster of a target, or nil. Its TLS is the mesh's,
// and so is the version of HTTP that is agreed on there, unless that is written too.
func (b *builder) customCluster(c proxy.Cluster) *clusterv3.Cluster {
	out := &clusterv3.Cluster{}
	if !b.hatch(c.Name, config.ClusterHatch, c.JSON, out, func() {
		out.Name = c.Name
		out.TransportSocket, out.TransportSocketMatches = b.upstreamTLS(c.SNI, c.PeerURI, c.Multiplexed), nil
		if len(out.TypedExtensionProtocolOptions) == 0 {
			out.TypedExtensionProtocolOptions = b.upstreamCluster(c).TypedExtensionProtocolOptions
		}
	}) {
		return nil
	}
	return out
}
