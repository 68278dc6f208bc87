package xds

import (
	"maps"
	"slices"
	"strings"
	"sync"
)

// memory is what nodes that are told the same, a group, made of what they were told: of each
// resource the last version that any of them acknowledged, and the one that some refused and
// none acknowledged. Who is new to a resource is given the former before the latter, so that
// it serves even if it refuses that, too. One version of either is kept per name.
type memory struct {
	mu     sync.Mutex // taken after stream.mu; nothing is taken after it
	groups map[string]*groupMemory
}

type groupMemory struct {
	good    byKey[*Resource]
	refused map[Key]Refusal
}

func (m *memory) group(name string) *groupMemory {
	g := m.groups[name]
	if g == nil {
		g = &groupMemory{refused: map[Key]Refusal{}}
		if m.groups == nil {
			m.groups = map[string]*groupMemory{}
		}
		m.groups[name] = g
	}
	return g
}

// acked notes that a node took a resource, of which now is the present version. It reports
// whether a refusal is over by that.
func (m *memory) acked(group string, res *Resource, now string) (over bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g, k := m.group(group), Key{res.Type, res.Name}
	if good := g.good.get(k); good != nil && good.Version == now && res.Version != now {
		return false // it is late, others have gone on
	}
	g.good.set(k, res)
	if r, bad := g.refused[k]; bad && r.Version == res.Version {
		delete(g.refused, k)
		return true
	}
	return false
}

// held notes what a node says that it had before it came. That does not speak for a version
// that others refused.
func (m *memory) held(group string, res *Resource) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g, k := m.group(group), Key{res.Type, res.Name}
	if g.refused[k].Version != res.Version {
		g.good.set(k, res)
	}
}

// refusedBy notes a refusal, unless it speaks of the node rather than of the version, or
// others took the version. It reports whether that is news.
func (m *memory) refusedBy(group string, k Key, r Refusal) (news bool) {
	if troubleOfItsOwn(r.Message) {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	g := m.group(group)
	if good := g.good.get(k); good != nil && good.Version == r.Version || g.refused[k].Version == r.Version {
		return false
	}
	g.refused[k] = r
	return true
}

// instead is what to give first to who has nothing of a resource; nil: the resource itself.
func (m *memory) instead(group string, res *Resource) (*Resource, Refusal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g, k := m.groups[group], Key{res.Type, res.Name}
	if g == nil || g.refused[k].Version != res.Version {
		return nil, Refusal{}
	}
	return g.good.get(k), g.refused[k]
}

// troubles are Envoy's words, in lower case, for what is wrong with one host: there, the
// same version may well work on another.
var troubles = []string{
	"address already in use", "cannot bind", "cannot assign requested address", "permission denied", "operation not permitted",
	"out of memory", "cannot allocate memory", "too many open files", "no space left",
}

func troubleOfItsOwn(message string) bool {
	message = strings.ToLower(message)
	for _, t := range troubles {
		if strings.Contains(message, t) {
			return true
		}
	}
	return false
}

// QuarantinePrefix begins the words in which a relay refuses what its Envoy crashed on.
const QuarantinePrefix = "quarantined: "

// fatal reports whether an Envoy ended by the version: it is not offered to one that is new.
func (r Refusal) fatal() bool { return strings.Contains(r.Message, QuarantinePrefix) }

// Refusals are what nodes of a group refused, none acknowledged, and the view has.
func (s *Server) Refusals(group string, own map[Type]Resources) map[Key]Refusal {
	s.memory.mu.Lock()
	defer s.memory.mu.Unlock()
	g := s.memory.groups[group]
	if g == nil || len(g.refused) == 0 {
		return nil
	}
	out := map[Key]Refusal{}
	for k, r := range g.refused {
		if res := own[k.Type].Get(k.Name); res != nil && res.Version == r.Version {
			out[k] = r
		}
	}
	return out
}

// Good is the last resources of a type that nodes of a group acknowledged, by name.
func (s *Server) Good(group string, t Type) map[string]*Resource {
	s.memory.mu.Lock()
	defer s.memory.mu.Unlock()
	out := map[string]*Resource{}
	if g := s.memory.groups[group]; g != nil {
		maps.Insert(out, g.good.at(t).all())
	}
	return out
}

// Forget drops what is remembered of groups and resources that are not to be kept.
func (s *Server) Forget(keep func(group string, k Key) bool) {
	s.memory.mu.Lock()
	defer s.memory.mu.Unlock()
	for name, g := range s.memory.groups {
		left := g.good.keep(func(k Key) bool { return keep(name, k) })
		maps.DeleteFunc(g.refused, func(k Key, _ Refusal) bool { return !keep(name, k) })
		if !left && len(g.refused) == 0 {
			delete(s.memory.groups, name)
		}
	}
}

// learn remembers for the stream's group what the client made of a response. It reports
// whether what is refused has changed. The stream is locked.
func (st *stream) learn(t Type, o *outcome) (news bool) {
	if st.view == nil || st.view.Group == "" || o.retry {
		return false
	}
	group, m := st.view.Group, &st.server.memory
	for _, res := range o.taken {
		if now := st.view.Own[t].Get(res.Name); now != nil && st.server.alike(Key{t, res.Name}) {
			news = m.acked(group, res, now.Version) || news
		}
	}
	for name, r := range o.refused {
		if res := st.view.Own[t].Get(name); res != nil && res.Version == r.Version && st.server.alike(Key{t, name}) {
			news = m.refusedBy(group, Key{t, name}, r) || news
			if good, _ := st.instead(res); good != nil {
				st.session.retreat(t, name)
			}
		}
	}
	return news
}

func (s *Server) alike(k Key) bool { return s.opts.Alike != nil && s.opts.Alike(k) }

// instead implements source. The stream is locked.
func (st *stream) instead(res *Resource) (*Resource, Refusal) {
	if st.view == nil || st.view.Group == "" {
		return nil, Refusal{}
	}
	return st.server.memory.instead(st.view.Group, res)
}

// learnHeld remembers what the client said that it holds. The stream is locked.
func (st *stream) learnHeld() {
	if st.view == nil || st.view.Group == "" {
		return
	}
	for t, sub := range st.session.all() {
		for name := range sub.told.all() {
			if res := st.view.Own[t].Get(name); res != nil && res.Version == sub.acked(name) && st.server.alike(Key{t, name}) {
				st.server.memory.held(st.view.Group, res)
			}
		}
	}
}

// Remembered is all that is known of a group, by type and name, for [Server.Remember] of
// another start; nothing of a group that has refused nothing.
func (s *Server) Remembered(group string) (good []*Resource, refused map[Key]Refusal) {
	s.memory.mu.Lock()
	defer s.memory.mu.Unlock()
	g := s.memory.groups[group]
	if g == nil || len(g.refused) == 0 {
		return nil, nil
	}
	for i := range g.good.of {
		for _, res := range g.good.of[i].all() {
			good = append(good, res)
		}
	}
	slices.SortFunc(good, func(a, b *Resource) int { return Key{a.Type, a.Name}.Compare(Key{b.Type, b.Name}) })
	return good, maps.Clone(g.refused)
}

// Remember is for what [Server.Remembered] said. It is called before streams are.
func (s *Server) Remember(group string, good []*Resource, refused map[Key]Refusal) {
	s.memory.mu.Lock()
	defer s.memory.mu.Unlock()
	g := s.memory.group(group)
	for _, res := range good {
		if slices.Contains(Types[:], res.Type) { // the file may be another version's
			g.good.set(Key{res.Type, res.Name}, res)
		}
	}
	maps.Copy(g.refused, refused)
}
