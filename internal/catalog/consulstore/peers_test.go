//go:build peers

package consulstore_test

import (
	"errors"
	"fmt"
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
