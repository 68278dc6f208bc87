package server

import (
	"maps"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// step brings the streams up to the newest catalog and entries. With all it looks at each
// sidecar, whatever has changed.
func (m *mesh) step(now time.Time, all bool) {
	m.mu.Lock()
	snap, entries, names, index := m.catalog, m.entries, m.names, m.index
	if snap == nil || entries == nil {
		m.mu.Unlock()
		return
	}
	reconsider, connected, away := m.reconsider, map[string]node{}, map[string]bool{}
	for key := range m.moved {
		connected[key] = m.connected[key]
		if since, is := m.away[key]; is && now.Sub(since) < awayFor {
			away[key] = true
		} else {
			delete(m.away, key)
		}
	}
	m.reconsider = nil
	m.lastGood.stale = m.lastGood.stale || len(reconsider) > 0
	clear(m.moved)
	m.mu.Unlock()
	update := xds.Update{Views: map[string]*xds.View{}, Shared: map[xds.Key]*xds.Resource{}}
	record := change{at: now, index: index, sidecars: map[string]concern{}}
	changedEntries := config.Changed(m.doneEntries, entries)
	changedNames := namesChanged(m.doneNames, names)
	m.doneNames = names
	m.chains.forget(changedEntries)
	changedReads := map[entryKey]struct{}{}
	for _, k := range entryKeys(changedEntries) {
		changedReads[k] = struct{}{}
	}
	changedServices := catalog.Changed(m.doneCatalog, snap)
	appeared := m.learn(changedServices, snap)
	touched := affected(m.doneCatalog, snap, changedServices)
	moved := movedServices(m.doneCatalog, snap, touched)
	cuts := m.liveCuts(now)
	all = all || len(cuts)+len(m.doneCuts) > 0
	m.doneCuts = cuts
	concerned := map[string]struct{}{}
	for key, n := range connected {
		if n.streams > 0 {
			m.crowd.come(key, n)
			concerned[key] = struct{}{}
			continue
		}
		if m.sidecars[key] != nil && away[key] {
			m.crowd.rest(key)
			continue
		}
		m.crowd.leave(key)
		if m.sidecars[key] != nil {
			m.forget(key, update)
		}
		m.mu.Lock()
		delete(m.problems, key)
		m.mu.Unlock()
	}
	if all || m.doneCatalog == nil || len(changedEntries)+len(appeared)+len(reconsider) > 0 {
		for key := range m.crowd.nodes {
			concerned[key] = struct{}{}
		}
	}
	for _, name := range changedServices {
		if m.doneCatalog != nil {
			m.crowd.registered(m.doneCatalog.Set(name), concerned)
		}
		m.crowd.registered(snap.Set(name), concerned)
	}
	for _, name := range moved {
		for key := range m.crowd.bySource[name] {
			concerned[key] = struct{}{}
		}
	}
	rebuilt := map[string]*sidecar{}
	for key := range concerned {
		n := m.crowd.nodes[key]
		if in, ok := snap.Proxy(n.id, n.name); ok && n.mayBe(in) != nil {
			m.xds.Disconnect(key, n.mayBe(in)) // its id has become another's
			continue
		}
		old := m.sidecars[key]
		refusal := false
		if old != nil {
			_, refusal = reconsider[old.of()]
		}
		switch {
		case !refusal && !m.stale(old, n, snap, cuts, changedReads, appeared, moved, now):
		case old == nil:
			m.crowd.queue(key)
		default:
			m.build(key, n, snap, entries, cuts, now, update)
			rebuilt[key] = old
		}
	}
	served := m.welcome(snap, entries, cuts, now, update)
	m.rearrange(snap, now, update)
	for key, old := range rebuilt {
		if m.crowd.nodes[key].streams == 0 {
			continue // nobody there to say what became of it
		}
		record.note(key, m.crowd.nodes[key], old, m.sidecars[key], changedReads, update.Shared)
	}
	for key := range m.crowd.leaving {
		s := m.sidecars[key]
		if s != nil && len(s.leaving) > 0 && !s.leaving[0].until.After(now) {
			s.leaving = m.left(s.leaving, now, update)
		}
		if s == nil || len(s.leaving) == 0 {
			delete(m.crowd.leaving, key)
		}
	}
	for _, e := range slices.Concat(m.endpoints.of(touched), m.endpoints.reading(changedNames)) {
		m.refresh(e, snap, update)
	}
	m.doneCatalog, m.doneEntries = snap, entries
	m.xds.Update(update)
	for key, n := range connected {
		if _, waits := m.crowd.queued[key]; !waits {
			n.conn.settled()
		}
	}
	for _, n := range served {
		n.conn.settled()
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	m.endpoints.tell(m.named)
	m.inForce = m.chains.old
	if snap.Index > m.applied || index > m.changes.done {
		m.applied = max(m.applied, snap.Index)
		m.changes.add(record)
		close(m.progress)
		m.progress = make(chan struct{})
	}
}

// welcome builds for newcomers, for a while, and returns them; the others have their turn in the next step, after
// what has changed by then.
func (m *mesh) welcome(snap *catalog.Snapshot, entries *config.Set, cuts []*cut, now time.Time, update xds.Update) (served []node) {
	began := time.Now()
	for i, key := range m.crowd.newcomers {
		if i >= welcomeAtLeast && time.Since(began) > welcomeFor {
			m.crowd.newcomers = slices.Clone(m.crowd.newcomers[i:])
			m.poke()
			return served
		}
		delete(m.crowd.queued, key)
		n, here := m.crowd.nodes[key]
		served = append(served, n)
		if in, ok := snap.Proxy(n.id, n.name); here && m.sidecars[key] == nil && ok && n.mayBe(in) == nil {
			m.build(key, n, snap, entries, cuts, now, update)
		}
	}
	m.crowd.newcomers = nil
	return served
}

// learn notes which services exist and returns those that never did before. One
// that goes away stays known: its callers' listeners are not to change by that.
func (m *mesh) learn(changed []string, snap *catalog.Snapshot) (appeared []string) {
	for _, name := range changed {
		if _, known := m.known[name]; !known && snap.Set(name) != nil {
			appeared = append(appeared, name)
		}
	}
	if len(appeared) == 0 {
		return nil
	}
	known := maps.Clone(m.known)
	for _, name := range appeared {
		known[name] = struct{}{}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.known = known
	return appeared
}
