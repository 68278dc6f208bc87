package server

import (
	"slices"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// draining says whose connections Envoy closes, after a while, when it is told of the
// difference: nobody's, those of whole is true of the whole listener, or those of the
// filter chains named. Where a listener differs in filter chains alone, Envoy leaves the
// others as they are.
func (d difference) draining() (whole bool, chains []string) {
	if d.Type != xds.ListenerType || d.old == nil {
		return false, nil
	}
	before, after := listenerOf(d.old), listenerOf(d.new)
	if before == nil || after == nil {
		return true, nil
	}
	left, all := after.FilterChains, len(before.FilterChains)
	for _, c := range before.FilterChains {
		if !slices.ContainsFunc(left, func(other *listenerv3.FilterChain) bool { return proto.Equal(c, other) }) {
			chains = append(chains, c.Name)
		}
	}
	before.FilterChains, after.FilterChains = nil, nil
	if !proto.Equal(before, after) || all > 0 && len(chains) == all || slices.Contains(chains, "") {
		return true, nil
	}
	slices.Sort(chains)
	return false, chains
}

// listenerOf is a resource's listener; nil where there is none that can be read.
func listenerOf(r *xds.Resource) *listenerv3.Listener {
	if r == nil {
		return nil
	}
	body, err := r.Body()
	if err != nil {
		return nil
	}
	out := &listenerv3.Listener{}
	if proto.Unmarshal(body, out) != nil {
		return nil
	}
	return out
}
