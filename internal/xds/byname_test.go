package xds

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestByNameIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m byName[int]
		want := map[string]int{}
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			name, v := fmt.Sprint(rapid.IntRange(0, 12).Draw(t, "name")), rapid.Int().Draw(t, "value")
			if rapid.Bool().Draw(t, "drop") {
				m.drop(name)
				delete(want, name)
			} else {
				m.set(name, v)
				want[name] = v
			}
			got, ok := m.look(name)
			if w, is := want[name]; got != w || ok != is || m.get(name) != w || m.has(name) != is {
				t.Fatalf("%s: %d, %v, want %d, %v", name, got, ok, w, is)
			}
			if all := maps.Collect(m.all()); !maps.Equal(all, want) || m.size() != len(want) || !slices.Equal(m.names(), slices.Sorted(maps.Keys(want))) {
				t.Fatalf("%v, want %v", all, want)
			}
		}
	})
}
