package catalog

import (
	"cmp"
	"context"
	"iter"
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

	sets    table[*Set]
	proxies table[[]string] // service ID -> names of the services that have a connect-proxy with it
	callees table[[]string] // destination -> names of the proxy services that stand for it
}

// NewSnapshot joins sets. Sets are not copied.
func NewSnapshot(datacenter string, index uint64, sets map[string]*Set) *Snapshot {
	return (&Snapshot{Datacenter: datacenter}).with(index, sets, false)
}

// With is a snapshot in which the named sets replace their predecessors; a nil
// or empty set removes the service. Its cost is that of the named sets.
func (s *Snapshot) With(index uint64, changed map[string]*Set) *Snapshot {
	return s.with(index, changed, true)
}

// with replaces sets. Empty ones are kept only where dropEmpty is false.
func (s *Snapshot) with(index uint64, changed map[string]*Set, dropEmpty bool) *Snapshot {
	sets, proxies, callees := s.sets.edit(), s.proxies.edit(), s.callees.edit()
	stands := map[string]bool{} // destinations that a changed set stands for, before or after
	for _, name := range slices.Sorted(maps.Keys(changed)) {
		set := changed[name]
		if set == nil || dropEmpty && len(set.Instances) == 0 {
			sets.drop(name)
		} else {
			sets.set(name, set)
		}
		clear(stands)
		before, now := s.Set(name).proxies(), set.proxies()
		for _, in := range before {
			stands[in.Service.Proxy.DestinationServiceName] = false
		}
		for _, in := range now {
			stands[in.Service.Proxy.DestinationServiceName] = true
		}
		alone := []string{name} // of all IDs that no other service has
		for id, has := range differingIDs(before, now) {
			names, _ := proxies.get(id)
			at, is := slices.BinarySearch(names, name)
			switch {
			case has && len(names) == 0:
				proxies.set(id, alone)
			case has && !is:
				proxies.set(id, slices.Insert(slices.Clone(names), at, name))
			case !has && len(names) == 1:
				proxies.drop(id)
			case !has:
				proxies.set(id, slices.Delete(slices.Clone(names), at, at+1))
			}
		}
		for _, dst := range slices.Sorted(maps.Keys(stands)) {
			names, _ := callees.get(dst)
			at, is := slices.BinarySearch(names, name)
			switch {
			case stands[dst] && !is:
				callees.set(dst, slices.Insert(slices.Clone(names), at, name))
			case !stands[dst] && is && len(names) == 1:
				callees.drop(dst)
			case !stands[dst] && is:
				callees.set(dst, slices.Delete(slices.Clone(names), at, at+1))
			}
		}
	}
	return &Snapshot{Datacenter: s.Datacenter, Index: index, sets: sets.table, proxies: proxies.table, callees: callees.table}
}

// differingIDs is the service IDs that only one of two sorted lists has, and whether it is the second.
func differingIDs(before, now []Instance) iter.Seq2[string, bool] {
	return func(yield func(id string, has bool) bool) {
		for len(before)+len(now) > 0 {
			order := 0
			switch {
			case len(now) == 0:
				order = -1
			case len(before) == 0:
				order = 1
			default:
				order = cmp.Compare(before[0].Service.ID, now[0].Service.ID)
			}
			var id string
			if order <= 0 {
				id, before = next(before)
			}
			if order >= 0 {
				id, now = next(now)
			}
			if order != 0 && !yield(id, order > 0) {
				return
			}
		}
	}
}

// next is the service ID that a sorted list begins with, and the list without those that have it.
func next(list []Instance) (id string, rest []Instance) {
	id = list[0].Service.ID
	for len(list) > 0 && list[0].Service.ID == id {
		list = list[1:]
	}
	return id, list
}

// Services lists the names in the snapshot, sorted.
func (s *Snapshot) Services() []string { return s.sets.keys() }

// Set is the instances of a service, or nil when nobody registered it.
func (s *Snapshot) Set(name string) *Set {
	set, _ := s.sets.get(name)
	return set
}

// Proxy finds a connect-proxy by service ID. node may be empty when the ID is
// registered on one node only.
func (s *Snapshot) Proxy(id, node string) (Instance, bool) {
	var found []Instance
	names, _ := s.proxies.get(id)
	for _, name := range names {
		set := s.Set(name).Instances
		at, _ := slices.BinarySearchFunc(set, id, func(in Instance, id string) int { return cmp.Compare(in.Service.ID, id) })
		for _, in := range set[at:] {
			if in.Service.ID != id {
				break
			}
			if in.standsFor() && (node == "" || in.Node.Name == node) {
				found = append(found, in)
			}
		}
	}
	if len(found) == 0 || node == "" && len(found) > 1 {
		return Instance{}, false
	}
	return found[0], true
}

// Proxies lists all connect-proxies, sorted by [CompareInstances].
func (s *Snapshot) Proxies() []Instance {
	var out []Instance
	for _, set := range s.sets.all() {
		out = append(out, set.proxies()...)
	}
	slices.SortFunc(out, CompareInstances)
	return out
}

// ProxyFor finds the proxy that stands for the service instance with that ID
// (Consul's -sidecar-for).
func (s *Snapshot) ProxyFor(serviceID, node string) (Instance, bool) {
	var found []Instance
	for _, set := range s.sets.all() {
		for _, in := range set.Instances {
			if in.standsFor() && in.Service.Proxy.DestinationServiceID == serviceID && (node == "" || in.Node.Name == node) {
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
	if set := s.Set(service); set != nil {
		for _, in := range set.Instances {
			if in.Service.Connect.Native {
				out = append(out, in)
			}
		}
	}
	names, _ := s.callees.get(service)
	for _, name := range names {
		for _, in := range s.Set(name).proxies() {
			if in.Service.Proxy.DestinationServiceName == service {
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
	if set := s.Set(service); set != nil {
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
	var before, after table[*Set]
	if old != nil {
		before = old.sets
	}
	if new != nil {
		after = new.sets
	}
	out := differing(before, after)
	slices.Sort(out)
	return out
}
