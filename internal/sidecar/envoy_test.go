package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/envoyadmin"
	"github.com/crossfade-mesh/crossfade/internal/process"
)

// fakeEnv makes the test binary play a part of its own instead of running tests.
const fakeEnv = "TEST_SIDECAR_PLAYS"

func TestMain(m *testing.M) {
	switch os.Getenv(fakeEnv) {
	case "":
		code := m.Run()
		if left := leaked(); code == 0 && left != "" {
			fmt.Fprintln(os.Stderr, "goroutines left over:\n"+left)
			code = 1
		}
		os.Exit(code)
	case "envoy":
		playEnvoy()
	case "app":
		playApp()
	}
}

// leaked is the stacks of goroutines of this package that do not end.
func leaked() string {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var left []string
	for range 500 {
		left = nil
		buf := make([]byte, 1<<20)
		for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(stack, "internal/sidecar") && !strings.Contains(stack, "TestMain") {
				left = append(left, stack)
			}
		}
		if left == nil {
			break
		}
		<-tick.C
	}
	return strings.Join(left, "\n\n")
}

// playEnvoy serves the admin socket beside the bootstrap until SIGTERM.
func playEnvoy() {
	dir := runtimeDir(filepath.Dir(os.Args[2])) // envoy -c <bootstrap> …
	fmt.Fprintln(os.Stderr, "initializing")
	l, err := net.Listen("unix", dir.adminSocket())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go http.Serve(l, &fakeAdmin{names: []string{"public_listener:127.0.0.1:21000"}})
	<-term
	os.Exit(0)
}

// newSupervisor runs the fake. States are appended to the returned channel.
func newSupervisor(t *testing.T) (*envoySupervisor, chan envoyState) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := runtimeDir(t.TempDir())
	t.Setenv(fakeEnv, "envoy")
	states := make(chan envoyState, 100)
	a := envoyadmin.New(dir.adminSocket(), adminTimeout)
	t.Cleanup(a.Close)
	return &envoySupervisor{
		argv: []string{exe, "-c", dir.bootstrap()}, admin: a, sockets: dir,
		out: &process.Lines{Out: os.Stderr, Prefix: "envoy: "}, want: wantedListeners{publicPort: 21000, told: func() []string { return nil }},
		crashed: func(c *Crash) { c.Report = "kept" }, configuration: func() string { return "v7" }, changed: func(s envoyState) { states <- s }, log: slog.New(slog.DiscardHandler),
	}, states
}

// until reads states until one is as wanted.
func until(t *testing.T, states <-chan envoyState, want func(envoyState) bool) envoyState {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case s := <-states:
			if want(s) {
				return s
			}
		case <-timeout:
			t.Fatal("the wanted state did not come")
		}
	}
}

func TestEnvoyIsRestarted(t *testing.T) {
	e, states := newSupervisor(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { e.run(ctx, t.Context()) })
	defer wg.Wait()
	defer cancel()

	first := until(t, states, func(s envoyState) bool { return s.ready })
	if err := syscall.Kill(first.pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	crashed := until(t, states, func(s envoyState) bool { return s.crash != nil })
	if crashed.pid != 0 || crashed.ready || crashed.restarts != 1 {
		t.Errorf("after a crash: %+v", crashed)
	}
	if c := crashed.crash; c.How != "signal: killed" || c.Configuration != "v7" || strings.Join(c.Lines, ",") != "initializing" {
		t.Errorf("crash = %+v", *crashed.crash)
	}
	again := until(t, states, func(s envoyState) bool { return s.ready })
	if again.pid == first.pid || again.restarts != 1 {
		t.Errorf("after the restart: %+v", again)
	}
	cancel()
	if last := until(t, states, func(s envoyState) bool { return s.pid == 0 }); last.restarts != 1 {
		t.Errorf("a wanted end counts as a crash: %+v", last)
	}
}

func TestEnvoyThatCannotStart(t *testing.T) {
	e, states := newSupervisor(t)
	e.argv[0] = filepath.Join(t.TempDir(), "absent")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { e.run(ctx, t.Context()) })
	s := until(t, states, func(s envoyState) bool { return s.restarts == 2 })
	if !strings.Contains(s.crash.How, "no such file") {
		t.Errorf("crash = %+v", *s.crash)
	}
	cancel()
	wg.Wait()
}

func TestAppEnded(t *testing.T) {
	if err := appEnded("./app", process.State{}); !errors.Is(err, errFinished) {
		t.Errorf("success = %v", err)
	}
	err, ok := errors.AsType[*ExitError](appEnded("./app", process.State{Code: 137, Signal: syscall.SIGKILL}))
	if !ok || err.Code != 137 || err.Error() != `app "./app": ended by itself: signal: killed` {
		t.Errorf("killed = %v", err)
	}
}

func TestEnvoyEnv(t *testing.T) {
	got := envoyEnv([]string{"PATH=/bin", "CONSUL_HTTP_TOKEN=secret", "CROSSFADE_TOKEN=secret", "TZ=UTC"})
	if strings.Join(got, " ") != "PATH=/bin TZ=UTC" {
		t.Errorf("Envoy's environment = %q", got)
	}
}
