package server

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// folder is a configuration directory under test.
type folder struct {
	*configDir
	t     *testing.T
	log   *bytes.Buffer
	times int
}

func newFolder(t *testing.T, prune bool) *folder {
	t.Helper()
	s, err := store.Open(store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	f := &folder{t: t, log: &bytes.Buffer{}}
	f.configDir = newConfigDir(t.TempDir(), prune, s, slog.New(slog.NewTextHandler(f.log, nil)))
	return f
}

// again is the folder as a server sees it that starts anew.
func (f *folder) again() {
	f.configDir = newConfigDir(f.path, f.prune, f.store, slog.New(slog.NewTextHandler(f.log, nil)))
}

// file writes a file, or removes it when text is empty.
func (f *folder) file(name, text string) {
	f.t.Helper()
	path := filepath.Join(f.path, name)
	if text == "" {
		if err := os.Remove(path); err != nil {
			f.t.Fatal(err)
		}
		return
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	f.times++
	at := time.Unix(int64(1000+f.times), 0)
	if err := os.Chtimes(path, at, at); err != nil {
		f.t.Fatal(err)
	}
}

func (f *folder) byHand(name, protocol string) {
	f.t.Helper()
	if err := f.store.Update(func(w *store.Writer) error {
		return w.PutEntry(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: name, Protocol: protocol}, store.Author{Who: "ann"})
	}); err != nil {
		f.t.Fatal(err)
	}
}

// is looks at the folder and compares the store: "name protocol who" of each entry.
func (f *folder) is(what string, want ...string) {
	f.t.Helper()
	if err := f.look(time.Unix(5000, 0)); err != nil {
		f.t.Errorf("%s: %v", what, err)
	}
	var got []string
	f.store.Read(f.t.Context(), 0, func(r *store.Reader) {
		got = nil
		for _, e := range r.Entries("") {
			d := e.Entry.(*config.ServiceDefaults)
			got = append(got, fmt.Sprintf("%s %s %s", d.Name, d.Protocol, r.Latest(config.KeyOf(e)).Who))
		}
	})
	if diff := cmp.Diff(want, got); diff != "" {
		f.t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// says is what was logged since it was asked last.
func (f *folder) says(want ...string) {
	f.t.Helper()
	for _, w := range want {
		if !strings.Contains(f.log.String(), w) {
			f.t.Errorf("log has no %q:\n%s", w, f.log)
		}
	}
	if len(want) == 0 && f.log.Len() > 0 {
		f.t.Errorf("logged: %s", f.log)
	}
	f.log.Reset()
}

func yaml(name, protocol string) string {
	return "Kind: service-defaults\nName: " + name + "\nProtocol: " + protocol + "\n"
}

func TestConfigDir(t *testing.T) {
	f := newFolder(t, false)
	f.file("web.yaml", yaml("web", "http"))
	f.file("api.hcl", "Kind = \"service-defaults\"\nName = \"api\"\nProtocol = \"grpc\"\n")
	f.file("db.json", `{"Kind":"service-defaults","Name":"db","Protocol":"tcp"}`)
	f.file("notes.txt", "no entry")
	f.file(".hidden.yaml", "no entry")
	f.is("at the start", "api grpc config-dir api.hcl", "db tcp config-dir db.json", "web http config-dir web.yaml")
	f.says("entry=service-defaults/api")
	before := f.store.Read(t.Context(), 0, func(r *store.Reader) { r.Entries("") })
	f.is("unchanged", "api grpc config-dir api.hcl", "db tcp config-dir db.json", "web http config-dir web.yaml")
	if after := f.store.Read(t.Context(), 0, func(r *store.Reader) { r.Entries("") }); after != before {
		t.Errorf("looking again wrote something")
	}
	f.says()

	// What is wrong harms itself alone, is said once, and keeps what was right.
	f.file("web.yaml", "Kind: service-defaults\nName: web\nProtocol: smtp\n")
	f.file("api.hcl", "Kind = \"service-defaults\"\nName = \"api\"\nProtocol = \"http\"\n")
	f.is("one wrong", "api http config-dir api.hcl", "db tcp config-dir db.json", "web http config-dir web.yaml")
	f.says(filepath.Join(f.path, "web.yaml") + ":3: ")
	f.is("one wrong, again", "api http config-dir api.hcl", "db tcp config-dir db.json", "web http config-dir web.yaml")
	f.says()
	if p := f.problems(); len(p) != 1 || !strings.Contains(p[0], "web.yaml:3: ") {
		t.Errorf("problems %q", p)
	}
	f.file("web.yaml", yaml("web", "http2"))
	f.file("db.json", "")
	f.byHand("api", "tcp")
	f.is("right again; gone without pruning; written by hand", "api tcp ann", "db tcp config-dir db.json", "web http2 config-dir web.yaml")
	if p := f.problems(); p != nil {
		t.Errorf("problems %q", p)
	}
	f.again()
	f.is("after a restart the files count", "api http config-dir api.hcl", "db tcp config-dir db.json", "web http2 config-dir web.yaml")
	f.says("entry=service-defaults/api")
}

func TestConfigDirPrunes(t *testing.T) {
	f := newFolder(t, true)
	f.byHand("hand", "http")
	f.byHand("same", "http")
	f.file("same.yaml", yaml("same", "http"))
	f.file("web.yaml", yaml("web", "http"))
	f.file("api.yaml", yaml("api", "http"))
	f.is("at the start", "api http config-dir api.yaml", "hand http ann", "same http ann", "web http config-dir web.yaml")
	f.file("web.yaml", "")
	f.file("same.yaml", "")
	f.is("files gone", "api http config-dir api.yaml", "hand http ann", "same http ann")
	f.says("entry deleted", "entry=service-defaults/web")

	f.file("api.yaml", yaml("other", "http"))
	f.is("another entry in a file", "hand http ann", "other http config-dir api.yaml", "same http ann")
	f.file("moved.yaml", yaml("other", "http"))
	f.file("api.yaml", "")
	f.is("moved to another file", "hand http ann", "other http config-dir api.yaml", "same http ann")
	f.file("moved.yaml", yaml("other", "smtp"))
	f.is("wrong", "hand http ann", "other http config-dir api.yaml", "same http ann")
	f.file("moved.yaml", yaml("other", "grpc"))
	f.is("right", "hand http ann", "other grpc config-dir moved.yaml", "same http ann")

	// Wrong from the start on: it may be the entry's.
	f.file("moved.yaml", "{")
	f.again()
	f.is("wrong at the start", "hand http ann", "other grpc config-dir moved.yaml", "same http ann")
	f.file("moved.yaml", "")
	f.is("gone", "hand http ann", "same http ann")

	// A folder that cannot be read loses nothing.
	f.file("web.yaml", yaml("web", "http"))
	f.is("there", "hand http ann", "same http ann", "web http config-dir web.yaml")
	away := f.path + "-away"
	if err := os.Rename(f.path, away); err != nil {
		t.Fatal(err)
	}
	if err := f.look(time.Unix(5000, 0)); err == nil || !strings.HasPrefix(err.Error(), `config directory "`+f.path+`": no such file`) {
		t.Errorf("look at no folder: %v", err)
	}
	if err := os.Rename(away, f.path); err != nil {
		t.Fatal(err)
	}
	f.is("there again", "hand http ann", "same http ann", "web http config-dir web.yaml")
}

func TestConfigDirWithTwoOfOneKind(t *testing.T) {
	f := newFolder(t, true)
	f.file("a.yaml", yaml("web", "http"))
	f.file("b.yaml", yaml("web", "grpc"))
	f.is("the first by name counts", "web http config-dir a.yaml")
	f.says(`b.yaml: service-defaults \"web\": is given already by a.yaml`)
	f.is("said once", "web http config-dir a.yaml")
	f.says()
	f.file("a.yaml", "")
	f.is("then the other", "web grpc config-dir b.yaml")
	if p := f.problems(); p != nil {
		t.Errorf("problems %q", p)
	}
}

const (
	canary = "Kind: service-splitter\nName: web\nSplits: [{Weight: 90}, {Weight: 10, ServiceSubset: v2}]\n"
	subset = "Kind: service-resolver\nName: web\nSubsets: {v2: {Filter: Service.Meta.v == 2}}\n"
)

// TestConfigDirWithWhatDoesNotFit: an entry that does not fit the others waits until it
// does, and keeps no other from being taken; what others need is not pruned.
func TestConfigDirWithWhatDoesNotFit(t *testing.T) {
	s, err := store.Open(store.Options{Judge: func(before, after *config.Set) error { return judge(before, after, "dc1") }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	f := &folder{t: t, log: &bytes.Buffer{}}
	f.configDir = newConfigDir(t.TempDir(), true, s, slog.New(slog.NewTextHandler(f.log, nil)))
	is := func(what, problem string, want ...string) {
		t.Helper()
		for range 2 { // the second time nothing is news
			if err := f.look(time.Unix(5000, 0)); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		var got []string
		s.Read(t.Context(), 0, func(r *store.Reader) {
			got = nil
			for _, e := range r.Entries("") {
				got = append(got, config.KeyOf(e).String())
			}
		})
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
		if p := strings.Join(f.problems(), "\n"); (problem == "") != (p == "") || !strings.Contains(p, problem) {
			t.Errorf("%s: problems %q, want %q", what, p, problem)
		}
		if n := strings.Count(f.log.String(), "level=ERROR"); n != min(1, len(problem)) {
			t.Errorf("%s: %d errors logged:\n%s", what, n, f.log)
		}
		f.log.Reset()
	}
	f.file("a.yaml", yaml("web", "http"))
	f.file("b.yaml", canary)
	f.file("c.yaml", yaml("db", "tcp"))
	is("a subset is missing", `service "web" has no subset "v2"`, "service-defaults/db", "service-defaults/web")
	f.file("z.yaml", subset)
	is("it is there", "", "service-defaults/db", "service-defaults/web", "service-resolver/web", "service-splitter/web")
	f.file("z.yaml", "")
	is("its file is gone", "entries whose files are gone are not deleted: service \"web\"", "service-defaults/db", "service-defaults/web", "service-resolver/web", "service-splitter/web")
	f.file("b.yaml", "")
	is("nobody needs it any more", "", "service-defaults/db", "service-defaults/web")
	f.file("b.yaml", canary)
	f.file("z.yaml", subset)
	is("both at once, the needed one last", "", "service-defaults/db", "service-defaults/web", "service-resolver/web", "service-splitter/web")
	f.file("z.yaml", strings.ReplaceAll(subset, "v2", "v3"))
	f.file("c.yaml", "")
	is("another subset, and something to prune", "service-resolver/web: service \"web\": ", "service-defaults/web", "service-resolver/web", "service-splitter/web")
}

// Shares that a folder has given once are not given again, over those that people, shifts or a
// revert have set since: not by a server that starts, and not by a file that says the same.
func TestConfigDirBringsBackNoOlderShares(t *testing.T) {
	f := newFolder(t, false)
	shift := func(rest, shares string) string {
		return "Kind: traffic-shift\nSource: web\nDestination: catalog\n" + rest + "Shares: {" + shares + "}\n"
	}
	is := func(what string, want config.Shares, generation uint64, dwell config.Duration) {
		t.Helper()
		if err := f.look(time.Unix(5000, 0)); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		f.store.Read(t.Context(), 0, func(r *store.Reader) {
			e, _ := r.Entry(config.Key{Kind: config.KindTrafficShift, Name: "web~catalog"}).Entry.(*config.TrafficShift)
			if e == nil || e.Shares != want || e.Generation != generation || e.Dwell != dwell {
				t.Errorf("%s: %+v, want %+v, generation %d, dwell %v", what, e, want, generation, dwell)
			}
		})
	}
	set := func(shares config.Shares, by store.Author) {
		t.Helper()
		if err := f.store.Update(func(w *store.Writer) error {
			e := *w.Entry(config.Key{Kind: config.KindTrafficShift, Name: "web~catalog"}).Entry.(*config.TrafficShift)
			e.Shares = shares
			return w.PutEntry(&e, by)
		}); err != nil {
			t.Fatal(err)
		}
	}
	half, back, minute := config.Shares{Direct: 50, MTLS: 50}, config.Shares{Direct: 100}, config.Duration(time.Minute)
	f.file("web.yaml", shift("", "Direct: 50, MTLS: 50"))
	is("at first", half, 0, 0)
	set(back, store.Author{Who: "ann", Reverted: true})
	is("reverted", back, 1, 0)
	f.again()
	is("a server that starts", back, 1, 0)
	f.says("older than those in force, which stay")
	f.file("web.yaml", shift("", "Direct: 50, MTLS: 50"))
	is("the file, as it was", back, 1, 0)
	f.file("web.yaml", shift("Dwell: 1m\n", "Direct: 50, MTLS: 50"))
	f.again()
	is("all but the shares counts", back, 1, minute)
	f.file("web.yaml", shift("Dwell: 1m\n", "Direct: 60, MTLS: 40"))
	f.again()
	is("other shares count", config.Shares{Direct: 60, MTLS: 40}, 2, minute)
	set(back, store.Author{Who: "shift guard", Reverted: true})
	f.file("web.yaml", shift("Dwell: 1m\n", "Direct: 50, MTLS: 50"))
	is("and those of long ago, given anew", half, 4, minute)
	set(back, store.Author{Who: "shift guard", Reverted: true})
	f.file("web.yaml", shift("Dwell: 1m\nGeneration: 9\n", "Direct: 50, MTLS: 50"))
	is("a higher generation counts", half, 9, minute)
}
