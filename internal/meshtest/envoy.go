package meshtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/envoybin"
)

// Envoy is a running Envoy with its admin interface on a Unix socket.
type Envoy struct {
	PID int

	t     testing.TB
	admin *http.Client
	log   *os.File
	ended chan struct{} // closed when the process is gone
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
	cmd := exec.Command(binary(t), append([]string{
		"--config-path", writeBootstrap(t, dir, bootstrap), "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning",
	}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	e := &Envoy{PID: cmd.Process.Pid, t: t, log: log, ended: make(chan struct{}), admin: &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}}
	go func() {
		_ = cmd.Wait() // it is killed; its log says why if it ended before
		close(e.ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-e.ended
		e.admin.CloseIdleConnections()
		if t.Failed() {
			t.Logf("log of Envoy:\n%s", e.Log())
		}
		log.Close()
	})
	Eventually(t, "Envoy's admin interface", func() error {
		select {
		case <-e.ended:
			return errors.New("Envoy has ended: " + e.Log())
		default:
		}
		_, err := e.get("/server_info")
		return err
	})
	return e
}

// WaitReady returns when Envoy is live: everything it was started with is in force.
func (e *Envoy) WaitReady() {
	e.t.Helper()
	Eventually(e.t, "Envoy ready", func() error {
		body, err := e.get("/ready")
		if err != nil {
			return fmt.Errorf("%w: %s", err, strings.TrimSpace(body))
		}
		return nil
	})
}

// Admin is the answer of an admin path, which must be 200.
func (e *Envoy) Admin(path string) string {
	e.t.Helper()
	body, err := e.get(path)
	if err != nil {
		e.t.Fatal(err)
	}
	return body
}

// Post changes something by an admin path.
func (e *Envoy) Post(path string) {
	e.t.Helper()
	resp, err := e.admin.Post("http://admin"+path, "", nil)
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		e.t.Fatalf("admin %s: %s", path, resp.Status)
	}
}

// Stat is a counter or gauge, 0 when Envoy does not have it.
func (e *Envoy) Stat(name string) int {
	e.t.Helper()
	for line := range strings.Lines(e.Admin("/stats")) {
		if value, ok := strings.CutPrefix(line, name+": "); ok {
			n, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				e.t.Fatalf("stat %q: %v", name, err)
			}
			return n
		}
	}
	return 0
}

func (e *Envoy) get(path string) (string, error) {
	resp, err := e.admin.Get("http://admin" + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return string(body), fmt.Errorf("admin %s: %s", path, resp.Status)
	}
	return string(body), nil
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
