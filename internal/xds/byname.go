package xds

import (
	"cmp"
	"iter"
	"slices"
)

// byName is a map for what a stream knows of one type: mostly a few names, and there are many
// streams. It is sorted, and takes a third of what a map does. The zero value is empty.
type byName[V any] struct{ list []named[V] }

type named[V any] struct {
	v    V
	name string
}

func (m *byName[V]) at(name string) (int, bool) {
	return slices.BinarySearchFunc(m.list, name, func(n named[V], name string) int { return cmp.Compare(n.name, name) })
}

func (m *byName[V]) look(name string) (v V, ok bool) {
	i, ok := m.at(name)
	if ok {
		v = m.list[i].v
	}
	return v, ok
}

// get is the zero value where there is none.
func (m *byName[V]) get(name string) V {
	v, _ := m.look(name)
	return v
}

func (m *byName[V]) has(name string) bool {
	_, ok := m.at(name)
	return ok
}

func (m *byName[V]) set(name string, v V) {
	i, ok := m.at(name)
	if ok {
		m.list[i].v = v
		return
	}
	m.list = slices.Insert(m.list, i, named[V]{v, name})
}

// room makes place for n names, and no more than that, where there are none yet.
func (m *byName[V]) room(n int) {
	if m.list == nil && n > 1 {
		m.list = make([]named[V], 0, n)
	}
}

func (m *byName[V]) drop(name string) {
	i, ok := m.at(name)
	switch {
	case !ok:
	case len(m.list) == 1:
		m.list = nil
	default:
		m.list = slices.Delete(m.list, i, i+1)
	}
}

func (m *byName[V]) size() int { return len(m.list) }

// all is what there is, by name; m is not to be changed meanwhile.
func (m *byName[V]) all() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for _, n := range m.list {
			if !yield(n.name, n.v) {
				return
			}
		}
	}
}

// names is a copy of all names, sorted.
func (m *byName[V]) names() []string {
	out := make([]string, len(m.list))
	for i, n := range m.list {
		out[i] = n.name
	}
	return out
}

// byKey is the same for all types. The zero value is empty.
type byKey[V any] struct{ of [len(Types)]byName[V] }

func (m *byKey[V]) at(t Type) *byName[V] { return &m.of[slices.Index(Types[:], t)] }

// get is the zero value where there is none.
func (m *byKey[V]) get(k Key) V { return m.at(k.Type).get(k.Name) }

func (m *byKey[V]) set(k Key, v V) { m.at(k.Type).set(k.Name, v) }

// keep drops what f does not want, and reports whether anything is left.
func (m *byKey[V]) keep(f func(k Key) bool) (left bool) {
	for i, t := range Types {
		list := slices.DeleteFunc(m.of[i].list, func(n named[V]) bool { return !f(Key{t, n.name}) })
		if len(list) == 0 {
			list = nil
		}
		m.of[i].list = list
		left = left || list != nil
	}
	return left
}
