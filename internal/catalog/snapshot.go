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
		for _, in := range without(now, before) {
			names, _ := proxies.get(in.Service.ID)
			switch at, is := slices.BinarySearch(names, name); {
			case len(names) == 0:
				proxies.set(in.Service.ID, alone)
			case !is:
				proxies.set(in.Service.ID, slices.Insert(slices.Clone(names), at, name))
			}
		}
		for _, in := range without(before, now) {
			names, _ := proxies.get(in.Service.ID)
			switch at, is := slices.BinarySearch(names, name); {
			case !is || len(withID(now, in.Service.ID)) > 0: // another node's
			case len(names) == 1:
				proxies.drop(in.Service.ID)
			default:
				proxies.set(in.Service.ID, slices.Delete(slices.Clone(names), at, at+1))
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

// withID is the part of a sorted list that has a service ID.
func withID(list []Instance, id string) []Instance {
	at, _ := slices.BinarySearchFunc(list, id, func(in Instance, id string) int { return cmp.Compare(in.Service.ID, id) })
	end := at
	for end < len(list) && list[end].Service.ID == id {
		end++
	}
	return list[at:end]
}

// Services lists the names in the snapshot, sorted.
func (s *Snapshot) Services() []string { return s.sets.keys() }

// All are the services in the snapshot, in no order.
func (s *Snapshot) All() iter.Seq2[string, *Set] { return s.sets.all() }

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
		for _, in := range withID(s.Set(name).Instances, id) {
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
