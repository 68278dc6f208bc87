package outages

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/envoyadmin"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/sidecar"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// An Envoy that misses new endpoints, and says that it has them, is named within a minute: in the
// status, by check on the host, and by the server; and has them then.
func TestDrift(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 0)
	w.add("catalog", "catalog-1")
	web := w.add("web", "web-1", "catalog")
	st, err := web.status()
	if err != nil {
		t.Fatal(err)
	}
	// A thief takes the relay's place before the next Envoy looks for it.
	socket := filepath.Join(web.runtime(), "xds.sock")
	if err := os.Rename(socket, socket+".real"); err != nil {
		t.Fatal(err)
	}
	thief := meshtest.StartThief(t, socket, socket+".real")
	if err := syscall.Kill(st.Envoy.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	web.until("served by another Envoy", func(now sidecar.Status) bool {
		return now.State == sidecar.Ready && now.Envoy.PID != st.Envoy.PID
	})
	left := thief.Steal(xds.EndpointType, 1, meshtest.Lie)
	stolen := time.Now()
	added := w.add("catalog", "catalog-2")
	meshtest.Eventually(t, "the new endpoints are stolen", func() error {
		if left() > 0 {
			return errors.New("none were sent")
		}
		return nil
	})
	now, err := added.status()
	if err != nil {
		t.Fatal(err)
	}
	admin := envoyadmin.New(st.Envoy.AdminSocket, 5*time.Second)
	defer admin.Close()
	runs := func() bool {
		b, err := admin.Get(t.Context(), "/clusters")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(b), now.PublicAddress)
	}
	if runs() {
		t.Fatal("Envoy has what was stolen")
	}
	tr := web.load("catalog", 20) // what it has is enough

	// It is sent again when it is named, and the next look, 10 s later, sees that it helped.
	web.within(time.Minute, "adrift", func(s sidecar.Status) bool { return s.Drift != nil && !s.Drift.Since.IsZero() })
	t.Logf("named after %s", time.Since(stolen).Round(time.Millisecond))
	if code, out := w.check(web); code != 1 || !strings.Contains(out, "ClusterLoadAssignment") || !strings.Contains(out, "sent again") {
		t.Errorf("check on the host: %d\n%s", code, out)
	}
	meshtest.Within(t, 8*time.Second, "the server names it", func() error {
		out, err := w.command("check", "--server", "-o", "json").Output()
		var found struct{ Findings []api.Finding }
		if err == nil {
			return errors.New("exit code 0")
		}
		if err := json.Unmarshal(out, &found); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		for _, f := range found.Findings {
			if strings.Contains(f.Subject, "web-1-sidecar-proxy") && strings.Contains(f.Text, "ClusterLoadAssignment") {
				return nil
			}
		}
		return fmt.Errorf("findings: %v", found.Findings)
	})
	if !runs() {
		t.Error("named, and not mended")
	}
	web.within(30*time.Second, "healed", func(s sidecar.Status) bool {
		return s.Drift.Since.IsZero() && s.Drift.Drifts == 1 && s.Drift.Resends == 1 && s.Drift.Restarts == 0
	})
	tr.answersFrom("catalog-2")
	tr.nothingFailed()
	if code, out := w.check(web); code != 0 {
		t.Errorf("check when all is well again: %d\n%s", code, out)
	}
	log, err := os.ReadFile(web.log)
	if err != nil || !strings.Contains(string(log), "does not run what it was told, it is sent again") || !strings.Contains(string(log), "runs what it was told again") {
		t.Errorf("the sidecar's log does not say so: %v", err)
	}
}
