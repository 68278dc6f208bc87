package store

import "bytes"

// KV is the pair under that key, or nil.
func (r *Reader) KV(k string) *KV {
	ch, row, err := r.txn.FirstWatch(tableKV, "id", k)
	must(err)
	if r.watch != nil {
		r.watch.Add(ch)
	}
	if pair, ok := row.(*KV); ok {
		r.index = max(r.index, pair.ModifyIndex)
		return pair
	}
	r.index = max(r.index, r.floor())
	if g, ok := r.first(tableGraves, "id", k).(*grave); ok {
		r.index = max(r.index, g.Index)
	}
	return nil
}

// KVs lists the pairs whose keys begin with prefix, by key.
func (r *Reader) KVs(prefix string) []*KV {
	it, err := r.txn.Get(tableKV, "id_prefix", []byte(prefix))
	must(err)
	if r.watch != nil {
		r.watch.Add(it.WatchCh())
	}
	var out []*KV
	for row := it.Next(); row != nil; row = it.Next() {
		pair := row.(*KV)
		r.index = max(r.index, pair.ModifyIndex)
		out = append(out, pair)
	}
	if len(out) == 0 {
		r.index = max(r.index, r.floor())
	}
	for _, row := range r.list(tableGraves, "id_prefix", []byte(prefix)) {
		r.index = max(r.index, row.(*grave).Index)
	}
	return out
}

// PutKV writes a pair. A session that holds it goes on holding it, though as in
// Consul the count of its acquisitions starts anew.
func (w *Writer) PutKV(k string, value []byte, flags uint64) error {
	n := &KV{Key: k, Value: value, Flags: flags}
	old := w.KV(k)
	if old != nil {
		n.Session = old.Session
	}
	return w.setKV(n, old)
}

// setKV puts n in the place of old, which is nil for a new key.
func (w *Writer) setKV(n, old *KV) error {
	if err := nameError("key", n.Key); err != nil {
		return err
	}
	n.CreateIndex, n.ModifyIndex = w.next, w.next
	if old != nil {
		n.CreateIndex = old.CreateIndex
		if old.Flags == n.Flags && old.Session == n.Session && old.LockIndex == n.LockIndex && bytes.Equal(old.Value, n.Value) {
			return nil
		}
	}
	return w.put(tableKV, n)
}

// DeleteKV removes a pair. A key that is not there is no error.
func (w *Writer) DeleteKV(k string) error {
	pair := w.KV(k)
	if pair == nil {
		return nil
	}
	if err := w.remove(tableKV, pair); err != nil {
		return err
	}
	if err := w.put(tableGraves, &grave{k, w.next}); err != nil {
		return err
	}
	return w.bury()
}

// DeleteKVs removes all pairs whose keys begin with prefix.
func (w *Writer) DeleteKVs(prefix string) error {
	for _, pair := range w.KVs(prefix) {
		if err := w.DeleteKV(pair.Key); err != nil {
			return err
		}
	}
	return nil
}

// CAS reports whether a compare-and-set may go ahead: want 0 asks that nothing be
// there, any other want that modified, the index of the last change, be that.
func CAS(want uint64, exists bool, modified uint64) bool {
	if want == 0 {
		return !exists
	}
	return exists && modified == want
}
