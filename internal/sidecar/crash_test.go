package sidecar

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/process"
)

func TestCrashReportsAreBounded(t *testing.T) {
	dir, err := openStateDir(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.close()
	start := time.Unix(1_800_000_000, 0)
	var last *Crash
	for i := range keptCrashes + 5 {
		began := start.Add(time.Duration(i) * time.Minute)
		last = newCrash(process.State{Code: 139, Signal: syscall.SIGSEGV, Peak: 70 << 20}, began, began.Add(1500*time.Millisecond), fmt.Sprint("v", i), []string{"the end"})
		if err := dir.writeCrash(last); err != nil {
			t.Fatal(err)
		}
	}
	reports, err := filepath.Glob(filepath.Join(dir.path, crashFolder, "*.json"))
	if err != nil || len(reports) != keptCrashes {
		t.Fatalf("%d reports, %v; want %d", len(reports), err, keptCrashes)
	}
	if reports[len(reports)-1] != last.Report {
		t.Errorf("the newest is %s, want %s", reports[len(reports)-1], last.Report)
	}
	for i, path := range reports {
		var c Crash
		text, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(text, &c)
		}
		if want := fmt.Sprint("v", i+5); err != nil || c.Configuration != want || c.Report != path {
			t.Errorf("%s: %+v, %v; want configuration %s", path, c, err, want)
		}
		if c.Signal != "segmentation fault" || c.ExitCode != 139 || c.Uptime != 1.5 || c.PeakRSS != 70<<20 || strings.Join(c.Lines, "") != "the end" {
			t.Errorf("%s: %+v", path, c)
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path, st.Mode(), err)
		}
	}
}
