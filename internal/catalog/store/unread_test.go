package store

import (
	"bytes"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Entries of another version, or none at all, must not keep a server from starting.
func TestEntriesThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	reopen := func() (*Store, string) {
		t.Helper()
		var log bytes.Buffer
		s, err := Open(Options{Dir: dir, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		return s, log.String()
	}
	s, _ := reopen()
	write(t, s, func(w *Writer) error {
		e, err := config.DecodeEntryJSON([]byte(`{"Kind":"service-defaults","Name":"good","Protocol":"http"}`))
		if err != nil {
			return err
		}
		return w.PutEntry(e, Author{})
	})
	s.Close()

	bad := map[string]string{
		"service-defaults\x00other\x00": `{"Entry":{"Kind":"service-defaults","Name":"other","FieldOfTheFuture":1},"CreateIndex":1,"ModifyIndex":1}`,
		"kind-of-the-future\x00x\x00":   `{"Entry":{"Kind":"kind-of-the-future","Name":"x"},"CreateIndex":1,"ModifyIndex":1}`,
		"service-defaults\x00torn\x00":  `{"Entry":{"Kind":`,
		"service-defaults\x00null\x00":  `null`,
		"\xff":                          `[]`,
	}
	db, err := bbolt.Open(filepath.Join(dir, "registry.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for k, v := range bad {
			if err := tx.Bucket([]byte(tableEntries)).Put([]byte(k), []byte(v)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	db.Close()

	s, log := reopen()
	if got := s.reader().Entries(""); len(got) != 1 || got[0].EntryName() != "good" || strings.Count(log, "cannot be read") != len(bad) {
		t.Errorf("%d entries, want the good one, and %d reports:\n%s", len(got), len(bad), log)
	}
	write(t, s, func(w *Writer) error {
		return w.DeleteEntry(config.Key{Kind: "kind-of-the-future", Name: "x"}, Author{})
	})
	s.Close()
	s, log = reopen()
	defer s.Close()
	if strings.Count(log, "cannot be read") != len(bad)-1 {
		t.Errorf("one is deleted, want %d reports:\n%s", len(bad)-1, log)
	}
}
