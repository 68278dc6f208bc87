package catalog

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// SerfHealth is the CheckID of what the registry itself says of a node: whether it hears of it.
const SerfHealth = "serfHealth"

// TTLExpired begins the output of a TTL check that nobody has set in time, in Consul's words.
const TTLExpired = "TTL expired"

// Silent reports whether the check is critical for want of news alone: the registry hears
// nothing of the node, or nobody has set a TTL check in time. What a check says itself,
// be it ever so bad, is no silence.
func (c *Check) Silent() bool {
	if c.Status != Critical {
		return false
	}
	return c.ServiceID == "" && c.CheckID == SerfHealth || (c.Type == "ttl" || c.Type == "") && strings.HasPrefix(c.Output, TTLExpired)
}

// ranWell is the output of checks that passed, in Consul's words; no check that failed has such a one.
var ranWell = regexp.MustCompile(`^(TCP|TCP\+TLS|UDP) connect .*: Success$|^HTTP [A-Z]+ \S+: 2\d\d |^HTTP2 ping was successful$|^gRPC check .*: success$`)

// Unrun reports whether the check is critical only because it has not run since it was registered
// or its agent was restarted: Consul lets a check begin so, with no output, or the one that it had
// when the agent wrote it to its disk. What has run and failed says so; the output of a
// script may be empty and so may the note of who sets a TTL check, so these count only as long as
// nothing has changed them.
func (c *Check) Unrun() bool {
	if c.Status != Critical || c.ServiceID == "" {
		return false
	}
	switch c.Type {
	case "http", "tcp", "udp", "grpc", "h2ping":
		return c.Output == "" || ranWell.MatchString(c.Output)
	case "os_service", "alias":
		return c.Output == ""
	case "ttl", "script", "docker":
		return c.Output == "" && c.ModifyIndex == c.CreateIndex
	}
	return false
}

// unrun reports whether the instance is critical for checks that have not run yet, and for nothing
// else but silence.
func (i Instance) unrun() (unrun bool) {
	for _, c := range i.Checks {
		if c.Unrun() {
			unrun = true
		} else if c.Status == Critical && !c.Silent() {
			return false
		}
	}
	return unrun
}

// ran is the instance without its checks that have not run yet, if nothing but these, and silence, is critical.
func (i Instance) ran() Instance {
	if !i.unrun() {
		return i
	}
	i.Checks = slices.DeleteFunc(slices.Clone(i.Checks), (*Check).Unrun)
	return i
}

// silent reports whether the instance is critical for nothing but silence.
func (i Instance) silent() bool {
	silent := false
	for _, c := range i.Checks {
		if c.Status == Critical && !c.Silent() {
			return false
		}
		silent = silent || c.Silent()
	}
	return silent
}

// A set's floor of health. An instance whose own check says that it is ill leaves, whatever
// others do: splits pass over a leg where nobody is well, and failovers begin, because of
// that, and who went there would be told no. That one node falls silent is believed as
// well. When several do within the window, or others of the set vanish, whatever hears them
// is as likely to be at fault: then a set keeps [GuardPolicy.Most]'s complement of those that would be well but for the
// silence, the last to fall silent first. Nobody listening there is no worse than a 503.

// runWithin is how long an instance that is heard of keeps its health while its checks have not run.
const runWithin = time.Minute

// awaited returns the instances without the checks that have not run, of those that sidecars were
// told are well and whose checks have not run since: such a check says nothing yet, and an agent
// that restarts, or is filled anew, has many of them at once. After [runWithin] it is believed, unless
// nobody hears of the agent that would run it.
func (g Guard) awaited(now time.Time, s *guard, raw, was []Instance) []Instance {
	if !g.Policy.Agents {
		return raw
	}
	unrun, out := map[InstanceKey]time.Time{}, raw
	for i, in := range raw {
		if !in.unrun() {
			continue
		}
		at, there := slices.BinarySearchFunc(was, in, CompareInstances)
		since, known := s.unrun[KeyOf(in)]
		ran := in.ran()
		silent := ran.silent()
		if !there || was[at].Status() == Critical && !(known && silent) {
			continue
		}
		if !known || silent {
			since = now
		}
		if now.Sub(since) > runWithin {
			continue
		}
		unrun[KeyOf(in)] = since
		if &out[0] == &raw[0] {
			out = slices.Clone(raw)
		}
		out[i] = ran
	}
	s.unrun = unrun
	return out
}

// hush notes the nodes that fell silent since the last step.
func (g Guard) hush(now time.Time, raw *Snapshot, changed []string) {
	for node, at := range g.quiet {
		if now.Sub(at) > g.Policy.Window {
			delete(g.quiet, node)
		}
	}
	for _, name := range changed {
		set := instances(raw.Set(name))
		if g.Policy.Agents && slices.ContainsFunc(set, Instance.unrun) {
			set = slices.Clone(set)
			for i := range set {
				set[i] = set[i].ran()
			}
		}
		for _, in := range fallen(set, instances(g.passed.Set(name))) {
			if _, known := g.sets[name].silent[KeyOf(in)]; !known {
				g.quiet[in.Node.Name] = now
			}
		}
	}
}

// fallen lists those that are silent now and that sidecars were told are well. Both are sorted.
func fallen(now, before []Instance) (out []Instance) {
	for _, in := range now {
		if !in.silent() {
			continue
		}
		i, ok := slices.BinarySearchFunc(before, in, CompareInstances)
		if ok && before[i].Status() != Critical {
			out = append(out, in)
		}
	}
	return out
}

// heard keeps account of who is silent, and returns the registered instances as sidecars
// are to be told of them: those of the floor without what silence says of them.
func (g Guard) heard(now time.Time, s *guard, raw, was []Instance) []Instance {
	silent := map[InstanceKey]time.Time{}
	for _, in := range fallen(raw, was) {
		silent[KeyOf(in)] = now
	}
	back := map[InstanceKey]time.Time{} // who comes back silent
	for _, in := range s.held {
		back[KeyOf(in)] = now
	}
	maps.Copy(back, s.left)
	maps.Copy(back, s.silent)
	well := 0
	for _, in := range raw {
		switch k := KeyOf(in); {
		case in.silent():
			if at, ok := back[k]; ok {
				silent[k] = at
			}
		case in.Status() != Critical:
			well++
		}
	}
	away, mute := len(s.left), false // of those that left with nothing to explain it; whether some are back, and silent
	for _, in := range raw {
		if _, ok := s.left[KeyOf(in)]; ok {
			away--
			mute = mute || in.silent()
		}
	}
	s.silent, s.floor = silent, nil
	s.many = len(silent) > 0 && (s.many || len(g.quiet) > 1 || away > 0 || mute)
	missing := g.Policy.floor(well+len(silent)+away) - well
	if !s.many || missing <= 0 {
		return raw
	}
	for _, in := range raw {
		if _, ok := silent[KeyOf(in)]; ok {
			s.floor = append(s.floor, in)
		}
	}
	slices.SortStableFunc(s.floor, func(a, b Instance) int { return silent[KeyOf(b)].Compare(silent[KeyOf(a)]) })
	s.floor = s.floor[:min(missing, len(s.floor))]
	slices.SortFunc(s.floor, CompareInstances)
	out := slices.Clone(raw)
	for i, in := range out {
		if _, stays := slices.BinarySearchFunc(s.floor, in, CompareInstances); stays {
			out[i].Checks = slices.DeleteFunc(slices.Clone(in.Checks), (*Check).Silent)
		}
	}
	return out
}
