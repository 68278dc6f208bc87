package config

import (
	"os"
	"strings"
	"testing"
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
		defs, err := DecodeDefinitions("example."+language, []byte(body))
		if err != nil {
			t.Error(err)
			continue
		}
		want := Sizing{CPU: 0.5, MemoryBytes: 128 * MiB, Concurrency: 1, MaxConnections: 10000}
		if len(defs) != 1 || defs[0].Sizing() != want || len(defs[0].Checks) != 1 {
			t.Errorf("%s: %+v", language, defs)
		}
	}
}
