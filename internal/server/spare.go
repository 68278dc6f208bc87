package server

import (
	"slices"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// spare adds what a sidecar's relay puts in force when it goes back to old ways by itself,
// with no server to ask: the routes and endpoints as they would be with all requests of each
// pair on its old way. Clusters and listeners are there in either case.
func (m *mesh) spare(n node, input proxy.Input, of *made) (refs []proxy.EndpointsRef) {
	if !n.relayed {
		return nil
	}
	back := backOf(input.Config, of.proxy)
	if len(back) == 0 {
		return nil
	}
	input.Config = input.Config.With(back, nil)
	reverted, err := m.makeOf(input)
	if err != nil {
		m.log.Error("a sidecar cannot be told how to go back by itself", "sidecar", n.id, "reason", err)
		return nil
	}
	routes := slices.Clone(of.own[xds.RouteType])
	for _, res := range reverted.own[xds.RouteType] {
		now := of.own[xds.RouteType].Get(res.Name)
		if now == nil || now.Version == res.Version {
			continue
		}
		if renamed, err := res.Renamed(xds.SparePrefix + res.Name); err == nil {
			routes = append(routes, renamed)
		}
	}
	of.own[xds.RouteType] = xds.Sort(routes)
	calls := of.proxy.Endpoints()
	for _, ref := range reverted.proxy.Endpoints() {
		i := slices.IndexFunc(calls, func(c proxy.EndpointsRef) bool { return c.ClusterName == ref.ClusterName })
		if i >= 0 && !calls[i].Equal(ref) {
			refs = append(refs, proxy.EndpointsRef{ClusterName: xds.SparePrefix + ref.ClusterName, Parts: ref.Parts})
		}
	}
	return refs
}

// backOf are the entries that decide for a sidecar's pairs, all on the old way. Those of
// strict callees have none.
func backOf(entries *config.Set, p *proxy.Proxy) (out []config.Entry) {
	seen := map[config.Key]bool{}
	for _, u := range p.Upstreams {
		e := entries.TrafficShift(p.Identity.Service, u.Target.Service)
		if e == nil || u.Target.Datacenter != p.Identity.Datacenter || seen[config.KeyOf(e)] || entries.MutualTLSMode(u.Target.Service) == config.MutualTLSStrict {
			continue
		}
		seen[config.KeyOf(e)] = true
		if all := allOn(oldWay(e)); e.Shares != all {
			reverted := *e
			reverted.Shares = all
			out = append(out, &reverted)
		}
	}
	return out
}

// heldLocally counts the sidecars of a source that have gone back by themselves for a destination.
func (b *books) heldLocally(m *mesh, source, destination string) (out []string) {
	of := b.declared()[source]
	if of == nil {
		return nil
	}
	for _, in := range of.calls[destination] {
		if in.Service.Kind == catalog.ConnectProxy && slices.Contains(m.book.Local(keyOf(in)), destination) {
			out = append(out, in.Service.ID)
		}
	}
	return out
}
