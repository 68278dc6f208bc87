package consulstore_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog/consul"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore/consultest"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// member opens a store that shares with the others of the same Consul.
func member(t testing.TB, url, dir string, locks ...string) *store.Store {
	t.Helper()
	s, err := tryMember(url, dir, locks...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func tryMember(url, dir string, locks ...string) (*store.Store, error) {
	c, err := consul.NewClient(consul.Options{Address: url})
	if err != nil {
		return nil, err
	}
	return store.Open(store.Options{Dir: dir, Shared: consulstore.New(consulstore.Options{Client: c, Address: url, Node: "test", Locks: locks})})
}

func defaults(name, protocol string) config.Entry {
	return &config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: name, Protocol: protocol}
}

func policy(name, header string) config.Entry {
	return &config.TrafficPolicy{Kind: config.KindTrafficPolicy, Name: name, Sticky: &config.Sticky{Header: header}}
}

func put(e config.Entry, who string) func(*store.Writer) error {
	return func(w *store.Writer) error { return w.PutEntry(e, store.Author{Who: who, Time: time.Now()}) }
}

func update(t testing.TB, s *store.Store, write func(*store.Writer) error) {
	t.Helper()
	if err := s.Update(write); err != nil {
		t.Fatal(err)
	}
}

// describe is all entries, who wrote them last, keys and states, with their indexes.
func describe(s *store.Store) (out []string) {
	s.Read(context.Background(), 0, func(r *store.Reader) {
		out = nil
		for _, e := range r.Entries("") {
			body, err := config.EncodeEntry(e.Entry)
			if err != nil {
				panic(err)
			}
			line := fmt.Sprintf("%d-%d %s", e.CreateIndex, e.ModifyIndex, body)
			for _, v := range r.History(config.KeyOf(e.Entry)) {
				line += fmt.Sprintf(" [%d %s %s]", v.Index, v.Who, v.What)
			}
			out = append(out, line)
		}
		for _, pair := range r.KVs("") {
			out = append(out, fmt.Sprintf("%s=%s %d", pair.Key, pair.Value, pair.ModifyIndex))
		}
		for name, value := range r.States("") {
			out = append(out, name+"="+string(value))
		}
	})
	slices.Sort(out)
	return out
}

// eventually waits for a condition that is to hold soon.
func eventually(t testing.TB, what string, ok func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); <-time.After(10 * time.Millisecond) {
		if err = ok(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

func agree(t testing.TB, stores ...*store.Store) []string {
	t.Helper()
	eventually(t, "all servers have the same", func() error {
		want := strings.Join(describe(stores[0]), "\n")
		for _, s := range stores[1:] {
			if got := strings.Join(describe(s), "\n"); got != want {
				return fmt.Errorf("one has\n%s\nanother\n%s", want, got)
			}
		}
		return nil
	})
	return describe(stores[0])
}

func TestServersShare(t *testing.T) { testServersShare(t, consultest.NewFake(t).URL) }

func testServersShare(t *testing.T, url string) {
	dir := t.TempDir()
	a, b := member(t, url, filepath.Join(dir, "a")), member(t, url, filepath.Join(dir, "b"))
	update(t, a, put(defaults("web", "http"), "ann"))
	update(t, b, put(policy("web", "user"), "bob"))
	update(t, b, put(defaults("web", "grpc"), "bob"))
	update(t, a, func(w *store.Writer) error { return w.PutState("x", []byte("1")) })
	got := agree(t, a, b)
	c := member(t, url, filepath.Join(dir, "c"))
	agree(t, a, b, c)
	if text := strings.Join(got, "\n"); !strings.Contains(text, "bob changed] [") || !strings.Contains(text, "ann created]") || !strings.Contains(text, "x=1") {
		t.Errorf("they have\n%s", text)
	}
	update(t, c, func(w *store.Writer) error {
		return w.DeleteEntry(config.Key{Kind: config.KindServiceDefaults, Name: "web"}, store.Author{Who: "cid"})
	})
	if text := strings.Join(agree(t, a, b, c), "\n"); strings.Contains(text, "service-defaults") {
		t.Errorf("after the deletion they have\n%s", text)
	}
}

func readAll(r *http.Request) string {
	text, err := io.ReadAll(r.Body)
	if err != nil {
		panic(err)
	}
	return string(text)
}

func readCloser(text string) io.ReadCloser { return io.NopCloser(strings.NewReader(text)) }

func TestDocsHaveTheRules(t *testing.T) {
	text, err := os.ReadFile("../../../docs/consul.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(text), "```hcl\n")
	block, _, _ = strings.Cut(block, "```")
	var want []string
	for _, r := range consulstore.Rules() {
		want = append(want, r.Text)
	}
	got := strings.Split(strings.TrimSpace(block), "\n")
	slices.Sort(got)
	slices.Sort(want)
	if want = slices.Compact(want); !slices.Equal(got, want) {
		t.Errorf("docs/consul.md has the rules\n%s\nneeded are\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
