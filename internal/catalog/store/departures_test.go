package store

import (
	"fmt"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// Somebody's word explains, over a restart too, until the instance is registered again; what
// the registry gives up on by itself explains nothing.
func TestExplains(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	update := func(write func(w *Writer) error) {
		t.Helper()
		if err := s.Update(write); err != nil {
			t.Fatal(err)
		}
	}
	put := func(node, id, name string) func(*Writer) error {
		return func(w *Writer) error {
			if err := w.PutNode(catalog.Node{Name: node, Address: "10.0.0.1"}); err != nil {
				return err
			}
			return w.PutService(node, catalog.Service{ID: id, Name: name, Port: 1})
		}
	}
	want := func(node, id, name, want string) {
		t.Helper()
		in := catalog.Instance{Node: &catalog.Node{Name: node}, Service: &catalog.Service{ID: id, Name: name}}
		if got := s.Explains(in); got != want {
			t.Errorf("%s of %s on %s: %q, want %q", id, name, node, got, want)
		}
	}
	for _, id := range []string{"asked", "gave-up", "renamed"} {
		update(put("n1", id, "web"))
	}
	update(put("n2", "node", "web"))
	want("n1", "asked", "web", "")
	update(func(w *Writer) error { return w.DeleteService("n1", "asked") })
	update(func(w *Writer) error { return w.ExpireService("n1", "gave-up") })
	update(put("n1", "renamed", "other"))
	update(func(w *Writer) error { return w.DeleteNode("n2") })
	all := func() {
		t.Helper()
		want("n1", "asked", "web", "it was deregistered")
		want("n1", "asked", "db", "")
		want("n1", "gave-up", "web", "")
		want("n1", "renamed", "web", "its ID is registered for service other now")
		want("n2", "node", "web", "its node was deregistered")
		want("n3", "unheard-of", "web", "")
	}
	all()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	all()
	update(put("n1", "asked", "web"))
	update(func(w *Writer) error { return w.ExpireService("n1", "asked") })
	want("n1", "asked", "web", "")
}

// What is remembered is bounded: the oldest goes.
func TestDeparturesAreBounded(t *testing.T) {
	s, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	for from := 0; from < maxDepartures*2; from += 1000 {
		err := s.Update(func(w *Writer) error {
			if err := w.PutNode(catalog.Node{Name: "n1"}); err != nil {
				return err
			}
			for i := from; i < from+1000; i++ {
				id := fmt.Sprint("i", i)
				if err := w.PutService("n1", catalog.Service{ID: id, Name: "web", Port: 1}); err != nil {
					return err
				}
				if err := w.DeleteService("n1", id); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	n := len(s.reader().list(tableLeft, "id_prefix", []byte{}))
	in := func(i int) catalog.Instance {
		return catalog.Instance{Node: &catalog.Node{Name: "n1"}, Service: &catalog.Service{ID: fmt.Sprint("i", i), Name: "web"}}
	}
	if n < maxDepartures || n > maxDepartures*3/2 || s.Explains(in(0)) != "" || s.Explains(in(maxDepartures*2-1)) == "" {
		t.Errorf("%d remembered; of the first %q, of the last %q", n, s.Explains(in(0)), s.Explains(in(maxDepartures*2-1)))
	}
}
