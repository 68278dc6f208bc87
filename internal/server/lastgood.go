package server

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// memoryKept is how long it is remembered what sidecars of a service acknowledged while
// none of them is connected.
const memoryKept = time.Hour

// lastGood is what new sidecars of a service need beside what [xds.Server] remembers. Only
// run touches it.
type lastGood struct {
	refs map[string]map[string]proxy.EndpointsRef // by service, then name: of what its sidecars were given
	seen map[string]time.Time                     // by service: when a sidecar of it was last connected

	path  string // of what outlives a restart; empty for none
	kept  []byte // what is there
	stale bool   // something else is refused than what is there
}

// alike reports of which resources all sidecars of a service are told the same. What is
// made of an instance's own addresses is not among them.
func alike(k xds.Key) bool {
	switch k.Type {
	case xds.ClusterType:
		return k.Name != envoy.LocalApp && !strings.HasPrefix(k.Name, proxy.ExposedCluster)
	case xds.ListenerType:
		return !slices.ContainsFunc([]string{proxy.PublicListener, proxy.ExposedListener}, func(prefix string) bool {
			return strings.HasPrefix(k.Name, prefix)
		})
	case xds.RouteType, xds.ExtensionType:
		return !strings.HasPrefix(k.Name, xds.SparePrefix)
	}
	return false
}

// refusing notes that what sidecars of a service refuse has changed.
func (m *mesh) refusing(service string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.reconsider == nil {
		m.reconsider = map[string]struct{}{}
	}
	m.reconsider[service] = struct{}{}
	m.poke()
}

// of is the service that a sidecar stands for.
func (s *sidecar) of() string { return s.service.Proxy.DestinationServiceName }

// standBy adds to what is made for a sidecar whatever a refused version's last good one
// leads to: clusters that sidecars of its service acknowledged, and their endpoints. As long
// as somebody refuses what replaced them, routes to them may be in force.
func (m *mesh) standBy(next *sidecar) {
	service := next.of()
	known := m.lastGood.refs[service]
	if known == nil {
		known = map[string]proxy.EndpointsRef{}
		m.lastGood.refs[service] = known
	}
	for _, ref := range next.calls {
		known[ref.ClusterName] = ref
	}
	next.refuses = len(m.xds.Refusals(service, next.own)) > 0
	if !next.refuses {
		return
	}
	own, clusters := maps.Clone(next.own), slices.Clone(next.own[xds.ClusterType])
	good := m.xds.Good(service, xds.ClusterType)
	for _, name := range slices.Sorted(maps.Keys(good)) {
		if next.own[xds.ClusterType].Get(name) == nil {
			clusters = append(clusters, good[name])
		}
		endpoints := good[name].Endpoints()
		ref, ok := known[endpoints]
		if _, has := next.shared[endpoints]; has || !ok {
			continue
		}
		if e := m.endpoints.byName[endpoints]; e != nil {
			ref = e.wanted()
		}
		next.calls = append(next.calls, ref)
		next.shared[endpoints] = struct{}{}
	}
	own[xds.ClusterType] = xds.Sort(clusters)
	next.own = own
}

// forgetGood drops what is remembered of resources that no sidecar is given any more, unless
// versions that replaced them are refused.
func (m *mesh) forgetGood(now time.Time) {
	sidecars := map[string][]*sidecar{} // by service
	refused := map[string]bool{}
	for _, s := range m.sidecars {
		service := s.of()
		m.lastGood.seen[service] = now
		refused[service] = refused[service] || s.refuses
		sidecars[service] = append(sidecars[service], s)
	}
	// What one sidecar of a service has the others have, too, so that these find it at the first.
	given := func(service string, k xds.Key) bool {
		return slices.ContainsFunc(sidecars[service], func(s *sidecar) bool { return s.own[k.Type].Get(k.Name) != nil })
	}
	needed := func(service, endpoints string) bool {
		return slices.ContainsFunc(sidecars[service], func(s *sidecar) bool { _, is := s.shared[endpoints]; return is })
	}
	maps.DeleteFunc(m.lastGood.seen, func(_ string, at time.Time) bool { return now.Sub(at) > memoryKept })
	// whole reports whether all of a service is to be kept.
	whole := func(service string) bool {
		_, lately := m.lastGood.seen[service]
		return refused[service] || lately && len(sidecars[service]) == 0
	}
	m.xds.Forget(func(service string, k xds.Key) bool {
		return given(service, k) || whole(service)
	})
	for service, refs := range m.lastGood.refs {
		if whole(service) {
			continue
		}
		maps.DeleteFunc(refs, func(name string, _ proxy.EndpointsRef) bool { return !needed(service, name) })
		if len(refs) == 0 {
			delete(m.lastGood.refs, service)
		}
	}
}
