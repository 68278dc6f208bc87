// Package envoy says what package proxy decided in Envoy's words.
//
// In: a [proxy.Proxy] and [proxy.Endpoints]. Out: xDS resources, sorted by name
// and equal byte for byte when the input is equal; secrets; and bootstraps. Every
// knob that is set, and why it has its value, stands in docs/envoy.md.
//
// What a write may change lives outside listeners, since a listener that changes
// drains its connections: HTTP rules are in routes, TCP intentions and how tokens
// are verified in extensions of their own (ECDS), the connection limit in runtime
// (RTDS).
//
// A proxy also needs its endpoints ([Endpoints], one per [proxy.EndpointsRef]) and
// the secrets named [LeafSecretName] and [RootsSecretName], which whoever holds
// the key makes with [LeafSecret] and [RootsSecret]; no key comes through here on
// its way to another host.
//
// It leaves sending to xds and running Envoy to sidecar. Pure: no I/O, no clock,
// no log.
package envoy

import (
	"cmp"
	"fmt"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	runtimev3 "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// LocalApp is the cluster of the service instance behind the sidecar.
const LocalApp = "local_app"

// Resources are what one sidecar is told, but for endpoints and secrets.
type Resources struct {
	Clusters   []*clusterv3.Cluster
	Listeners  []*listenerv3.Listener
	Routes     []*routev3.RouteConfiguration
	Extensions []*corev3.TypedExtensionConfig
	Runtimes   []*runtimev3.Runtime // always the one named RuntimeName
	// Problems are escape hatches that could not be read, sorted.
	Problems []proxy.Problem
}

// Build makes p's resources. It fails only where a name that came from outside
// cannot be written as a protobuf string.
func Build(p *proxy.Proxy) (Resources, error) { return BuildRest(p, nil) }

// Part is all that one resource of an upstream is made of, whichever proxy it belongs to: equal
// parts make equal resources.
type Part struct {
	// Of is a [proxy.Cluster], [proxy.Group], [proxy.Upstream] or [proxy.Route]. The resource
	// has its name, that of an Upstream its listener's.
	Of            any
	Normalization proxy.Normalization
}

// BuildRest is [Build] without the resources of those parts that the caller has, as it says
// when asked. It is not asked about what somebody wrote in Envoy's own words. has may be nil.
func BuildRest(p *proxy.Proxy, has func(Part) bool) (Resources, error) {
	b := &builder{proxy: p, has: has}
	r := b.resources()
	if b.err != nil {
		return Resources{}, fmt.Errorf("proxy %q: resources: %w", p.ID, b.err)
	}
	return r, nil
}

// builder makes resources of one proxy and keeps the first error on the way.
type builder struct {
	proxy    *proxy.Proxy
	has      func(Part) bool
	problems []proxy.Problem
	err      error
	parts    map[any]any // by once
}

// once makes a part that many resources have alike when it is first asked for under
// its key. They share it: what comes from here is not to be changed.
func once[T any](b *builder, key any, part func() T) T {
	if made, ok := b.parts[key]; ok {
		return made.(T)
	}
	if b.parts == nil {
		b.parts = map[any]any{}
	}
	made := part()
	b.parts[key] = made
	return made
}

// had reports whether there is already what is made of a part. Without anybody to ask, the part, which may
// be large, is not copied to the heap.
func had[T any](b *builder, of T) bool {
	return b.has != nil && b.has(Part{of, b.proxy.Normalization})
}

// resources relies on the order in which proxy sorts: the names that are made
// from it keep that order.
func (b *builder) resources() Resources {
	var r Resources
	for _, c := range b.proxy.Clusters {
		if c.JSON == "" && had(b, c) {
			continue
		}
		var made *clusterv3.Cluster
		if c.JSON != "" {
			made = b.customCluster(c)
		}
		if made == nil {
			made = b.upstreamCluster(c)
		}
		r.Clusters = append(r.Clusters, made)
	}
	for _, g := range b.proxy.Groups {
		if had(b, g) {
			continue
		}
		r.Clusters = append(r.Clusters, b.groupCluster(g))
	}
	for _, u := range b.proxy.Upstreams {
		if u.ListenerJSON == "" && had(b, u) {
			continue
		}
		var made *listenerv3.Listener
		if u.ListenerJSON != "" {
			made = b.customOutboundListener(u)
		}
		if made == nil {
			made = b.outboundListener(u)
		}
		r.Listeners = append(r.Listeners, made)
	}
	for _, rt := range b.proxy.Routes {
		if had(b, rt) {
			continue
		}
		r.Routes = append(r.Routes, b.outboundRoutes(rt))
	}
	if b.proxy.Inbound != nil {
		b.inbound(&r)
	}
	r.Runtimes = []*runtimev3.Runtime{b.runtime()}
	sortByName(r.Clusters)
	sortByName(r.Listeners)
	sortByName(r.Routes)
	slices.SortFunc(b.problems, proxy.Problem.Compare)
	r.Problems = b.problems
	return r
}

// inbound adds what callers meet, and the app.
func (b *builder) inbound(r *Resources) {
	in := b.proxy.Inbound
	listener, cluster := b.customPublicListener(in), b.customLocalCluster(in)
	if listener != nil || cluster != nil {
		// The app's address comes with an admission only where both ends are ours.
		plain := *in
		plain.Admission = nil
		in = &plain
	}
	r.Clusters = append(r.Clusters, cmp.Or(cluster, b.localCluster(in)))
	for _, a := range in.ExposedApps() {
		r.Clusters = append(r.Clusters, b.appCluster(a.Cluster, a.Protocol, a.App))
	}
	r.Listeners = append(r.Listeners, cmp.Or(listener, b.inboundListener(in)))
	if p := in.Plaintext; p != nil && p.Port != 0 && listener == nil {
		r.Listeners = append(r.Listeners, b.plaintextListener(in))
	}
	for _, e := range in.Exposed {
		r.Listeners = append(r.Listeners, b.exposedListener(e))
	}
	if config.IsHTTP(in.Protocol) {
		r.Routes = append(r.Routes, b.inboundRoutes(in))
		r.Extensions = append(r.Extensions, b.tokens(in.Intentions.Providers))
		if in.Plaintext != nil {
			r.Routes = append(r.Routes, b.plaintextRoutes(in))
		}
	} else {
		if in.Admission != nil {
			r.Extensions = append(r.Extensions, b.admission(in.Admission))
		}
		if in.Plaintext != nil {
			r.Extensions = append(r.Extensions, b.plaintextExtensions(in)...)
		}
	}
	if !config.IsHTTP(in.Protocol) || listener != nil {
		r.Extensions = append(r.Extensions, b.connectionIntentions(in))
	}
}

// pack wraps a message, deterministically.
func (b *builder) pack(m proto.Message) *anypb.Any {
	out := &anypb.Any{}
	if err := anypb.MarshalFrom(out, m, proto.MarshalOptions{Deterministic: true}); err != nil && b.err == nil {
		b.err = err
	}
	return out
}
