package store_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

func defaults(name, protocol string) func(*store.Writer) error {
	return func(w *store.Writer) error {
		return w.PutEntry(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: name, Protocol: protocol}, store.Author{})
	}
}

// atMostOne is a judge that lets one entry exist.
func atMostOne(before, after *config.Set) error {
	if len(after.Keys()) > 1 {
		return fmt.Errorf("%d before, %d after", len(before.Keys()), len(after.Keys()))
	}
	return nil
}

// TestJudgeSeesWritesThatWaitTogether: of many writes, each of which is fine by itself,
// one is let through, whether they share a commit or not.
func TestJudgeSeesWritesThatWaitTogether(t *testing.T) {
	dir := t.TempDir()
	s, err := store.Open(store.Options{Dir: dir, Judge: atMostOne})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	refused := make(chan error, 50)
	for i := range cap(refused) {
		wg.Go(func() { refused <- s.Update(defaults(fmt.Sprint("s", i), "http")) })
	}
	wg.Wait()
	close(refused)
	written := 0
	for err := range refused {
		if err == nil {
			written++
		} else if _, ok := errors.AsType[*store.Refusal](err); !ok || err.Error() != "1 before, 2 after" {
			t.Errorf("refused with %v", err)
		}
	}
	entries := func() (list []*store.Entry) {
		s.Read(t.Context(), 0, func(r *store.Reader) { list = r.Entries("") })
		return list
	}
	left := entries()
	if written != 1 || len(left) != 1 {
		t.Fatalf("%d written, %d there", written, len(left))
	}

	// What the registry holds when it opens counts, and a write that was refused does not.
	s.Close()
	if s, err = store.Open(store.Options{Dir: dir, Judge: atMostOne}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := s.Update(defaults("more", "http")); err == nil {
		t.Error("a second entry after a restart")
	}
	k := config.KeyOf(left[0].Entry)
	update(t, s, func(w *store.Writer) error {
		if err := w.DeleteEntry(k, store.Author{}); err != nil {
			return err
		}
		return defaults("more", "http")(w)
	})
	if list := entries(); len(list) != 1 || list[0].EntryName() != "more" {
		t.Errorf("entries %v", list)
	}
}

// TestJudgeIsAskedForEntriesAlone: other writes cost nothing more.
func TestJudgeIsAskedForEntriesAlone(t *testing.T) {
	asked := 0
	s, err := store.Open(store.Options{NodeName: "self", NodeAddress: "127.0.0.1", Judge: func(_, _ *config.Set) error { asked++; return nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	update(t, s, service("self", "web", 80))
	update(t, s, kv("a", "b"))
	if asked != 0 {
		t.Errorf("asked %d times", asked)
	}
	update(t, s, defaults("web", "http"))
	update(t, s, defaults("web", "http")) // changes nothing
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}
