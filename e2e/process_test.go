//go:build peers || nomad

package e2e

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/envoyadmin"
	"github.com/crossfade-mesh/crossfade/internal/envoybin"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/sidecar"
)

// run starts a process that is ended, with its children, when the test ends.
func run(t *testing.T, env []string, name string, args ...string) { spawn(t, env, name, args...) }

// process is one that was started.
type process struct {
	cmd   *exec.Cmd
	log   *meshtest.Log
	ended chan struct{}
	err   error // how it ended; to be read after that
}

// spawn is run, for those who end it themselves or look at its log.
func spawn(t *testing.T, env []string, name string, args ...string) *process {
	t.Helper()
	return spawnBy(t, (*exec.Cmd).Start, env, name, args...)
}

// spawnBy is spawn, started in a way of its own.
func spawnBy(t *testing.T, start func(*exec.Cmd) error, env []string, name string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(name, args...), log: &meshtest.Log{}, ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := start(p.cmd); err != nil {
		t.Fatal(err)
	}
	go func() { defer close(p.ended); p.err = p.cmd.Wait() }()
	t.Cleanup(func() {
		p.signal(syscall.SIGTERM)
		<-p.ended
		if t.Failed() {
			t.Logf("%s %v: %v\n%s", filepath.Base(name), args, p.err, p.log)
		}
	})
	return p
}

// signal reaches the process and its children.
func (p *process) signal(sig syscall.Signal) {
	select {
	case <-p.ended:
	default:
		_ = syscall.Kill(-p.cmd.Process.Pid, sig)
	}
}

// stop asks the process alone to end, and waits for it.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	<-p.ended
	return p.err
}

func consulBinary(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(cmp.Or(os.Getenv("CROSSFADE_CONSUL"), "../bin/consul"))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func envoyBinary(t *testing.T) string {
	t.Helper()
	path, err := envoybin.Find()
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// answers waits until a URL answers 200 with the text in it.
func answers(t *testing.T, url, text string) {
	t.Helper()
	meshtest.Eventually(t, url, func() error {
		code, body, err := ask(url, "")
		if err == nil && (code != http.StatusOK || !strings.Contains(body, text)) {
			err = fmt.Errorf("%d %.200s", code, body)
		}
		return err
	})
}

// readStatus is what a sidecar of ours says of itself in its state directory.
func readStatus(dir string) (st sidecar.Status, err error) {
	text, err := os.ReadFile(filepath.Join(dir, sidecar.StatusFile))
	if err == nil {
		err = json.Unmarshal(text, &st)
	}
	return st, err
}

// envoyAnswers is what an Envoy's admin interface at a socket says to a path.
func envoyAnswers(t *testing.T, socket, path string) (string, error) {
	admin := envoyadmin.New(socket, 5*time.Second)
	defer admin.Close()
	body, err := admin.Get(t.Context(), path)
	return string(body), err
}
