package config_test

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/config/configtest"
)

// The examples of the guide are definitions.
func TestGuide(t *testing.T) {
	text, err := os.ReadFile("../../docs/service-definitions.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(text), "```")
	if len(blocks) != 5 {
		t.Fatalf("%d examples, want 2", len(blocks)/2)
	}
	for i := 1; i < len(blocks); i += 2 {
		language, body, _ := strings.Cut(blocks[i], "\n")
		defs, err := config.DecodeDefinitions("example."+language, []byte(body))
		if err != nil {
			t.Error(err)
			continue
		}
		want := config.Sizing{CPU: 0.5, MemoryBytes: 128 * config.MiB, Concurrency: 1, MaxConnections: 10000}
		if len(defs) != 1 || defs[0].Sizing() != want || len(defs[0].Checks) != 1 {
			t.Errorf("%s: %+v", language, defs)
		}
	}
}

// The examples of the guide to ways are entries.
func TestWays(t *testing.T) {
	text, err := os.ReadFile("../../docs/ways.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(text), "```")
	if len(blocks) != 5 {
		t.Fatalf("%d examples, want 2", len(blocks)/2)
	}
	for i := 1; i < len(blocks); i += 2 {
		language, body, _ := strings.Cut(blocks[i], "\n")
		if e, err := config.DecodeEntry("example."+language, []byte(body)); err != nil || e.EntryKind() != config.KindTrafficShift {
			t.Errorf("%v, %v", e, err)
		}
	}
}

// The examples of the reference are entries, one of each kind, and its tables have
// every field.
func TestReference(t *testing.T) {
	data, err := os.ReadFile("../../docs/entries.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for _, operator := range config.Operators() {
		if !strings.Contains(text, "`"+operator+"`") {
			t.Errorf("operator %s is missing", operator)
		}
	}
	for _, kind := range config.Kinds() {
		_, section, ok := strings.Cut(text, "\n## "+string(kind)+"\n")
		section, _, _ = strings.Cut(section, "\n## ")
		parts := strings.Split(section, "```")
		if !ok || len(parts) != 3 {
			t.Errorf("%s: want a section with one example", kind)
			continue
		}
		language, body, _ := strings.Cut(parts[1], "\n")
		e, err := config.DecodeEntry("example."+language, []byte(body))
		if err != nil {
			t.Error(err)
			continue
		}
		if e.EntryKind() != kind {
			t.Errorf("%s: the example is a %s", kind, e.EntryKind())
		}
		for _, field := range configtest.Fields(reflect.TypeOf(e)) {
			_, name, _ := strings.Cut(field, ".")
			inModifiers := strings.HasPrefix(field, "HeaderModifiers.")
			named := regexp.MustCompile("[`.]" + name + "[`.]").MatchString(section)
			if name != "Kind" && !inModifiers && !named {
				t.Errorf("%s: %s is in no table", kind, field)
			}
		}
	}
}
