package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// seed adds every file of the test archives.
func seed(f *testing.F, archives ...string) {
	f.Helper()
	for _, name := range archives {
		a, err := txtar.ParseFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range a.Files {
			f.Add(file.Name, file.Data)
		}
	}
}

// clearLines fails unless err is short lines of printable text.
func clearLines(t *testing.T, err error) {
	t.Helper()
	lines := strings.Split(err.Error(), "\n")
	if len(lines) > maxReported+1 {
		t.Errorf("%d lines", len(lines))
	}
	for _, line := range lines {
		if strings.TrimSpace(line) == "" || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' }) || len(line) > 1000 {
			t.Errorf("unclear line %q", line)
		}
	}
}

func FuzzDecodeEntry(f *testing.F) {
	seed(f, "testdata/entries.txtar", "testdata/entries_refused.txtar")
	f.Fuzz(func(t *testing.T, _ string, data []byte) {
		for _, name := range []string{"f.hcl", "f.json", "f.yaml", "-"} {
			e, err := DecodeEntry(name, data)
			if err != nil {
				clearLines(t, err)
				continue
			}
			if err := e.Validate(); err != nil {
				t.Errorf("decoded but not valid: %v", err)
			}
			body, err := EncodeEntry(e)
			if err != nil {
				t.Fatal(err)
			}
			again, err := DecodeEntryJSON(body)
			if err != nil {
				t.Fatalf("%s: %v", body, err)
			}
			if diff := cmp.Diff(e, again); diff != "" {
				t.Errorf("%s\n(-decoded +again)\n%s", body, diff)
			}
		}
	})
}

func FuzzDecodeDefinitions(f *testing.F) {
	seed(f, "testdata/definitions.txtar", "testdata/definitions_refused.txtar")
	f.Fuzz(func(t *testing.T, _ string, data []byte) {
		for _, name := range []string{"f.hcl", "f.json", "f.yaml", "-"} {
			defs, err := DecodeDefinitions(name, data)
			if err != nil {
				clearLines(t, err)
				continue
			}
			for _, d := range defs {
				sameAgain(t, d)
			}
		}
	})
}

func FuzzDecodeRegistration(f *testing.F) {
	a, err := txtar.ParseFile("testdata/definitions.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range a.Files {
		for line := range strings.Lines(string(file.Data)) {
			f.Add([]byte(line))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := DecodeRegistration(data)
		if err != nil {
			clearLines(t, err)
			return
		}
		sameAgain(t, d)
	})
}

// sameAgain fails unless d survives a registration.
func sameAgain(t *testing.T, d Definition) {
	t.Helper()
	body := marshal(t, d)
	again, err := DecodeRegistration(body)
	if err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	d.Protocol = ""
	if diff := cmp.Diff(d, again); diff != "" {
		t.Errorf("%s\n(-decoded +again)\n%s", body, diff)
	}
}

func FuzzCompileFilter(f *testing.F) {
	for _, text := range []string{
		`Service.Meta.version == 2 and Service.Meta["a-b"] == c`, `not (canary in Service.Tags or Checks.Status != passing)`,
		"Node.Node matches `^n[0-9]+$`", `Service.TaggedAddresses.lan.Port is empty`, `((Service.Port == 1))`, `"a" not in Node.Meta`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		filter, err := CompileFilter(text)
		if err != nil {
			clearLines(t, err)
			return
		}
		if first, second := filter.Match(filtered()), filter.Match(filtered()); first != second {
			t.Error("matches by chance")
		}
		filter.Match(catalog.Instance{Node: &catalog.Node{}, Service: &catalog.Service{}})
	})
}
