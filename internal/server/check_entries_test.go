package server

import (
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Entries that a server found on its disk may not fit together, though none such is taken.
func TestCheckFindsEntriesThatDoNotFit(t *testing.T) {
	var entries []config.Entry
	for _, text := range []string{
		`{"Kind":"service-intentions","Name":"web","JWT":{"Providers":[{"Name":"okta"}]},"Sources":[{"Name":"a","Action":"allow"}]}`,
		`{"Kind":"service-resolver","Name":"api","Redirect":{"Service":"db"}}`,
		`{"Kind":"service-resolver","Name":"db","Redirect":{"Service":"api"}}`,
	} {
		e, err := config.DecodeEntryJSON([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	m := newMesh("dc1", "test.consul", true, nil, slog.New(slog.DiscardHandler))
	m.setCatalog(catalog.NewSnapshot("dc1", 1, nil))
	m.setEntries(config.NewSet(entries...), 1)
	found := findings{}
	if _, err := m.check(t.Context(), found); err != nil {
		t.Fatal(err)
	}
	var subjects []string
	for _, f := range found.sorted() {
		if f.Problem == "" {
			t.Errorf("%+v: no reason", f)
		}
		subjects = append(subjects, f.Subject+" of "+f.Service)
	}
	want := []string{"chain of api of api", "chain of db of db", "service-intentions/web of "}
	if diff := cmp.Diff(want, subjects); diff != "" {
		t.Errorf("%s\nall: %+v", diff, found.sorted())
	}
}
