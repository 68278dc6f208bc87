package server

import (
	"errors"
	"maps"
	"slices"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// unsaved is an entry that is in force though the store could not take it: a revert must not
// wait for a disk. It is lost with the process; its sidecars still hold it then.
type unsaved struct {
	entry *config.TrafficShift
	by    store.Author
	why   string
}

// over puts entries in force over those of the store, and returns an index to wait for.
func (m *mesh) over(list []unsaved) uint64 {
	m.mu.Lock()
	for _, u := range list {
		m.unsaved[config.KeyOf(u.entry)] = u
	}
	m.index++
	index := m.index
	m.overlay()
	m.mu.Unlock()
	m.poke()
	return index
}

// overlay makes the entries in force of those in the store. What the store has of the same or
// a later generation counts. The caller holds mu.
func (m *mesh) overlay() {
	if m.base == nil {
		return
	}
	var put []config.Entry
	for k, u := range m.unsaved {
		if e, ok := m.base.Get(k).(*config.TrafficShift); ok && e.Generation >= u.entry.Generation {
			delete(m.unsaved, k)
			continue
		}
		put = append(put, u.entry)
	}
	m.entries = m.base
	if len(put) > 0 {
		m.entries = m.base.With(put, nil)
	}
}

// notSaved are the entries in force that the store has not taken, by name.
func (m *mesh) notSaved() map[string]unsaved {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[string]unsaved, len(m.unsaved))
	for k, u := range m.unsaved {
		out[k.Name] = u
	}
	return out
}

// diskFailed reports whether a write failed for want of a disk, and not for what it was.
func diskFailed(err error) bool {
	if err == nil || errors.Is(err, store.ErrClosed) {
		return false
	}
	_, refused := errors.AsType[*refusal](err)
	_, judged := errors.AsType[*store.Refusal](err)
	return !refused && !judged
}

// putBackUnsaved is putBack where the store takes nothing.
func (s *Server) putBackUnsaved(plan []back, by store.Author, why error) *api.Changed {
	out := &api.Changed{Pairs: []api.PairChanged{}, Unsaved: oneLine(why)}
	var list []unsaved
	for _, t := range plan {
		e, done, err := t.entry()
		switch {
		case err != nil:
			done.Refused = oneLine(err)
		case e != nil:
			e.Generation = t.old.Generation + 1
			list = append(list, unsaved{e, by, oneLine(why)})
		}
		out.Pairs = append(out.Pairs, done)
	}
	if len(list) > 0 {
		out.Index = s.mesh.over(list)
		s.opts.Log.Error("a revert is in force and not saved: it is tried again, and sidecars hold it over a restart of the server", "pairs", len(list), "reason", why)
	}
	return out
}

// saveUnsaved tries again to save what is in force.
func (s *Server) saveUnsaved() {
	list := s.mesh.notSaved()
	if len(list) == 0 {
		return
	}
	_, err := s.change(func(w *store.Writer) error {
		for _, name := range slices.Sorted(maps.Keys(list)) {
			if err := w.PutEntry(list[name].entry, list[name].by); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		s.opts.Log.Info("a revert that was in force is saved", "pairs", len(list))
	}
}
