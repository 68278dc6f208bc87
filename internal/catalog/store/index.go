package store

import (
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// firstIndex is the index before the first write; Consul never answers 0.
const firstIndex = 1

// maxGraves is how many names of things that are gone are remembered.
const maxGraves = 10_000

// Subjects that are not about one thing.
const (
	subjectAll      = "all"      // everything: the registry's counter
	subjectFloor    = "floor"    // the least index of anything that has no row
	subjectNodes    = "nodes"    // the table of nodes
	subjectServices = "services" // names and tags of services
	subjectChecks   = "checks"   // all checks
	subjectSessions = "sessions" // all sessions
)

// subjectService changes with the service's instances, their nodes and checks.
func subjectService(name string) string { return "service:" + name }

// subjectConnect changes with the instances that carry the service's mesh traffic.
func subjectConnect(name string) string { return "connect:" + name }

// subjectNode changes with the node, its services and checks.
func subjectNode(name string) string { return "node:" + name }

// subjectKind changes with the entries of a kind; the empty kind means all.
func subjectKind(kind config.Kind) string { return "kind:" + string(kind) }

// subjectEntry changes with one entry.
func subjectEntry(k config.Key) string { return "entry:" + k.String() }

// look makes the reader depend on a subject.
func (r *Reader) look(subject string) {
	ch, row, err := r.txn.FirstWatch(tableIndex, "id", subject)
	must(err)
	if r.watch != nil {
		r.watch.Add(ch)
	}
	if row != nil {
		r.index = max(r.index, row.(*indexRow).Index)
	} else {
		r.index = max(r.index, r.floor())
	}
}

// floor is the index of what was never there, or was gone so long ago that it is forgotten.
func (r *Reader) floor() uint64 {
	if row := r.first(tableIndex, "id", subjectFloor); row != nil {
		return row.(*indexRow).Index
	}
	return firstIndex
}

// bump says that subject changed with this write. A failure is kept for [Store.try].
func (w *Writer) bump(subject string) {
	if w.bumped[subject] || w.err != nil {
		return
	}
	w.bumped[subject] = true
	w.err = w.put(tableIndex, &indexRow{subject, w.next})
}

// bury counts one more name that is kept only for its index. Past [maxGraves] all
// of them are forgotten at once, by raising the floor.
func (w *Writer) bury() error {
	w.store.graves++
	if w.store.graves <= maxGraves {
		return nil
	}
	w.store.graves = 0
	for _, row := range w.list(tableGraves, "id_prefix", []byte{}) {
		if err := w.remove(tableGraves, row); err != nil {
			return err
		}
	}
	for _, row := range w.list(tableIndex, "id_prefix", []byte{}) {
		if w.gone(row.(*indexRow).Subject) {
			if err := w.remove(tableIndex, row); err != nil {
				return err
			}
		}
	}
	w.bump(subjectFloor)
	return nil
}

// gone reports whether a subject is about one thing that no longer exists.
func (w *Writer) gone(subject string) bool {
	about, name, ok := strings.Cut(subject, ":")
	if !ok {
		return false
	}
	switch about {
	case "service":
		return w.first(tableServices, "name", named(name)) == nil
	case "connect":
		return w.first(tableServices, "connect", named(name)) == nil
	case "node":
		return w.first(tableNodes, "id", name) == nil
	case "entry":
		kind, name, _ := strings.Cut(name, "/")
		return w.first(tableEntries, "id", kind, name) == nil
	}
	return false
}

// first is the first row that matches, or nil.
func (r *Reader) first(table, index string, args ...any) any {
	return r.txn.first(table, index, args...)
}

// list is all rows that match, in the order of the index.
func (r *Reader) list(table, index string, args ...any) []any {
	var out []any
	r.txn.each(table, index, args, func(row any) bool {
		out = append(out, row)
		return true
	})
	return out
}

// must holds for look-ups, which fail only on a table or index that is not in [tables].
func must(err error) {
	if err != nil {
		panic(err)
	}
}
