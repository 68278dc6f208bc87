package meshtest

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/envoyadmin"
	"github.com/crossfade-mesh/crossfade/internal/envoybin"
	"github.com/crossfade-mesh/crossfade/internal/process"
)

// Envoy is a running Envoy with its admin interface on a Unix socket.
type Envoy struct {
	PID int

	t     testing.TB
	admin *envoyadmin.Client
	log   *os.File
}

// StartEnvoy runs Envoy with a bootstrap whose admin address is a Unix socket, one
// worker and no hot restart, and returns when admin answers. It is killed when the
// test ends; its log is shown when the test failed.
func StartEnvoy(t testing.TB, bootstrap []byte, args ...string) *Envoy {
	t.Helper()
	var head struct {
		Admin struct {
			Address struct{ Pipe struct{ Path string } }
		}
	}
	if err := json.Unmarshal(bootstrap, &head); err != nil {
		t.Fatalf("bootstrap: %v", err)
	}
	socket := head.Admin.Address.Pipe.Path
	if socket == "" {
		t.Fatal("bootstrap: its admin address is no Unix socket")
	}
	dir := RunDir(t)
	log, err := os.Create(filepath.Join(dir, "envoy.log"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := process.Start(process.Command{Stdout: log, Stderr: log, Argv: append([]string{
		binary(t), "--config-path", writeBootstrap(t, dir, bootstrap), "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning",
	}, args...)})
	if err != nil {
		t.Fatal(err)
	}
	e := &Envoy{PID: p.PID, t: t, log: log, admin: envoyadmin.New(socket, 5*time.Second)}
	t.Cleanup(func() {
		p.Signal(syscall.SIGKILL)
		<-p.Done()
		e.admin.Close()
		if t.Failed() {
			t.Logf("log of Envoy:\n%s", e.Log())
		}
		log.Close()
	})
	Eventually(t, "Envoy's admin interface", func() error {
		if !p.Alive() {
			return errors.New("Envoy has ended: " + e.Log())
		}
		_, err := e.admin.Get(context.Background(), "/server_info")
		return err
	})
	return e
}

// WaitReady returns when Envoy is live: everything it was started with is in force.
func (e *Envoy) WaitReady() {
	e.t.Helper()
	Eventually(e.t, "Envoy ready", func() error {
		_, err := e.admin.Get(context.Background(), "/ready")
		return err
	})
}

// Admin is the answer of an admin path, which must be 200.
func (e *Envoy) Admin(path string) string {
	e.t.Helper()
	body, err := e.admin.Get(context.Background(), path)
	if err != nil {
		e.t.Fatal(err)
	}
	return string(body)
}

// Post changes something by an admin path.
func (e *Envoy) Post(path string) {
	e.t.Helper()
	if err := e.admin.Post(context.Background(), path); err != nil {
		e.t.Fatal(err)
	}
}

// Stat is a counter or gauge, 0 when Envoy does not have it.
func (e *Envoy) Stat(name string) int {
	e.t.Helper()
	stats, err := e.admin.Stats(context.Background(), "^"+regexp.QuoteMeta(name)+"$")
	if err != nil {
		e.t.Fatal(err)
	}
	return int(stats[name])
}

// Log is what Envoy has written so far.
func (e *Envoy) Log() string {
	text, err := os.ReadFile(e.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Validate fails the test for each named bootstrap that Envoy refuses or warns of.
func Validate(t testing.TB, bootstraps map[string][]byte) {
	t.Helper()
	envoy := binary(t)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 2)
	for name, bootstrap := range bootstraps {
		path := writeBootstrap(t, RunDir(t), bootstrap)
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			out, err := exec.Command(envoy, "--mode", "validate", "--config-path", path, "--log-level", "warning").CombinedOutput()
			text := strings.TrimSpace(strings.ReplaceAll(string(out), "configuration '"+path+"' OK", ""))
			if err != nil || text != "" {
				t.Errorf("%s: envoy --mode validate: %v\n%s", name, err, text)
			}
		})
	}
	wg.Wait()
}

func binary(t testing.TB) string {
	t.Helper()
	path, err := envoybin.Find()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func writeBootstrap(t testing.TB, dir string, bootstrap []byte) string {
	t.Helper()
	path := filepath.Join(dir, "bootstrap.json")
	if err := os.WriteFile(path, bootstrap, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
