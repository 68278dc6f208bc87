package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
)

// A few clients of each kind come to their end, and are counted.
func TestClients(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "crossfade")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "../../cmd/crossfade").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s, err := lab.Settings(func(name string) string {
		return map[string]string{"STREAMS": "40", "DURATION": "1", "CROSSFADE": binary}[name]
	}, settingsFrom)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var out, progress bytes.Buffer
	if err := run(ctx, s, &out, &progress); err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	got := json.NewDecoder(&out)
	for _, name := range []string{"foreign", "requests", "reports"} {
		var l line
		if err := got.Decode(&l); err != nil {
			t.Fatal(err)
		}
		if l.Scenario != name || l.RSS < 1 || l.CPU <= 0 || name == "foreign" && (l.P99 <= 0 || l.Last < l.P99) || name != "foreign" && (l.Messages < 4 || l.Cores <= 0) {
			t.Errorf("%+v", l)
		}
	}
}
