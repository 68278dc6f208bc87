package catalog

import (
	"maps"
	"slices"
	"time"
)

// Ruling is a decision about instances of a service that the guard held when it was made.
// It counts wherever the same are held, for guards that heed it later, too, and for nothing
// else: not for what vanishes or falls silent after it.
type Ruling struct {
	Decision Decision `json:"decision"`
	By       Decided  `json:"by"`
	Of       []Absent `json:"of"`
}

// Absent is an instance that is gone, or silent.
type Absent struct {
	InstanceKey
	Silent bool `json:"silent,omitempty"`
	// Index is the registry's, of the registration or of the silence: later ones have others.
	Index uint64 `json:"index"`
}

func registration(in Instance) Absent { return Absent{KeyOf(in), false, in.Service.CreateIndex} }

func silence(in Instance) Absent {
	out := Absent{InstanceKey: KeyOf(in), Silent: true}
	for _, c := range in.Checks {
		if c.Silent() {
			out.Index = max(out.Index, c.ModifyIndex)
		}
	}
	return out
}

// Rule is a decision about all that is held of a service now; false when nothing is. Who is
// silent is in it whether in the floor or not: another guard may have chosen others.
// [Guard.Heed] carries it out.
func (g Guard) Rule(name string, d Decision, by Decided) (Ruling, bool) {
	s, ok := g.sets[name]
	if !ok || len(s.held)+len(s.floor) == 0 {
		return Ruling{}, false
	}
	r := Ruling{d, by, g.absent(name, s)}
	if d == Keep { // and those that are silent, should they go
		for _, in := range instances(g.raw.Set(name)) {
			if _, ok := s.silent[KeyOf(in)]; ok {
				r.Of = append(r.Of, registration(in))
			}
		}
	}
	return r, true
}

// absent lists who is held, and who is silent.
func (g Guard) absent(name string, s guard) (out []Absent) {
	for _, in := range s.held {
		out = append(out, registration(in))
	}
	for _, in := range instances(g.raw.Set(name)) {
		if _, ok := s.silent[KeyOf(in)]; ok {
			out = append(out, silence(in))
		}
	}
	return out
}

// Heed carries out a ruling on those here that it is about, and returns what is left of it to
// be heeded later: each counts once. Call [Guard.Step] after it.
func (g Guard) Heed(name string, r Ruling) (Guard, Ruling) {
	s, ok := g.sets[name]
	if !ok {
		return g, r
	}
	of := map[Absent]bool{}
	for _, a := range r.Of {
		of[a] = true
	}
	here := g.absent(name, s)
	about := map[InstanceKey]bool{}
	for _, a := range here {
		if of[a] {
			about[a.InstanceKey] = true
			delete(of, a)
		}
	}
	r.Of = slices.DeleteFunc(slices.Clone(r.Of), func(a Absent) bool { return !of[a] })
	switch {
	case len(about) == 0:
	case r.Decision == Keep:
		s.kept = r.By
		g.sets[name] = s
	case len(about) == len(here):
		delete(g.sets, name)
		g.passed = g.passed.With(g.passed.Index, map[string]*Set{name: g.raw.Set(name)})
	default:
		g = g.release(name, s, about)
	}
	return g, r
}

// release lets some go of those that are held, and believes the silence of some.
func (g Guard) release(name string, s guard, who map[InstanceKey]bool) Guard {
	released := func(in Instance) bool { return who[KeyOf(in)] }
	s.held = slices.DeleteFunc(slices.Clone(s.held), released)
	s.floor = slices.DeleteFunc(slices.Clone(s.floor), released)
	if s.kept = (Decided{}); len(s.held) == 0 {
		s.since = time.Time{}
	}
	s.left, s.silent = maps.Clone(s.left), maps.Clone(s.silent)
	for k := range who {
		delete(s.left, k)
		delete(s.silent, k)
	}
	g.sets[name] = s
	registered := instances(g.raw.Set(name))
	var told []Instance
	for _, in := range instances(g.passed.Set(name)) {
		if !released(in) {
			told = append(told, in)
		} else if i, ok := slices.BinarySearchFunc(registered, in, CompareInstances); ok {
			told = append(told, registered[i])
		}
	}
	g.passed = g.passed.With(g.passed.Index, map[string]*Set{name: NewSet(name, told)})
	return g
}
