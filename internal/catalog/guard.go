package catalog

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// Guard is the endpoint guard: it stands between a registry and what sidecars are told,
// and keeps sets from collapsing. An instance that is no longer registered leaves at
// once if its absence is explained. Those whose absence nothing explains leave too while
// enough stay or come; when nobody would be left, or the set would have shrunk by more than
// [GuardPolicy.Most] within [GuardPolicy.Window], all of them are held: they stay in the
// snapshot until they are registered again, their absence is explained, or somebody decides.
// One that said it was critical before it left is missed by nobody, and leaves.
//
// What explains an absence is [Evidence]'s to say. That a registry's index has grown
// explains nothing: an emptied one has a higher index as well.
//
// Ill health is believed where an instance's own check says so. One that has not run yet (see
// [Check.Unrun]) leaves an instance what it was, for a minute. That nobody has heard of
// it (see [Check.Silent]) is believed of one node; when several fall silent together each
// set keeps its floor, as told in silence.go.
//
// A Guard is a value: [Guard.Step] returns the next one and leaves the receiver as it was,
// but for maps that both share, so that only the newest is of use. The zero value lets the
// first snapshot pass whole; [Guard.Resume] makes one that goes on where another ended.
// Pure: a recorded log replays to the same snapshots.
type Guard struct {
	Policy GuardPolicy

	raw    *Snapshot            // that the registry gave last
	passed *Snapshot            // that was let through
	sets   map[string]guard     // of services that are to be looked at again
	quiet  map[string]time.Time // nodes that fell silent lately, and when
}

// GuardPolicy says how much may vanish unexplained. Zero values take the defaults.
type GuardPolicy struct {
	// Off lets everything pass at once.
	Off bool
	// Most is the part by which a set may shrink within Window with nothing to explain it.
	// Default one half. 1: only to have nobody left is a collapse.
	Most float64
	// Window is how long a departure counts. Default ten minutes.
	Window time.Duration
	// Agents run the registry's checks, as Consul's do, and forget what these said when they restart: see [Check.Unrun].
	Agents bool
	// Rate is the part of a set that may leave in one second, explained or not, and at least
	// one instance. 0: no limit.
	Rate float64
}

// Defaults fills in what is not set.
func (p GuardPolicy) Defaults() GuardPolicy {
	if !(p.Most > 0 && p.Most <= 1) {
		p.Most = 0.5
	}
	if p.Window <= 0 {
		p.Window = 10 * time.Minute
	}
	if !(p.Rate > 0) {
		p.Rate = 0
	}
	return p
}

// floor is how many of so many have to stay.
func (p GuardPolicy) floor(n int) int { return int(math.Ceil((1 - p.Most) * float64(n))) }

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

// Decided is who decided something, and when.
type Decided struct {
	Who  string    `json:"who"`
	Time time.Time `json:"time"`
}

// guard is what is known of one service.
type guard struct {
	left   map[InstanceKey]time.Time // let go, or silent and believed, within the window
	held   []Instance                // gone from the registry; sorted
	since  time.Time                 // when holding began; zero: nothing is held
	kept   Decided                   // zero: nobody decided
	going  []Instance                // that wait for their turn to leave; see GuardPolicy.Rate
	paced  time.Time                 // when some left last
	silent map[InstanceKey]time.Time // that were well before, and when they fell silent
	floor  []Instance                // those of silent that stay; sorted
	many   bool                      // they fell silent with others
	unrun  map[InstanceKey]time.Time // that stay well until their checks have run, and since when
}

// leave notes who is gone, or not well any more, with nothing to explain it.
func (s *guard) leave(now time.Time, who []Instance) {
	for _, in := range who {
		if s.left == nil {
			s.left = map[InstanceKey]time.Time{}
		}
		if _, ok := s.left[KeyOf(in)]; !ok {
			s.left[KeyOf(in)] = now
		}
	}
}

// done reports whether the service needs no second look.
func (s guard) done() bool {
	return s.since.IsZero() && len(s.left) == 0 && len(s.going) == 0 && len(s.silent) == 0 && len(s.unrun) == 0
}

// Held is a service whose instances the guard keeps.
type Held struct {
	Service   string
	Instances []Instance // that the registry no longer has
	Silent    []Instance // that it has, and nobody has heard of
	Present   int        // that it has
	Since     time.Time
	Kept      Decided // zero: nobody decided
}

// String says what is held and why.
func (h Held) String() string {
	switch {
	case len(h.Instances) == 0:
		return fmt.Sprintf("service %q: too many of %d instances fell silent together with other nodes, and said nothing of being ill: %d of them stay", h.Service, h.Present, len(h.Silent))
	case !h.Kept.Time.IsZero():
		return fmt.Sprintf("service %q: %d of %d instances are gone from the registry: they stay, since %s said so", h.Service, len(h.Instances), len(h.Instances)+h.Present, h.Kept.Who)
	}
	return fmt.Sprintf("service %q: %d of %d instances are gone from the registry and nothing explains it: they stay", h.Service, len(h.Instances), len(h.Instances)+h.Present)
}

// Resume makes a guard that starts from what another one let pass last, and holds on to
// services of which that one held instances. The registry's first answer is compared with
// it, as any other is.
func (g Guard) Resume(last *Snapshot, held []Held) Guard {
	g.raw, g.passed, g.sets, g.quiet = last, last, map[string]guard{}, map[string]time.Time{}
	for _, h := range held {
		g.sets[h.Service] = guard{since: h.Since, kept: h.Kept}
	}
	return g
}

// Passed is the snapshot that was let through last; nil before there is one.
func (g Guard) Passed() *Snapshot { return g.passed }

// Waits reports whether time alone may change what is let through, or evidence.
func (g Guard) Waits() bool { return len(g.sets) > 0 }

// Step takes in what the registry has now, and returns what sidecars are to be told. It
// looks at services that changed since the last step and at those that it keeps an eye on.
// Call it as well when evidence may have come, and each second while [Guard.Waits]: with
// the same snapshot.
func (g Guard) Step(now time.Time, raw *Snapshot, evidence Evidence) (Guard, *Snapshot) {
	if g.passed == nil || g.Policy.Off {
		g.raw, g.passed, g.sets, g.quiet = raw, raw, map[string]guard{}, map[string]time.Time{}
		return g, raw
	}
	g.Policy = g.Policy.Defaults()
	look := Changed(g.raw, raw)
	g.hush(now, raw, look)
	for name := range g.sets {
		look = append(look, name)
	}
	slices.Sort(look)
	changed := map[string]*Set{}
	for _, name := range slices.Compact(look) {
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
	s.left = maps.Clone(s.left)
	maps.DeleteFunc(s.left, func(_ InstanceKey, at time.Time) bool { return now.Sub(at) > g.Policy.Window })
	for _, in := range instances(raw) {
		if in.Status() != Critical {
			delete(s.left, KeyOf(in))
		}
	}
	missed := s.missed()
	present := g.heard(now, &s, g.awaited(now, &s, instances(raw), instances(was)), instances(was))
	gone := without(instances(was), present)
	unexplained := slices.Clone(gone)
	if s.kept.Time.IsZero() {
		unexplained = slices.DeleteFunc(unexplained, func(in Instance) bool { return !missed(in) || evidence.Explains(in) != "" })
	}
	switch {
	case len(unexplained) == 0:
		s.since, s.kept = time.Time{}, Decided{}
	case s.since.IsZero() && g.collapses(s, missed, instances(was), present, unexplained):
		s.since = now
	case s.since.IsZero():
		s.leave(now, unexplained)
		unexplained = nil
	}
	s.held = unexplained
	s.leave(now, fallen(present, instances(was)))
	s.going = g.pace(now, &s, without(gone, s.held), len(instances(was)))
	if s.done() && now.Sub(s.paced) >= paceEvery {
		delete(g.sets, name)
	} else {
		g.sets[name] = s
	}
	if len(s.held)+len(s.going)+len(s.floor)+len(s.unrun) == 0 {
		return raw, raw != was
	}
	all := slices.Concat(present, s.held, s.going)
	slices.SortFunc(all, CompareInstances)
	if was != nil && slices.EqualFunc(was.Instances, all, Instance.same) {
		return was, false
	}
	return &Set{Name: name, Instances: all}, true
}

// missed tells whose absence matters: who is critical gets nothing anyway, unless others
// fell silent with it.
func (s guard) missed() func(Instance) bool {
	suspect := map[InstanceKey]bool{}
	if s.many {
		for k := range s.silent {
			suspect[k] = true
		}
	}
	for _, in := range s.held {
		suspect[KeyOf(in)] = true
	}
	return func(in Instance) bool { return suspect[KeyOf(in)] || in.Status() != Critical }
}

// collapses decides whether a set may have as few as are present now when these leave
// unexplained. Those that left before, within the window, count as well; whoever was not
// to be missed, or says itself that it is ill, does not.
func (g Guard) collapses(s guard, missed func(Instance) bool, was, present, leave []Instance) bool {
	before, now := 0, 0
	for _, in := range present {
		well := in.Status() != Critical
		if well {
			now++
		}
		i, ok := slices.BinarySearchFunc(was, in, CompareInstances)
		if ok && missed(was[i]) && (well || in.silent()) {
			before++
		}
	}
	before += len(leave) + len(s.left)
	for _, in := range leave {
		if _, counted := s.left[KeyOf(in)]; counted {
			before--
		}
	}
	return now == 0 || float64(now) < (1-g.Policy.Most)*float64(before)
}

// paceEvery is how long after some others may leave: a second, less what a step each second
// may come early.
const paceEvery = time.Second - 50*time.Millisecond

// pace lets as many leave as may now, and returns the others.
func (g Guard) pace(now time.Time, s *guard, leaving []Instance, of int) []Instance {
	if g.Policy.Rate == 0 || len(leaving) == 0 {
		return nil
	}
	if now.Sub(s.paced) < paceEvery {
		return leaving
	}
	s.paced = now
	return leaving[min(len(leaving), max(1, int(g.Policy.Rate*float64(of)))):]
}

// Held lists what is held, by service.
func (g Guard) Held() []Held {
	var out []Held
	for name, s := range g.sets {
		if len(s.held)+len(s.floor) == 0 {
			continue
		}
		h := Held{Service: name, Instances: s.held, Silent: s.floor, Present: len(instances(g.raw.Set(name))), Since: s.since, Kept: s.kept}
		for _, in := range s.floor {
			if at := s.silent[KeyOf(in)]; h.Since.IsZero() || at.Before(h.Since) {
				h.Since = at
			}
		}
		out = append(out, h)
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
