//go:build peers

package consulstore_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore/consultest"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

func TestServersShareARealConsul(t *testing.T) { testServersShare(t, consultest.NewReal(t, "").URL()) }

// What a real Consul makes of entries is what was written: nobody finds another version there.
func TestEntriesInARealConsul(t *testing.T) {
	url := consultest.NewReal(t, "").URL()
	a, b := member(t, url, ""), member(t, url, "")
	archive, err := txtar.ParseFile("../../config/testdata/entries.txtar")
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte) error {
		e, err := config.DecodeEntry(name, data)
		if err != nil {
			return nil // the wanted form of the one before
		}
		return a.Update(put(e, "ann"))
	}
	// What others refer to comes first: Consul looks at each entry by itself.
	for _, first := range []string{
		`{"Kind":"proxy-defaults","Name":"global","Config":{"protocol":"http"}}`,
		`{"Kind":"service-resolver","Name":"admin","Subsets":{"v2":{"Filter":"Service.Meta.version == v2"}}}`,
		`{"Kind":"service-resolver","Name":"catalog","Subsets":{"v1":{"Filter":"Service.Meta.version == v1"},"v2":{"Filter":"Service.Meta.version == v2"}}}`,
	} {
		if err := write("first.json", []byte(first)); err != nil {
			t.Fatal(err)
		}
	}
	var refused []string
	for range 2 {
		refused = nil
		for _, file := range archive.Files {
			err := write(file.Name, file.Data)
			if errors.As(err, new(*store.Refusal)) {
				refused = append(refused, fmt.Sprintf("%s: %v", file.Name, err))
			} else if err != nil {
				t.Errorf("%s: %v", file.Name, err)
			}
		}
	}
	t.Logf("Consul refuses, of %d:\n%s", len(archive.Files), strings.Join(refused, "\n"))
	if len(refused) > len(archive.Files)/4 {
		t.Errorf("Consul refuses %d of %d", len(refused), len(archive.Files))
	}
	got := agree(t, a, b)
	<-time.After(time.Second) // time enough to find anything
	if again := agree(t, a, b); strings.Join(again, "\n") != strings.Join(got, "\n") || strings.Contains(strings.Join(again, "\n"), " consul ") {
		t.Errorf("entries are not what was written:\n%s", strings.Join(again, "\n"))
	}
	fresh := member(t, url, "")
	agree(t, a, fresh)
}

// What one server writes the others have inside a second.
func TestPropagationInARealConsul(t *testing.T) {
	url := consultest.NewReal(t, "").URL()
	a, b, c := member(t, url, ""), member(t, url, ""), member(t, url, "")
	var writes, reads []time.Duration
	for n := range 100 {
		e := policy("web", fmt.Sprintf("h%d", n))
		if n%2 == 0 {
			e = defaults(fmt.Sprintf("s%d", n), "http")
		}
		k := config.KeyOf(e)
		began := time.Now()
		update(t, a, put(e, "ann"))
		writes = append(writes, time.Since(began))
		for _, other := range []*store.Store{b, c} {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			other.ReadUntil(ctx, func(r *store.Reader) bool {
				row := r.Entry(k)
				return row != nil && encoded(row.Entry) == encoded(e) || ctx.Err() != nil
			})
			if ctx.Err() != nil {
				t.Fatalf("write %d has not come", n)
			}
			cancel()
		}
		reads = append(reads, time.Since(began))
	}
	slices.Sort(writes)
	slices.Sort(reads)
	t.Logf("acknowledged after %s (median), %s (worst); on all after %s, %s", writes[50], writes[99], reads[50], reads[99])
	if reads[98] > time.Second {
		t.Errorf("on all after %s", reads[98])
	}
}

func encoded(e config.Entry) string {
	text, err := config.EncodeEntry(e)
	if err != nil {
		return err.Error()
	}
	return string(text)
}
