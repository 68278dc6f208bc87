package catalog

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Guard is the endpoint guard: it stands between a registry and what sidecars are told,
// and keeps sets from collapsing. An instance that is no longer registered leaves at
// once if its absence is explained. Those whose absence nothing explains leave too while
// enough stay or come; when nobody would be left, or the set would have shrunk by more than
// [GuardPolicy.Most] within [GuardPolicy.Window], all of them are held: they stay in the
// snapshot until they are registered again, their absence is explained, or somebody decides.
//
// What explains an absence is [Evidence]'s to say. That a registry's index has grown
// explains nothing: an emptied one has a higher index as well.
//
// A Guard is a value: [Guard.Step] returns the next one and leaves the receiver as it was,
// but for maps that both share, so that only the newest is of use. The zero value lets the
// first snapshot pass whole. Pure: a recorded log replays to the same snapshots.
type Guard struct {
	Policy GuardPolicy

	raw    *Snapshot        // that the registry gave last
	passed *Snapshot        // that was let through
	sets   map[string]guard // of services of which somebody left unexplained
}

// GuardPolicy says how much may vanish unexplained. Zero values take the defaults.
type GuardPolicy struct {
	// Most is the part by which a set may shrink within Window with nothing to explain it.
	// Default one half.
	Most float64
	// Window is how long a departure counts. Default a minute.
	Window time.Duration
}

func (p GuardPolicy) withDefaults() GuardPolicy {
	if !(p.Most > 0 && p.Most <= 1) {
		p.Most = 0.5
	}
	if p.Window <= 0 {
		p.Window = time.Minute
	}
	return p
}

// Evidence tells whether something explains that an instance is gone.
type Evidence interface {
	// Explains says why the instance may be gone, as "its sidecar said goodbye" or "its
	// node is there, reachable, and without it"; empty when nothing is known that does.
	Explains(Instance) string
}

// Decision is an operator's word about the held instances of a service.
type Decision string

// The decisions.
const (
	Release Decision = "release" // they may go
	Keep    Decision = "keep"    // they stay until registered again or released, explained or not
)

// guard is what is known of one service.
type guard struct {
	left  []departure // unexplained and let go, within the window, oldest first
	held  []Instance  // sorted
	since time.Time   // when holding began
	keep  bool
}

type departure struct {
	at time.Time
	n  int
}

// Held is a service whose instances the guard keeps.
type Held struct {
	Service   string
	Instances []Instance // that the registry no longer has
	Present   int        // that it has
	Since     time.Time
	Kept      bool // by somebody's decision
}

// String says what is held and why.
func (h Held) String() string {
	return fmt.Sprintf("service %q: %d of %d instances are gone from the registry and nothing explains it: they stay", h.Service, len(h.Instances), len(h.Instances)+h.Present)
}

// Step takes in what the registry has now, and returns what sidecars are to be told. It
// looks at services that changed since the last step and at those that are held. Call it
// as well when evidence may have come: with the same snapshot.
func (g Guard) Step(now time.Time, raw *Snapshot, evidence Evidence) (Guard, *Snapshot) {
	if g.passed == nil {
		g.raw, g.passed, g.sets = raw, raw, map[string]guard{}
		return g, raw
	}
	g.Policy = g.Policy.withDefaults()
	look := Changed(g.raw, raw)
	for name := range g.sets {
		if !slices.Contains(look, name) {
			look = append(look, name)
		}
	}
	slices.Sort(look)
	changed := map[string]*Set{}
	for _, name := range look {
		if set, differs := g.set(now, name, raw.Set(name), evidence); differs {
			changed[name] = set
		}
	}
	g.raw = raw
	if len(changed) > 0 || raw.Index != g.passed.Index {
		g.passed = g.passed.With(raw.Index, changed)
	}
	return g, g.passed
}

// set decides one service.
func (g Guard) set(now time.Time, name string, raw *Set, evidence Evidence) (out *Set, differs bool) {
	was, s := g.passed.Set(name), g.sets[name]
	s.left = slices.DeleteFunc(slices.Clone(s.left), func(d departure) bool { return now.Sub(d.at) > g.Policy.Window })
	missing := without(instances(was), instances(raw))
	before := len(instances(was)) - len(missing) // of those that are to be accounted for
	if !s.keep {
		missing = slices.DeleteFunc(missing, func(in Instance) bool { return evidence.Explains(in) != "" })
	}
	before += len(missing)
	switch {
	case len(missing) == 0:
		s.held, s.keep = nil, false
	case s.held == nil && !g.collapses(s, before, len(instances(raw))):
		s.left = append(s.left, departure{now, len(missing)})
		missing = nil
	case s.held == nil:
		s.since = now
		s.held = missing
	default:
		s.held = missing
	}
	if len(s.left) == 0 && s.held == nil {
		delete(g.sets, name)
	} else {
		g.sets[name] = s
	}
	if len(s.held) == 0 {
		return raw, raw != was
	}
	all := slices.Concat(instances(raw), s.held)
	slices.SortFunc(all, CompareInstances)
	if was != nil && slices.EqualFunc(was.Instances, all, same) {
		return was, false
	}
	return &Set{Name: name, Instances: all}, true
}

// collapses decides whether a set that had so many instances may have so few now.
func (g Guard) collapses(s guard, was, raw int) bool {
	for _, d := range s.left {
		was += d.n
	}
	return raw == 0 || float64(raw) < (1-g.Policy.Most)*float64(was)
}

// Decide carries out an operator's decision, and reports whether the service is held.
// Call [Guard.Step] after it.
func (g Guard) Decide(now time.Time, name string, d Decision) (Guard, *Snapshot, bool) {
	s, ok := g.sets[name]
	if !ok || len(s.held) == 0 {
		return g, g.passed, false
	}
	if d == Keep {
		s.keep = true
		g.sets[name] = s
		return g, g.passed, true
	}
	delete(g.sets, name)
	g.passed = g.passed.With(g.passed.Index, map[string]*Set{name: g.raw.Set(name)})
	return g, g.passed, true
}

// Held lists what is held, by service.
func (g Guard) Held() []Held {
	var out []Held
	for name, s := range g.sets {
		if len(s.held) > 0 {
			out = append(out, Held{Service: name, Instances: s.held, Present: len(instances(g.raw.Set(name))), Since: s.since, Kept: s.keep})
		}
	}
	slices.SortFunc(out, func(a, b Held) int { return cmp.Compare(a.Service, b.Service) })
	return out
}

func instances(s *Set) []Instance {
	if s == nil {
		return nil
	}
	return s.Instances
}

// without lists what the first has and the second has not. Both are sorted.
func without(all, some []Instance) (out []Instance) {
	for _, in := range all {
		for len(some) > 0 && CompareInstances(some[0], in) < 0 {
			some = some[1:]
		}
		if len(some) == 0 || CompareInstances(some[0], in) != 0 {
			out = append(out, in)
		}
	}
	return out
}

// same compares by identity: what did not change keeps its parts.
func same(a, b Instance) bool {
	return a.Node == b.Node && a.Service == b.Service && slices.Equal(a.Checks, b.Checks)
}
