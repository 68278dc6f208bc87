package sidecar

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/envoyadmin"
)

// A configuration that a real Envoy dies of twice is taken back, the writer's server
// hears why, and a better one is tried.
func TestCrashesAndQuarantine(t *testing.T) {
	t.Setenv(fakeEnv, "app")
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "web")
	port := freePort(t)
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	start := func() *running {
		return w.run(dir, fmt.Sprintf("service: web\nport: %d\nprotocol: http\nsidecar: {memory: 256MiB, connections: 3000}\n", port), addr)
	}
	write := func(limit int) {
		t.Helper()
		w.server.Call(http.MethodPut, "/v1/config", fmt.Appendf(nil, `{"Kind": "service-defaults", "Name": "web", "Protocol": "http", "MaxInboundConnections": %d}`, limit))
	}

	// It runs, and starts again, with a limit of 100: there is a configuration to go back to.
	web := start()
	web.untilReady()
	write(100)
	inForce(t, web, 100)
	web.signals <- syscall.SIGTERM
	if err := web.end(); err != nil {
		t.Fatal(err)
	}
	web = start()
	st := web.untilReady()
	if z := st.Sizing; z.Connections != 3000 || z.Memory.String() != "256MiB" || z.Heap.String() != "192MiB" || z.Concurrency != 1 || z.Cgroup == "" == (z.CgroupProblem == "") {
		t.Errorf("sizing = %+v", z)
	}
	web.until("in contact", func(s Status) bool { return s.XDS.Connected })

	// Each Envoy that is given 200 dies.
	write(200)
	for n := range 2 {
		inForce(t, web, 200)
		s := web.untilReady()
		if err := syscall.Kill(s.Envoy.PID, syscall.SIGSEGV); err != nil {
			t.Fatal(err)
		}
		web.until("restarted", func(s Status) bool { return s.Envoy.Restarts == n+1 && s.Envoy.PID != 0 })
	}
	s := web.until("ready with a quarantine", func(s Status) bool { return s.State == Ready && s.Quarantine != nil })
	inForce(t, web, 100)
	if q := strings.Join(s.Quarantine.Resources, ","); q != `Runtime "crossfade"` {
		t.Errorf("in quarantine: %s", q)
	}
	c := s.Envoy.LastCrash
	if c == nil || c.Signal != "segmentation fault" || c.LastChange == nil || strings.Join(c.LastChange.Resources, ",") != `Runtime "crossfade"` ||
		strings.Join(c.Quarantined, ",") != `Runtime "crossfade"` || c.EnvoyVersion == "" || c.PeakRSS == 0 || c.Uptime <= 0 || len(c.Lines) == 0 {
		t.Errorf("crash = %+v", c)
	}
	if reports, err := filepath.Glob(filepath.Join(dir, crashFolder, "*.json")); err != nil || len(reports) != 2 || reports[1] != c.Report {
		t.Errorf("reports %v, %v", reports, err)
	}
	eventually(t, "the server knows", func() string {
		_, body := w.server.Call(http.MethodGet, "/v1/crossfade/sidecars", nil)
		if strings.Contains(string(body), "quarantined: Envoy crashed 2 times within 1m0s") && strings.Contains(string(body), "segmentation fault") {
			return ""
		}
		return string(body)
	})

	// The writer corrects it.
	write(300)
	inForce(t, web, 300)
	web.until("out of quarantine", func(s Status) bool { return s.Quarantine == nil && s.State == Ready })
	eventually(t, "a configuration to go back to is kept", func() string {
		if _, err := os.Stat(filepath.Join(dir, lastGoodFile+".before")); err != nil {
			return err.Error()
		}
		return ""
	})
}

// inForce waits until Envoy itself says that this is its limit.
func inForce(t *testing.T, r *running, limit int64) {
	t.Helper()
	a := envoyadmin.New(r.untilReady().Envoy.AdminSocket, adminTimeout)
	defer a.Close()
	eventually(t, fmt.Sprintf("a limit of %d", limit), func() string {
		got, err := (&watch{admin: a}).inboundLimit(t.Context())
		if err == nil && got == limit {
			return ""
		}
		return fmt.Sprint(got, err)
	})
}

// eventually polls until what is left to wait for is "".
func eventually(t *testing.T, what string, left func() string) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(20 * time.Second)
	for {
		l := left()
		if l == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("never came: %s; %s", what, l)
		}
		<-tick.C
	}
}
