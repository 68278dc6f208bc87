package xds

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// Lists do what maps from type and name do, and what differs between two of them is what differs between the maps.
func TestResourcesAreLikeAMap(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	draw := func() (map[Type]Resources, map[Key]*Resource) {
		var list []*Resource
		want := map[Key]*Resource{}
		for range random.IntN(30) {
			k := Key{Types[random.IntN(len(Types))], fmt.Sprint(random.IntN(6))}
			res := &Resource{Type: k.Type, Name: k.Name, Version: fmt.Sprint(random.IntN(3))}
			list, want[k] = append(list, res), res // the last counts
		}
		return Own(list...), want
	}
	for range 2000 {
		a, wantA := draw()
		b, wantB := draw()
		n := 0
		for typ, list := range a {
			n += len(list)
			if !slices.IsSortedFunc(list, func(a, b *Resource) int { return Key{typ, a.Name}.Compare(Key{typ, b.Name}) }) {
				t.Fatalf("%s: not sorted", typ)
			}
		}
		if n != len(wantA) {
			t.Fatalf("%d resources, want %d", n, len(wantA))
		}
		var want []Key
		for _, typ := range Types {
			for i := range 7 {
				k := Key{typ, fmt.Sprint(i)}
				if got := a[typ].Get(k.Name); got != wantA[k] {
					t.Fatalf("%s: %+v, want %+v", k, got, wantA[k])
				}
				if x, y := wantA[k], wantB[k]; (x == nil) != (y == nil) || x != nil && x.Version != y.Version {
					want = append(want, k)
				}
			}
		}
		got := Changes(&View{Own: a}, &View{Own: b})
		slices.SortFunc(got, Key.Compare)
		slices.SortFunc(want, Key.Compare)
		if !slices.Equal(got, want) {
			t.Fatalf("changes %v, want %v", got, want)
		}
		if same := Changes(&View{Own: a}, &View{Own: a}); same != nil {
			t.Fatalf("a view differs from itself: %v", same)
		}
	}
}
