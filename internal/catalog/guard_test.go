package catalog

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// world is a registry of one service, and what explains absences.
type world struct {
	index     uint64
	nodes     map[string]*Node
	services  map[string]*Service
	present   map[string]bool
	explained map[string]string
	snap      *Snapshot
}

func newWorld(ids ...string) *world {
	w := &world{nodes: map[string]*Node{}, services: map[string]*Service{}, present: map[string]bool{}, explained: map[string]string{}, snap: NewSnapshot("dc1", 0, nil)}
	for _, id := range ids {
		w.nodes[id] = &Node{Name: "node-" + id}
		w.services[id] = &Service{ID: id, Name: "catalog"}
		w.present[id] = true
	}
	return w
}

func (w *world) Explains(in Instance) string { return w.explained[in.Service.ID] }

// now is the registry's snapshot.
func (w *world) now() *Snapshot {
	w.index++
	var list []Instance
	for id, there := range w.present {
		if there {
			list = append(list, Instance{Node: w.nodes[id], Service: w.services[id]})
		}
	}
	w.snap = w.snap.With(w.index, map[string]*Set{"catalog": NewSet("catalog", list)})
	return w.snap
}

func (w *world) gone(ids ...string) {
	for _, id := range ids {
		w.present[id] = false
	}
}

func ids(s *Snapshot) string {
	var out []string
	for _, in := range instances(s.Set("catalog")) {
		out = append(out, in.Service.ID)
	}
	return strings.Join(out, " ")
}

var ops = Decided{"operator 1", noon}

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func TestGuard(t *testing.T) {
	w := newWorld("a", "b", "c", "d")
	step := func(g Guard, after time.Duration, want, held string) Guard {
		t.Helper()
		g, snap := g.Step(noon.Add(after), w.now(), w)
		var got []string
		for _, h := range g.Held() {
			for _, in := range h.Instances {
				got = append(got, in.Service.ID)
			}
		}
		if ids(snap) != want || strings.Join(got, " ") != held {
			t.Fatalf("after %v: %q, held %q; want %q, held %q", after, ids(snap), got, want, held)
		}
		return g
	}
	g := step(Guard{}, 0, "a b c d", "")
	w.gone("a")
	g = step(g, time.Second, "b c d", "") // one of four may go
	w.gone("b", "c")
	g = step(g, 2*time.Second, "b c d", "b c") // but not three within a minute
	w.explained["b"] = "its sidecar said goodbye"
	g = step(g, 3*time.Second, "c d", "c")
	w.gone("d")
	g = step(g, 4*time.Second, "c d", "c d")
	g = step(g, 2*time.Hour, "c d", "c d") // nothing is explained by waiting
	w.present["d"] = true
	g = step(g, 3*time.Hour, "c d", "c")
	g, snap, ok := decide(g, Release)
	if !ok || ids(snap) != "d" {
		t.Fatalf("released: %v %q", ok, ids(snap))
	}
	g = step(g, 4*time.Hour, "d", "")
	w.explained["d"] = "its node is there without it"
	w.gone("d")
	g = step(g, 5*time.Hour, "", "") // scaled to zero
	if _, _, ok := decide(g, Release); ok {
		t.Error("released what is not held")
	}
}

// All replaced by as many others is no collapse.
func TestGuardReplacement(t *testing.T) {
	w := newWorld("a", "b", "x", "y")
	w.gone("x", "y")
	g, _ := Guard{}.Step(noon, w.now(), w)
	w.gone("a", "b")
	w.present["x"], w.present["y"] = true, true
	if g, snap := g.Step(noon, w.now(), w); ids(snap) != "x y" || g.Held() != nil {
		t.Errorf("%q, held %v", ids(snap), g.Held())
	}
}

// What somebody keeps stays though it is explained, until it is registered again.
func TestGuardKeep(t *testing.T) {
	w := newWorld("a")
	g, _ := Guard{}.Step(noon, w.now(), w)
	w.gone("a")
	g, _ = g.Step(noon, w.now(), w)
	g, _, _ = decide(g, Keep)
	w.explained["a"] = "its sidecar said goodbye"
	g, snap := g.Step(noon, w.now(), w)
	if ids(snap) != "a" || len(g.Held()) != 1 || g.Held()[0].Kept != ops {
		t.Errorf("%q, held %v", ids(snap), g.Held())
	}
	w.present["a"] = true
	if g, _ = g.Step(noon, w.now(), w); g.Held() != nil {
		t.Errorf("held %v", g.Held())
	}
}

// Whatever a registry does: what it has is told, what is explained goes at once, a set
// never shrinks by more than the policy allows with nothing to explain it, and once the
// registry is right again so is the snapshot. Sets that did not change keep their pointer.
func TestGuardProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := make([]string, rapid.IntRange(1, 12).Draw(t, "instances"))
		for i := range all {
			all[i] = fmt.Sprintf("i%02d", i)
		}
		w := newWorld(all...)
		g, before := Guard{}.Step(noon, w.now(), w)
		now := noon
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 40).Draw(t, "seconds")) * time.Second)
			for _, id := range all {
				switch rapid.IntRange(0, 5).Draw(t, id) {
				case 0:
					w.gone(id)
				case 1:
					w.present[id] = true
				case 2:
					w.explained[id] = "goodbye"
					w.gone(id)
				}
				if w.present[id] {
					delete(w.explained, id)
				}
			}
			var snap *Snapshot
			g, snap = g.Step(now, w.now(), w)
			told := map[string]bool{}
			for _, in := range instances(snap.Set("catalog")) {
				told[in.Service.ID] = true
			}
			lost := 0
			for _, id := range all {
				switch {
				case w.present[id] && !told[id]:
					t.Fatalf("%s is registered and not told", id)
				case w.explained[id] != "" && told[id]:
					t.Fatalf("%s is gone for a reason and told", id)
				}
			}
			for _, in := range instances(before.Set("catalog")) {
				if !told[in.Service.ID] && w.explained[in.Service.ID] == "" {
					lost++
				}
			}
			if n := len(instances(before.Set("catalog"))); lost > 0 && float64(len(told)) < 0.5*float64(n-explainedOf(before, w)) || lost > 0 && len(told) == 0 {
				t.Fatalf("%d of %d went unexplained, %d are left", lost, n, len(told))
			}
			if len(Changed(before, snap)) == 0 && before.Set("catalog") != snap.Set("catalog") {
				t.Fatal("same content, another pointer")
			}
			before = snap
		}
		for _, id := range all {
			w.present[id] = true
		}
		clear(w.explained)
		g, snap := g.Step(now, w.now(), w)
		if g.Held() != nil || !slices.Equal(strings.Fields(ids(snap)), slices.Sorted(maps.Keys(w.present))) {
			t.Fatalf("%q, held %v", ids(snap), g.Held())
		}
	})
}

func explainedOf(s *Snapshot, w *world) (n int) {
	for _, in := range instances(s.Set("catalog")) {
		if w.explained[in.Service.ID] != "" {
			n++
		}
	}
	return n
}
