package catalog

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// A snapshot that was changed step by step is the one that is made of the same sets at once.
func TestWithIsNewSnapshot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sets := map[string]*Set{}
		s := NewSnapshot("dc1", 0, sets)
		for index := range uint64(rapid.IntRange(1, 12).Draw(t, "steps")) {
			changed := map[string]*Set{}
			for range rapid.IntRange(1, 4).Draw(t, "changes") {
				name := fmt.Sprint("s", rapid.IntRange(0, 5).Draw(t, "service"))
				changed[name] = drawSet(t, name, sets[name])
				if changed[name] == nil || len(changed[name].Instances) == 0 {
					delete(sets, name)
				} else {
					sets[name] = changed[name]
				}
			}
			before := s
			was := shown(before)
			s = s.With(index+1, changed)
			if diff := cmp.Diff(was, shown(before)); diff != "" {
				t.Fatalf("the snapshot before has changed: %s", diff)
			}
			want := NewSnapshot("dc1", index+1, maps.Clone(sets))
			if diff := cmp.Diff(shown(want), shown(s)); diff != "" {
				t.Fatal(diff)
			}
			names := Changed(before, s)
			for _, name := range slices.Concat(before.Services(), s.Services()) {
				if slices.Contains(names, name) != (before.Set(name) != s.Set(name)) {
					t.Fatalf("changed: %v, and %s is among them or not wrongly", names, name)
				}
			}
			if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) {
				t.Fatalf("changed: %v", names)
			}
		}
	})
}

func drawSet(t *rapid.T, name string, was *Set) *Set {
	var instances []Instance
	if was != nil {
		for _, in := range was.Instances { // some stay as they were
			if rapid.Bool().Draw(t, "stays") {
				instances = append(instances, in)
			}
		}
	}
	for range rapid.IntRange(0, 3).Draw(t, "instances") {
		in := Instance{
			Node:    &Node{Name: fmt.Sprint("n", rapid.IntRange(0, 2).Draw(t, "node"))},
			Service: &Service{ID: fmt.Sprint("id", rapid.IntRange(0, 3).Draw(t, "id")), Name: name},
		}
		if rapid.Bool().Draw(t, "proxy") {
			in.Service.Kind = ConnectProxy
			in.Service.Proxy = &Proxy{DestinationServiceName: fmt.Sprint("s", rapid.IntRange(0, 5).Draw(t, "destination"))}
		}
		if !slices.ContainsFunc(instances, func(o Instance) bool { return CompareInstances(o, in) == 0 }) {
			instances = append(instances, in)
		}
	}
	if instances == nil && rapid.Bool().Draw(t, "nil") {
		return nil
	}
	return NewSet(name, instances)
}

// shown is all that can be asked of a snapshot.
func shown(s *Snapshot) map[string]any {
	out := map[string]any{"index": s.Index, "services": s.Services(), "proxies": s.Proxies()}
	for i := range 6 {
		name := fmt.Sprint("s", i)
		out[name] = []any{s.Set(name), s.Connect(name)}
	}
	for i := range 4 {
		for _, node := range []string{"", "n0", "n1", "n2"} {
			in, ok := s.Proxy(fmt.Sprint("id", i), node)
			out[fmt.Sprint("id", i, " ", node)] = []any{in, ok}
		}
	}
	return out
}
