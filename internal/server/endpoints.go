package server

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// endpoints is a shared resource and how many sidecars need it.
type endpoints struct {
	ref      proxy.EndpointsRef
	users    int
	resource *xds.Resource
	// next, when set, is what it is made of from until on: see [mesh.rearrange].
	next  *proxy.EndpointsRef
	until time.Time // zero: not decided
	moved bool      // the write that made next changed more than endpoints
}

// wanted is what entries say that the resource is made of.
func (e *endpoints) wanted() proxy.EndpointsRef {
	if e.next != nil {
		return *e.next
	}
	return e.ref
}

// endpointSets are the endpoint resources that are served. Only run touches them.
type endpointSets struct {
	byName    map[string]*endpoints
	byService map[string]map[string]*endpoints // by service that they are made of, then by name
	held      map[string]struct{}              // names of those that have a next
	renamed   map[string]struct{}              // services of which names were not told since they changed
}

func newEndpointSets() endpointSets {
	return endpointSets{renamed: map[string]struct{}{}, held: map[string]struct{}{}, byName: map[string]*endpoints{}, byService: map[string]map[string]*endpoints{}}
}

// of lists the resources that are made of any of the services, by name.
func (s *endpointSets) of(services []string) []*endpoints {
	found := map[string]*endpoints{}
	for _, service := range services {
		maps.Copy(found, s.byService[service])
	}
	out := make([]*endpoints, 0, len(found))
	for _, name := range slices.Sorted(maps.Keys(found)) {
		out = append(out, found[name])
	}
	return out
}

// reading lists the resources that are made of what any of the names stand for, by name.
func (s *endpointSets) reading(names []string) (out []*endpoints) {
	if len(names) == 0 {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(s.byName)) {
		if e := s.byName[name]; e.ref.Reads(names) {
			out = append(out, e)
		}
	}
	return out
}

// tell enters into out the names of the resources of services of which they have changed. The
// lists are not changed afterwards.
func (s *endpointSets) tell(out map[string][]string) {
	for service := range s.renamed {
		if list := s.byService[service]; len(list) > 0 {
			out[service] = slices.Sorted(maps.Keys(list))
		} else {
			delete(out, service)
		}
	}
	clear(s.renamed)
}

// index enters e under the services that it is made of.
func (s *endpointSets) index(e *endpoints) {
	for _, service := range e.ref.Services() {
		if s.byService[service] == nil {
			s.byService[service] = map[string]*endpoints{}
		}
		s.byService[service][e.ref.ClusterName] = e
		s.renamed[service] = struct{}{}
	}
}

func (s *endpointSets) unindex(e *endpoints) {
	for _, service := range e.ref.Services() {
		delete(s.byService[service], e.ref.ClusterName)
		if len(s.byService[service]) == 0 {
			delete(s.byService, service)
		}
		s.renamed[service] = struct{}{}
	}
}

// use makes sure that the endpoints are served. What entries have made of those that are
// there becomes so by [mesh.rearrange]; moved says that more than endpoints changed.
func (m *mesh) use(refs []proxy.EndpointsRef, moved bool, snap *catalog.Snapshot, update xds.Update) {
	for _, ref := range refs {
		e := m.endpoints.byName[ref.ClusterName]
		switch {
		case e == nil:
			e = &endpoints{ref: ref}
			m.endpoints.byName[ref.ClusterName] = e
			m.endpoints.index(e)
			m.refresh(e, snap, update)
		case e.wanted().Equal(ref):
			e.moved = e.moved || moved
		case e.ref.Equal(ref): // as it was before, after all
			e.next = nil
		default: // entries changed what it is made of
			e.next, e.until, e.moved = &ref, time.Time{}, moved
			m.endpoints.held[ref.ClusterName] = struct{}{}
		}
		e.users++
	}
}

func (m *mesh) remake(e *endpoints, ref proxy.EndpointsRef, snap *catalog.Snapshot, update xds.Update) {
	m.endpoints.unindex(e)
	e.ref, e.next = ref, nil
	m.endpoints.index(e)
	m.refresh(e, snap, update)
}

// populated reports whether anybody is among endpoints.
func (m *mesh) populated(ref proxy.EndpointsRef, snap *catalog.Snapshot) (some bool) {
	err := isolated(func() error {
		some = slices.ContainsFunc(proxy.BuildEndpoints(snap, ref, m.doneNames, &m.filters).Groups, func(g proxy.EndpointGroup) bool { return len(g.Endpoints) > 0 })
		return nil
	})
	return err == nil && some
}

// rearrange makes endpoints of what entries say now. Those that a write leaves without
// anybody stay for a while as they were if it changed more: routes that it leads elsewhere
// come after endpoints. What the catalog says of them holds at once.
func (m *mesh) rearrange(snap *catalog.Snapshot, now time.Time, update xds.Update) {
	for _, name := range slices.Sorted(maps.Keys(m.endpoints.held)) {
		e := m.endpoints.byName[name]
		if e == nil || e.next == nil {
			delete(m.endpoints.held, name)
			continue
		}
		if e.until.IsZero() && e.moved && m.populated(e.ref, snap) && !m.populated(*e.next, snap) {
			e.until = now.Add(linger)
			time.AfterFunc(linger, m.poke)
		}
		if !e.until.After(now) {
			delete(m.endpoints.held, name)
			m.remake(e, *e.next, snap, update)
		}
	}
}

func (m *mesh) release(refs []proxy.EndpointsRef, update xds.Update) {
	for _, ref := range refs {
		e := m.endpoints.byName[ref.ClusterName]
		if e.users--; e.users > 0 {
			continue
		}
		delete(m.endpoints.byName, ref.ClusterName)
		m.endpoints.unindex(e)
		if e.resource != nil {
			update.Shared[xds.Key{Type: xds.EndpointType, Name: e.resource.Name}] = nil
		}
	}
}

// refresh builds an endpoint resource, and puts it into the update if it differs.
func (m *mesh) refresh(e *endpoints, snap *catalog.Snapshot, update xds.Update) {
	res, problems, err := makeEndpoints(snap, e.ref, m.doneNames, &m.filters)
	for _, p := range problems {
		m.log.Warn("left out of endpoints", "problem", p.String())
	}
	if err != nil {
		m.log.Error("endpoints can't be built, the last ones stay in force", "endpoints", e.ref.ClusterName, "reason", err)
		return
	}
	if e.resource != nil && e.resource.Version == res.Version {
		return
	}
	e.resource = res
	update.Shared[xds.Key{Type: xds.EndpointType, Name: res.Name}] = res
}

// affected lists the services whose endpoints the changed sets may have changed:
// themselves, and those that a proxy among them stands for, before or after.
func affected(old, new *catalog.Snapshot, changed []string) []string {
	out := map[string]struct{}{}
	for _, name := range changed {
		out[name] = struct{}{}
		for _, snap := range []*catalog.Snapshot{old, new} {
			if snap == nil || snap.Set(name) == nil {
				continue
			}
			for _, in := range snap.Set(name).Instances {
				if in.Service.Proxy != nil {
					out[in.Service.Proxy.DestinationServiceName] = struct{}{}
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(out))
}

// settle waits until every connected caller of the service has answered for its
// present endpoints. A caller of two subsets counts twice.
func (m *mesh) settle(ctx context.Context, service string) (settled, total int, err error) {
	m.mu.Lock()
	names := m.named[service]
	m.mu.Unlock()
	for _, name := range names {
		n, of, err := m.xds.Settle(ctx, xds.Key{Type: xds.EndpointType, Name: name})
		settled, total = settled+n, total+of
		if err != nil {
			return settled, total, err
		}
	}
	return settled, total, nil
}
