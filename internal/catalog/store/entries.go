package store

import "github.com/crossfade-mesh/crossfade/internal/config"

// Entry is the configuration entry with that key, or nil.
func (r *Reader) Entry(k config.Key) *Entry {
	r.look(subjectEntry(k))
	e, _ := r.first(tableEntries, "id", string(k.Kind), k.Name).(*Entry)
	return e
}

// Entries lists the entries of a kind by name; the empty kind lists all.
func (r *Reader) Entries(kind config.Kind) []*Entry {
	r.look(subjectKind(kind))
	prefix := []byte{}
	if kind != "" {
		prefix = key(string(kind))
	}
	var out []*Entry
	for _, row := range r.list(tableEntries, "id_prefix", prefix) {
		out = append(out, row.(*Entry))
	}
	return out
}

// PutEntry writes a normalized and valid entry, and who did so into its history.
func (w *Writer) PutEntry(e config.Entry, by Author) error {
	if err := nameError(string(e.EntryKind()), e.EntryName()); err != nil {
		return err
	}
	k := config.KeyOf(e)
	old := w.Entry(k)
	n := &Entry{e, w.next, w.next}
	if old == nil {
		n.Entry = config.Succeed(w.deleted(k), e)
	} else {
		n.Entry = config.Succeed(old.Entry, e)
		n.CreateIndex, n.ModifyIndex = old.CreateIndex, old.ModifyIndex
		if same(old, n) {
			return nil
		}
		n.ModifyIndex = w.next
	}
	if err := w.put(tableEntries, n); err != nil {
		return err
	}
	w.entryChanged(k)
	return w.record(k, old, n, by)
}

// deleted is a traffic-shift as it was before it was deleted, or nil: its generation is not
// to begin anew, since sidecars may still hold the old one.
func (r *Reader) deleted(k config.Key) config.Entry {
	if k.Kind != config.KindTrafficShift {
		return nil
	}
	for _, v := range r.History(k) {
		if v.Entry == nil {
			continue
		}
		if e, err := config.DecodeEntryJSON(v.Entry); err == nil {
			return e
		}
	}
	return nil
}

// DeleteEntry removes an entry, and writes who did so into its history. One that is
// not there is no error.
func (w *Writer) DeleteEntry(k config.Key, by Author) error {
	e := w.Entry(k)
	if id := key(string(k.Kind), k.Name); e == nil && w.store.unread[string(id)] {
		w.change(Change{tableEntries, id, nil})
		return nil
	}
	if e == nil {
		return nil
	}
	if err := w.remove(tableEntries, e); err != nil {
		return err
	}
	w.entryChanged(k)
	if err := w.record(k, e, nil, by); err != nil {
		return err
	}
	return w.bury()
}

func (w *Writer) entryChanged(k config.Key) {
	w.touched = append(w.touched, k)
	w.bump(subjectEntry(k))
	w.bump(subjectKind(k.Kind))
	w.bump(subjectKind(""))
}

// EntriesIndex is the index of the newest change of entries, which [Store.RunConfig]
// publishes them with.
func (r *Reader) EntriesIndex() uint64 {
	r.Entries("")
	return r.index
}
