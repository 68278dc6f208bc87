package xds

import (
	"cmp"
	"slices"
)

// Resources are of one type, sorted by name, one of each name. A sidecar has few of each type, and there are many
// sidecars: lists take a sixth of what maps do.
type Resources []*Resource

// Sort puts resources of one type in order, in place. No two have one name.
func Sort(list []*Resource) Resources {
	slices.SortFunc(list, func(a, b *Resource) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// Own puts a node's resources in order, for its view. The last of a type and name counts.
func Own(list ...*Resource) map[Type]Resources {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b *Resource) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Name, b.Name))
	})
	list = last(list)
	out := map[Type]Resources{}
	for len(list) > 0 {
		n := slices.IndexFunc(list, func(r *Resource) bool { return r.Type != list[0].Type })
		if n < 0 {
			n = len(list)
		}
		out[list[0].Type] = list[:n:n]
		list = list[n:]
	}
	return out
}

// last keeps the last of those that have one type and name.
func last(list []*Resource) []*Resource {
	out := list[:0]
	for i, res := range list {
		if i+1 == len(list) || list[i+1].Type != res.Type || list[i+1].Name != res.Name {
			out = append(out, res)
		}
	}
	return out
}

// Get is the resource with the name, or nil.
func (r Resources) Get(name string) *Resource {
	if i, ok := slices.BinarySearchFunc(r, name, func(res *Resource, name string) int { return cmp.Compare(res.Name, name) }); ok {
		return r[i]
	}
	return nil
}

// same reports whether both are one list.
func (r Resources) same(o Resources) bool {
	return len(r) == len(o) && (len(r) == 0 || &r[0] == &o[0])
}

// changes appends the keys of what differs between two lists of a type.
func (r Resources) changes(o Resources, t Type, out []Key) []Key {
	if r.same(o) {
		return out
	}
	for len(r) > 0 || len(o) > 0 {
		switch order := between(r, o); {
		case order < 0:
			out, r = append(out, Key{t, r[0].Name}), r[1:]
		case order > 0:
			out, o = append(out, Key{t, o[0].Name}), o[1:]
		default:
			if r[0].Version != o[0].Version {
				out = append(out, Key{t, r[0].Name})
			}
			r, o = r[1:], o[1:]
		}
	}
	return out
}

// between says which of two lists, one of which may be empty, has the first name.
func between(a, b Resources) int {
	switch {
	case len(b) == 0:
		return -1
	case len(a) == 0:
		return 1
	}
	return cmp.Compare(a[0].Name, b[0].Name)
}
