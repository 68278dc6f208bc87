package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

func TestRefused(t *testing.T) {
	for archive, decode := range map[string]func(string, []byte) error{
		"testdata/entries_refused.txtar":     func(name string, data []byte) error { _, err := DecodeEntry(name, data); return err },
		"testdata/definitions_refused.txtar": func(name string, data []byte) error { _, err := DecodeDefinitions(name, data); return err },
	} {
		a, err := txtar.ParseFile(archive)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(a.Files); i += 2 {
			in, want := a.Files[i], a.Files[i+1]
			t.Run(in.Name, func(t *testing.T) {
				err := decode(in.Name, in.Data)
				if err == nil {
					t.Fatal("accepted")
				}
				if diff := cmp.Diff(strings.Split(strings.TrimSpace(string(want.Data)), "\n"), strings.Split(err.Error(), "\n")); diff != "" {
					t.Errorf("errors (-want +got):\n%s", diff)
				}
			})
		}
	}
}

func TestLimits(t *testing.T) {
	for name, c := range map[string]struct{ file, data, want string }{
		"size":       {"a.json", `{"Kind":"` + strings.Repeat("x", maxBytes) + `"}`, "more than the limit of 1048576"},
		"json depth": {"a.json", strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40), "nested more than 32 deep"},
		"list depth": {"a.json", `{"a":` + strings.Repeat("[", 200000) + strings.Repeat("]", 200000) + "}", "exceeded max depth"},
		"hcl depth":  {"a.hcl", strings.Repeat("a {", 40) + strings.Repeat("}", 40), "nested more than 32 deep"},
		"hcl list":   {"a.hcl", "a = " + strings.Repeat("[", 200000), "nested more than 32 deep"},
		"hcl labels": {"a.hcl", "a " + strings.Repeat(`"b" `, 40) + "{}", "want = or {"},
		"hcl merge":  {"a.hcl", strings.Repeat("a \"b\" {}\n", 3) + labelled(maxLabels+1), "a.hcl:1003: a: more than 1000 block labels"},
		"yaml depth": {"a.yaml", "a: " + strings.Repeat("[", 40) + strings.Repeat("]", 40), "nested more than 32 deep"},
		"many":       {"a.json", `{"Kind":"mesh"` + strings.Repeat(`,"a":1`, 1000) + "}", "980 more problems"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := DecodeEntry(c.file, []byte(c.data)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %.200v, want one with %q", err, c.want)
			}
		})
	}
	var many strings.Builder
	many.WriteString("service: a\nport: 1\nupstreams:\n")
	for i := range maxUpstreams + 1 {
		fmt.Fprintf(&many, "  - a:%d\n", i+2)
	}
	const want = `a.yaml:4: service "a": upstreams: 1001 upstreams are more than the limit of 1000`
	if _, err := DecodeDefinitions("a.yaml", []byte(many.String())); err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	meta := &Mesh{Meta: map[string]string{strings.Repeat("k", maxMetaKey+1): "", "v": strings.Repeat("v", maxMetaValue+1)}}
	r := &report{}
	meta.check(r)
	if len(r.list) != 2 {
		t.Errorf("%d problems with Meta, want 2", len(r.list))
	}
}

func labelled(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "a \"%d\" {}\n", i)
	}
	return b.String()
}
