package store

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

var webKey = config.Key{Kind: config.KindServiceDefaults, Name: "web"}

func webEntry(protocol string) config.Entry {
	return &config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "web", Protocol: protocol}
}

// told is a history in one line per version, the newest first.
func told(s *Store, k config.Key) (out []string) {
	for _, v := range s.reader().History(k) {
		protocol := "-"
		if v.Entry != nil {
			e, err := config.DecodeEntryJSON(v.Entry)
			if err != nil {
				return append(out, err.Error())
			}
			protocol = e.(*config.ServiceDefaults).Protocol
		}
		at := "-"
		if !v.Time.IsZero() {
			at = v.Time.Format("15:04")
		}
		out = append(out, fmt.Sprintf("%s %q %s %d %s", at, v.Who, v.What, v.To, protocol))
	}
	return out
}

func TestHistorySaysWhoDidWhatAndWhen(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.FixedZone("", 3600))
	by := func(who string, minute int) Author {
		return Author{Who: who, Time: noon.Add(time.Duration(minute) * time.Minute)}
	}
	put := func(protocol string, a Author) {
		t.Helper()
		write(t, s, func(w *Writer) error { return w.PutEntry(webEntry(protocol), a) })
	}
	put("http", by("ann", 1))
	first := s.reader().Latest(webKey).Index
	put("http", by("bob", 2)) // changes nothing, and is nobody's
	put("grpc", by("bob", 3))
	if err := s.Update(func(w *Writer) error {
		if err := w.PutEntry(webEntry("tcp"), by("eve", 4)); err != nil {
			return err
		}
		return fmt.Errorf("no")
	}); err == nil {
		t.Error("an update that fails is taken")
	}
	write(t, s, func(w *Writer) error { return w.DeleteEntry(webKey, by("ann", 5)) })
	write(t, s, func(w *Writer) error { return w.DeleteEntry(webKey, by("ann", 6)) })
	put("http", Author{Who: "ann", Time: noon.Add(7 * time.Minute), Back: true, To: first})

	want := []string{
		fmt.Sprintf(`11:07 "ann" rolled back %d http`, first),
		`11:05 "ann" deleted 0 -`,
		`11:03 "bob" changed 0 grpc`,
		`11:01 "ann" created 0 http`,
	}
	if diff := cmp.Diff(want, told(s, webKey)); diff != "" {
		t.Error(diff)
	}
	s.Close()
	if s, err = Open(Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if diff := cmp.Diff(want, told(s, webKey)); diff != "" {
		t.Errorf("after a restart: %s", diff)
	}
	if got := s.reader().History(config.Key{Kind: config.KindServiceDefaults, Name: "we"}); got != nil {
		t.Errorf("history of an entry that never was: %d versions", len(got))
	}
}

// An entry from before there was a history is its first version.
func TestHistoryBeginsWithWhatWasThere(t *testing.T) {
	s, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	write(t, s, func(w *Writer) error {
		if err := w.PutEntry(webEntry("http"), Author{}); err != nil {
			return err
		}
		return w.remove(tableHistory, w.Latest(webKey))
	})
	write(t, s, func(w *Writer) error { return w.PutEntry(webEntry("grpc"), Author{Who: "ann"}) })
	if diff := cmp.Diff([]string{`- "ann" changed 0 grpc`, `- "" created 0 http`}, told(s, webKey)); diff != "" {
		t.Error(diff)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	s, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	write(t, s, func(w *Writer) error {
		for i := range maxVersions + 20 {
			w.next++
			if err := w.PutEntry(webEntry([]string{"http", "grpc"}[i%2]), Author{Who: fmt.Sprint(i)}); err != nil {
				return err
			}
		}
		return nil
	})
	got := told(s, webKey)
	if len(got) != maxVersions || !strings.Contains(got[0], `"119"`) || s.versions != maxVersions {
		t.Errorf("%d versions (counted %d), the newest %s", len(got), s.versions, got[0])
	}

	large := func(i int) config.Entry {
		e := &config.ServiceIntentions{Kind: config.KindServiceIntentions, Name: "web"}
		for n := range 2000 {
			e.Sources = append(e.Sources, &config.SourceIntention{Name: fmt.Sprint("s", n), Action: config.Allow, Type: "consul", Description: strings.Repeat("x", 400) + fmt.Sprint(i)})
		}
		return e
	}
	for i := range 6 {
		write(t, s, func(w *Writer) error { return w.PutEntry(large(i), Author{}) })
	}
	size := 0
	past := s.reader().History(config.Key{Kind: config.KindServiceIntentions, Name: "web"})
	for _, v := range past {
		size += len(v.Entry)
	}
	if len(past) < 2 || size > maxVersionBytes {
		t.Errorf("%d versions of %d bytes", len(past), size)
	}

	// Of too much in all the oldest go, but for what says who wrote what there is.
	write(t, s, func(w *Writer) error {
		w.next++
		if err := w.PutEntry(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "kept"}, Author{Who: "ann"}); err != nil {
			return err
		}
		for i := range maxHistory {
			w.next++
			v := &Version{Kind: config.KindServiceDefaults, Name: fmt.Sprint("gone", i), Index: w.next, What: Deleted}
			if err := w.keep(v, nil); err != nil {
				return err
			}
		}
		return w.PutEntry(webEntry("tcp"), Author{Who: "last"})
	})
	if s.versions > maxHistory || len(s.reader().list(tableHistory, "id_prefix", []byte{})) != s.versions {
		t.Errorf("%d versions in all", s.versions)
	}
	if v := s.reader().Latest(config.Key{Kind: config.KindServiceDefaults, Name: "kept"}); v == nil || v.Who != "ann" {
		t.Error("who wrote an entry that exists is forgotten")
	}
}
