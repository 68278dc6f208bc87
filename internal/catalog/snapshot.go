package catalog

import (
	"context"
	"maps"
	"net/netip"
	"slices"
)

// Source is where snapshots come from: the embedded registry or a real Consul.
type Source interface {
	// Run publishes the present snapshot, then each later one, until ctx ends.
	// It may skip intermediate snapshots but never the newest. Sets that did not
	// change keep their pointer. A failure to read is retried inside and never
	// published: the last snapshot stays in force. publish must not block for long.
	Run(ctx context.Context, publish func(*Snapshot)) error
}

// Snapshot is the catalog of one datacenter at one moment. Immutable.
type Snapshot struct {
	Datacenter string
	// Index grows with every change of the registry behind the snapshot.
	Index uint64

	sets    map[string]*Set
	proxies map[string][]Instance // connect-proxies by service ID; several nodes may use one ID
	callees map[string][]string   // destination -> names of the proxy services that stand for it
}

// NewSnapshot joins sets. Sets are not copied.
func NewSnapshot(datacenter string, index uint64, sets map[string]*Set) *Snapshot {
	s := &Snapshot{Datacenter: datacenter, Index: index, sets: sets, proxies: map[string][]Instance{}, callees: map[string][]string{}}
	for _, name := range slices.Sorted(maps.Keys(sets)) {
		seen := map[string]bool{}
		for _, in := range sets[name].Instances {
			if in.Service.Kind != ConnectProxy || in.Service.Proxy == nil {
				continue
			}
			s.proxies[in.Service.ID] = append(s.proxies[in.Service.ID], in)
			if dst := in.Service.Proxy.DestinationServiceName; !seen[dst] {
				seen[dst] = true
				s.callees[dst] = append(s.callees[dst], name)
			}
		}
	}
	return s
}

// With is a snapshot in which the named sets replace their predecessors; a nil
// or empty set removes the service.
func (s *Snapshot) With(index uint64, changed map[string]*Set) *Snapshot {
	sets := maps.Clone(s.sets)
	if sets == nil {
		sets = map[string]*Set{}
	}
	for name, set := range changed {
		if set == nil || len(set.Instances) == 0 {
			delete(sets, name)
		} else {
			sets[name] = set
		}
	}
	return NewSnapshot(s.Datacenter, index, sets)
}

// Services lists the names in the snapshot, sorted.
func (s *Snapshot) Services() []string { return slices.Sorted(maps.Keys(s.sets)) }

// Set is the instances of a service, or nil when nobody registered it.
func (s *Snapshot) Set(name string) *Set { return s.sets[name] }

// Proxy finds a connect-proxy by service ID. node may be empty when the ID is
// registered on one node only.
func (s *Snapshot) Proxy(id, node string) (Instance, bool) {
	found := s.proxies[id]
	if node == "" && len(found) == 1 {
		return found[0], true
	}
	for _, in := range found {
		if in.Node.Name == node {
			return in, true
		}
	}
	return Instance{}, false
}

// Proxies lists all connect-proxies, sorted by [CompareInstances].
func (s *Snapshot) Proxies() []Instance {
	var out []Instance
	for _, list := range s.proxies {
		out = append(out, list...)
	}
	slices.SortFunc(out, CompareInstances)
	return out
}

// ProxyFor finds the proxy that stands for the service instance with that ID
// (Consul's -sidecar-for).
func (s *Snapshot) ProxyFor(serviceID, node string) (Instance, bool) {
	var found []Instance
	for _, list := range s.proxies {
		for _, in := range list {
			if in.Service.Proxy.DestinationServiceID == serviceID && (node == "" || in.Node.Name == node) {
				found = append(found, in)
			}
		}
	}
	if len(found) != 1 {
		return Instance{}, false
	}
	return found[0], true
}

// Connect lists the instances through which a service is reached inside the
// mesh: its connect-proxies and connect-native instances, whatever their health,
// sorted by [CompareInstances].
func (s *Snapshot) Connect(service string) []Instance {
	var out []Instance
	if set := s.sets[service]; set != nil {
		for _, in := range set.Instances {
			if in.Service.Connect.Native {
				out = append(out, in)
			}
		}
	}
	for _, name := range s.callees[service] {
		for _, in := range s.sets[name].Instances {
			if in.Service.Proxy != nil && in.Service.Kind == ConnectProxy && in.Service.Proxy.DestinationServiceName == service {
				out = append(out, in)
			}
		}
	}
	slices.SortFunc(out, CompareInstances)
	return out
}

// Addresses lists where requests of a service's instances come from: the addresses of the
// instances, of the sidecars that stand for them, and of their nodes. Sorted, each once.
func (s *Snapshot) Addresses(service string) []netip.Addr {
	var out []netip.Addr
	add := func(in Instance) {
		for _, text := range []string{in.Service.Address, in.Node.Address} {
			if at, err := netip.ParseAddr(text); err == nil {
				out = append(out, at.Unmap())
			}
		}
	}
	for _, in := range s.Connect(service) {
		add(in)
	}
	if set := s.sets[service]; set != nil {
		for _, in := range set.Instances {
			add(in)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// Changed lists the services whose sets differ between two snapshots, sorted.
// Either may be nil. Equality is by pointer; see [Source].
func Changed(old, new *Snapshot) []string {
	var before, after map[string]*Set
	if old != nil {
		before = old.sets
	}
	if new != nil {
		after = new.sets
	}
	var out []string
	for name, set := range after {
		if before[name] != set {
			out = append(out, name)
		}
	}
	for name := range before {
		if _, ok := after[name]; !ok {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
