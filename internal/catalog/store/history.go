package store

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// How much of the past is kept. The newest version of an entry that exists always
// is: it says who wrote what there is.
const (
	maxVersions     = 100     // of one entry
	maxVersionBytes = 4 << 20 // of one entry, but for the newest two
	maxHistory      = 50_000  // versions of all entries, those that are gone included
)

// What was done to an entry.
const (
	Created    = "created"
	Changed    = "changed"
	Deleted    = "deleted"
	RolledBack = "rolled back"
	Reverted   = "reverted"
)

// Author says who changes entries, and when.
type Author struct {
	Who  string
	Time time.Time
	// Back says that the change goes back to an earlier version, and To to which: 0 is
	// that there was no entry yet.
	Back bool
	To   uint64
	// Reverted says that the change takes requests back to the way they took before.
	Reverted bool
	// What, if set, is said of the change in place of [Changed].
	What string
}

// Version is an entry as one write left it.
type Version struct {
	Kind  config.Kind     `json:"kind"`
	Name  string          `json:"name"`
	Index uint64          `json:"index"` // of the write
	Time  time.Time       `json:"time,omitzero"`
	Who   string          `json:"who,omitempty"` // empty: from before there was a history
	What  string          `json:"what"`
	To    uint64          `json:"to,omitempty"`    // the version that was gone back to
	Entry json.RawMessage `json:"entry,omitempty"` // none when it was deleted
}

func (v *Version) id() []byte {
	return binary.BigEndian.AppendUint64(key(string(v.Kind), v.Name), v.Index)
}

// History lists what is kept of the versions of an entry, the newest first. It
// changes with the entry.
func (r *Reader) History(k config.Key) []*Version {
	r.look(subjectEntry(k))
	var out []*Version
	for _, row := range r.list(tableHistory, "id_prefix", key(string(k.Kind), k.Name)) {
		out = append(out, row.(*Version))
	}
	slices.Reverse(out)
	return out
}

// Latest is the newest version of an entry, or nil where none is kept.
func (r *Reader) Latest(k config.Key) *Version {
	if all := r.History(k); len(all) > 0 {
		return all[0]
	}
	return nil
}

// record adds what was just written to the history. old and now are nil where there
// was, or is, no entry.
func (w *Writer) record(k config.Key, old, now *Entry, by Author) error {
	v := &Version{Kind: k.Kind, Name: k.Name, Index: w.next, Time: by.Time.UTC(), Who: by.Who, What: cmp.Or(by.What, Changed), To: by.To}
	switch {
	case by.Back:
		v.What = RolledBack
	case by.Reverted:
		v.What = Reverted
	case now == nil:
		v.What = Deleted
	case old == nil && by.What == "":
		v.What = Created
	}
	past := w.History(k)
	if len(past) == 0 && old != nil {
		// Written before there was a history: keep it, to be gone back to.
		first := &Version{Kind: k.Kind, Name: k.Name, Index: old.ModifyIndex, What: Created}
		if err := w.keep(first, old); err != nil {
			return err
		}
		past = append(past, first)
	}
	if err := w.keep(v, now); err != nil {
		return err
	}
	return w.trim(append([]*Version{v}, past...))
}

func (w *Writer) keep(v *Version, e *Entry) (err error) {
	if e != nil {
		if v.Entry, err = config.EncodeEntry(e.Entry); err != nil {
			return err
		}
	}
	w.store.versions++
	return w.put(tableHistory, v)
}

// trim drops what is too much of an entry's versions, the newest of which comes first,
// and of all.
func (w *Writer) trim(versions []*Version) error {
	size := 0
	for i, v := range versions {
		size += len(v.Entry)
		if i >= maxVersions || i >= 2 && size > maxVersionBytes {
			if err := w.remove(tableHistory, v); err != nil {
				return err
			}
			w.store.versions--
		}
	}
	if w.store.versions <= maxHistory {
		return nil
	}
	all := w.list(tableHistory, "written_prefix", []byte{}) // the oldest first
	w.store.versions = len(all)
	for _, row := range all {
		v := row.(*Version)
		if w.store.versions <= maxHistory*9/10 {
			break
		}
		k := config.Key{Kind: v.Kind, Name: v.Name}
		if newest := w.Latest(k); newest.Index == v.Index && w.Entry(k) != nil {
			continue
		}
		if err := w.remove(tableHistory, v); err != nil {
			return err
		}
		w.store.versions--
	}
	return nil
}
