package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/demo"
)

// build makes the real binary, once per test that needs it.
func build(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "crossfade")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "../cmd/crossfade")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

// verdict is what the tests read of the demo's JSON.
type verdict struct {
	Held    bool    `json:"held"`
	Seconds float64 `json:"seconds"`
	Pairs   []struct {
		From, To string
		Requests int `json:"requests"`
		Failed   int `json:"failed"`
	} `json:"pairs"`
	Proofs []struct {
		Name string `json:"name"`
		Held bool   `json:"held"`
	} `json:"proofs"`
}

// runDemo runs the demo as a user does and returns its verdict, exit code and progress.
func runDemo(t *testing.T, bin string, args ...string) (verdict, int, string) {
	t.Helper()
	var out, progress bytes.Buffer
	cmd := exec.CommandContext(t.Context(), bin, append([]string{"demo", "--json"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	cmd.Stdout, cmd.Stderr = &out, &progress
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var v verdict
	if err := json.Unmarshal(out.Bytes(), &v); err != nil {
		t.Fatalf("demo printed no JSON: %v\n%s\n%s", err, out.Bytes(), progress.Bytes())
	}
	return v, cmd.ProcessState.ExitCode(), progress.String()
}

func TestDemo(t *testing.T) {
	v, code, progress := runDemo(t, build(t))
	if code != 0 || !v.Held {
		t.Fatalf("exit code %d, held %v\n%s", code, v.Held, progress)
	}
	if v.Seconds > 240 { // 75 on a quick machine, 110 on one half as fast
		t.Errorf("took %.0f s, want at most 240", v.Seconds)
	}
	if len(v.Proofs) != 15 {
		t.Errorf("%d proofs, want 15", len(v.Proofs))
	}
	for _, p := range v.Pairs {
		if p.Failed > 0 || p.Requests < 100 {
			t.Errorf("%s → %s: %d requests, %d failed", p.From, p.To, p.Requests, p.Failed)
		}
	}
}

// The negative controls: what the demo proves can fail. A sabotage spoils its own proof alone.
func TestDemoCatchesSabotage(t *testing.T) {
	bin := build(t)
	var all []string
	for _, sabotages := range []string{"share,guard,revert", "strict", "spread,drain,rotate,lastgood"} {
		names := strings.Split(sabotages, ",")
		all = append(all, names...)
		t.Run(sabotages, func(t *testing.T) {
			v, code, progress := runDemo(t, bin, "--sabotage", sabotages)
			if code != 1 || v.Held {
				t.Fatalf("exit code %d, held %v; want it caught\n%s", code, v.Held, progress)
			}
			failed := 0
			for _, p := range v.Proofs {
				if p.Held == slices.Contains(names, p.Name) {
					t.Errorf("proof %q: held %v\n%s", p.Name, p.Held, progress)
				}
				if !p.Held {
					failed++
				}
			}
			if failed != len(names) {
				t.Errorf("%d proofs did not hold, want %d", failed, len(names))
			}
		})
	}
	if !slices.Equal(all, demo.Sabotages()) {
		t.Errorf("sabotages tried: %v, want all of %v", all, demo.Sabotages())
	}
}
