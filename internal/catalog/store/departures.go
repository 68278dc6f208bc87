package store

import (
	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// maxDepartures are remembered at least; past half as many more the oldest are forgotten.
const maxDepartures = 20_000

// departure says why an instance is registered no more: somebody who may asked for it.
// What the registry takes out by itself leaves none.
type departure struct {
	Node, ID string
	Service  string
	Why      string
	Index    uint64 // of the write
}

var _ catalog.Evidence = (*Store)(nil)

// Explains implements [catalog.Evidence].
func (s *Store) Explains(in catalog.Instance) string {
	r := s.reader()
	if now := r.service(in.Node.Name, in.Service.ID); now != nil {
		if now.Name == in.Service.Name {
			return "" // it is there
		}
		return "its ID is registered for service " + now.Name + " now"
	}
	if d, ok := r.first(tableLeft, "id", in.Node.Name, in.Service.ID).(*departure); ok && d.Service == in.Service.Name {
		return d.Why
	}
	return ""
}

// depart remembers that somebody asked for an instance to go.
func (w *Writer) depart(row *serviceRow, why string) error {
	if w.first(tableLeft, "id", row.Node, row.Service.ID) == nil {
		w.store.left++
	}
	if err := w.put(tableLeft, &departure{row.Node, row.Service.ID, row.Service.Name, why, w.next}); err != nil || w.store.left <= maxDepartures*3/2 {
		return err
	}
	all := w.list(tableLeft, "written_prefix", []byte{}) // the oldest first
	w.store.left = len(all)
	for _, old := range all[:max(0, len(all)-maxDepartures)] {
		if err := w.remove(tableLeft, old); err != nil {
			return err
		}
		w.store.left--
	}
	return nil
}

// arrive forgets why an instance left.
func (w *Writer) arrive(node, id string) error {
	if row := w.first(tableLeft, "id", node, id); row != nil {
		return w.remove(tableLeft, row)
	}
	return nil
}
