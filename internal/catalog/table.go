package catalog

import (
	"iter"
	"maps"
	"slices"
)

// parts is into how many parts a [table] is divided.
const parts = 1024

// table is a map of which a changed copy costs what the change costs, not what the table
// holds: copies share the parts that are equal. The zero value is empty. Immutable but for
// what [table.edit] returns.
type table[V any] struct {
	parts *[parts]*bucket[V] // nil: empty
}

// bucket is one part. It is compared by pointer: equal ones are the same.
type bucket[V any] struct{ of map[string]V }

func (b *bucket[V]) all() map[string]V {
	if b == nil {
		return nil
	}
	return b.of
}

// part is where a key is (FNV-1a).
func part(key string) uint32 {
	h := uint32(2166136261)
	for i := range len(key) {
		h = (h ^ uint32(key[i])) * 16777619
	}
	return (h ^ h>>16) % parts
}

func (t table[V]) get(key string) (v V, ok bool) {
	if t.parts == nil {
		return v, false
	}
	v, ok = t.parts[part(key)].all()[key]
	return v, ok
}

// all is every key, in no order.
func (t table[V]) all() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		if t.parts == nil {
			return
		}
		for _, b := range t.parts {
			for k, v := range b.all() {
				if !yield(k, v) {
					return
				}
			}
		}
	}
}

// keys is all keys, sorted.
func (t table[V]) keys() []string {
	var out []string
	for k := range t.all() {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// edit begins a copy.
func (t table[V]) edit() *edit[V] {
	out := &edit[V]{own: map[uint32]bool{}}
	out.parts = new([parts]*bucket[V])
	if t.parts != nil {
		*out.parts = *t.parts
	}
	return out
}

// edit is a table that may be changed, until it is used as one.
type edit[V any] struct {
	table[V]
	own map[uint32]bool // parts that nothing else has
}

func (e *edit[V]) open(key string) map[string]V {
	at := part(key)
	if !e.own[at] {
		e.own[at] = true
		was := e.parts[at].all()
		next := make(map[string]V, len(was)+1)
		maps.Copy(next, was)
		e.parts[at] = &bucket[V]{next}
	}
	return e.parts[at].of
}

func (e *edit[V]) set(key string, v V) { e.open(key)[key] = v }

func (e *edit[V]) drop(key string) {
	if _, ok := e.get(key); ok {
		delete(e.open(key), key)
	}
}

// differing lists the keys whose values differ, or that only one of two tables has. The cost
// is that of the parts which they don't share.
func differing[V comparable](a, b table[V]) (out []string) {
	for i := range parts {
		var was, is *bucket[V]
		if a.parts != nil {
			was = a.parts[i]
		}
		if b.parts != nil {
			is = b.parts[i]
		}
		if was == is {
			continue
		}
		for k, v := range is.all() {
			if before, ok := was.all()[k]; !ok || before != v {
				out = append(out, k)
			}
		}
		for k := range was.all() {
			if _, ok := is.all()[k]; !ok {
				out = append(out, k)
			}
		}
	}
	return out
}
