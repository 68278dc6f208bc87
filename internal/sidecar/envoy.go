package sidecar

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/envoyadmin"
	"github.com/crossfade-mesh/crossfade/internal/process"
)

const (
	// envoyDrainTime is Envoy's --drain-time-s: how long connections on a listener
	// that a configuration change replaced may live on. A drain of the whole
	// instance is timed by the sidecar and not by this.
	envoyDrainTime = 600 * time.Second
	// envoyStopTime is how long Envoy may take to end after SIGTERM.
	envoyStopTime = 5 * time.Second
	// calmTime is how long Envoy must live for its next crash to count as a first one.
	calmTime = time.Minute
	// listenerGrace is how long Envoy, otherwise ready, is waited for when a
	// listener other than the public one is missing. One must not hold up all others.
	listenerGrace = 10 * time.Second
	// adminTimeout bounds one call to Envoy's admin socket.
	adminTimeout = 2 * time.Second
	// adminPoll is the pause between two looks at an Envoy that is not ready.
	adminPoll = 50 * time.Millisecond
	// patience is the pause between two log lines about the same wait.
	patience = 10 * time.Second
)

// envoyArgv is the command line. Envoy drains at once ("immediate") since an
// instance leaves its callers' endpoints before it drains: whoever still talks to
// it should hear of it at the very next response.
func envoyArgv(path, bootstrap, logLevel string, concurrency int) []string {
	return []string{
		path, "-c", bootstrap,
		"--concurrency", strconv.Itoa(concurrency),
		"--drain-time-s", strconv.Itoa(int(envoyDrainTime / time.Second)),
		"--drain-strategy", "immediate",
		"--disable-hot-restart",
		"--log-level", logLevel,
	}
}

// envoyEnv leaves out what is meant for the sidecar itself, tokens among it: Envoy
// needs none of that, and its environment can be read in /proc.
func envoyEnv(env []string) []string {
	return slices.DeleteFunc(env, func(kv string) bool {
		return strings.HasPrefix(kv, "CONSUL_") || strings.HasPrefix(kv, "CROSSFADE_")
	})
}

// envoyState is what the supervisor knows of its child.
type envoyState struct {
	pid      int // 0: not running
	ready    bool
	restarts int
	crash    *Crash // the last one
}

// envoySupervisor keeps one Envoy running.
type envoySupervisor struct {
	argv    []string
	admin   *envoyadmin.Client
	sockets runtimeDir
	out     *process.Lines
	// want decides when Envoy is ready.
	want wantedListeners
	// group is the cgroup that Envoy runs in, or nil.
	group *cgroup
	// configuration names the version of what Envoy is told.
	configuration func() string
	// crashed completes, keeps and logs the report of an Envoy that ran, from run's
	// goroutine, before the next one is started.
	crashed func(*Crash)
	// changed is told each state, from run's goroutine.
	changed func(envoyState)
	log     *slog.Logger
}

// run starts Envoy and starts it again whenever it ends, until ctx does; then it
// stops it, at once when hurry ends, and returns.
func (e *envoySupervisor) run(ctx, hurry context.Context) {
	var st envoyState
	for attempt := 0; ctx.Err() == nil; attempt++ {
		_ = os.Remove(e.sockets.adminSocket())
		began := time.Now()
		var end process.State
		p, err := process.Start(process.Command{Argv: e.argv, Env: envoyEnv(os.Environ()), Stdout: e.out, Stderr: e.out, Cgroup: e.group.folder()})
		if err != nil {
			end = process.State{Code: 1, Err: err}
		} else {
			st.pid = p.PID
			e.changed(st)
			end = e.watch(ctx, hurry, p, &st)
		}
		st.pid, st.ready = 0, false
		if ctx.Err() != nil {
			break
		}
		if time.Since(began) > calmTime {
			attempt = 0
		}
		wait := backOff(attempt, 250*time.Millisecond, 30*time.Second, rand.Float64())
		st.crash = newCrash(end, began, time.Now(), e.configuration(), e.out.Take())
		if p != nil {
			e.crashed(st.crash)
		}
		st.restarts++
		e.log.Error("Envoy is started again", "after", st.crash.How, "restarts", st.restarts, "in", wait.Round(time.Millisecond))
		e.changed(st)
		sleep(ctx, wait)
	}
	e.changed(st)
}

// watch follows one Envoy to its end and says how it ended.
func (e *envoySupervisor) watch(ctx, hurry context.Context, p *process.Process, st *envoyState) process.State {
	up, cancel := context.WithCancel(ctx)
	defer cancel()
	ready := make(chan struct{})
	go func() {
		if e.awaitReady(up) {
			close(ready)
		}
	}()
	for {
		select {
		case <-ready:
			ready = nil
			st.ready = true
			e.changed(*st)
		case <-p.Done():
			return p.State()
		case <-ctx.Done():
			if p.Stop(hurry, envoyStopTime) {
				e.log.Warn("Envoy did not end in time and was killed", "pid", p.PID)
			}
			return p.State()
		}
	}
}

// awaitReady polls Envoy until it serves what is wanted. It is false when ctx ended first.
func (e *envoySupervisor) awaitReady(ctx context.Context) bool {
	began := time.Now()
	said := began.Add(2*time.Second - patience) // once soon, then seldom
	var since time.Time
	for {
		seen := e.look(ctx)
		if seen.serving && since.IsZero() {
			since = time.Now()
		}
		ok, missing := e.want.met(seen, time.Now(), since)
		if ok {
			if missing != "" {
				e.log.Warn("Envoy serves, but not all of its listeners", "missing", missing)
			}
			e.log.Info("Envoy is ready", "after", time.Since(began).Round(time.Millisecond))
			return true
		}
		if time.Since(said) >= patience {
			said = time.Now()
			e.log.Info("waiting for Envoy to be ready", "missing", missing, "for", time.Since(began).Round(time.Second))
		}
		if !sleep(ctx, adminPoll) {
			return false
		}
	}
}

// seenListeners is one look at Envoy.
type seenListeners struct {
	problem string // why there is nothing more to see
	active  map[string]bool
	told    []string
	warming int64
	serving bool // LIVE, with the public listener active
}

func (e *envoySupervisor) look(ctx context.Context) seenListeners {
	live, state, err := e.admin.Ready(ctx)
	if err != nil {
		return seenListeners{problem: "an answer on its admin socket"}
	}
	if !live {
		return seenListeners{problem: "state LIVE, it is " + state}
	}
	listeners, err := e.admin.Listeners(ctx)
	if err != nil {
		return seenListeners{problem: err.Error()}
	}
	active := make(map[string]bool, len(listeners))
	for _, l := range listeners {
		active[l.Name] = true
	}
	const warming = "listener_manager.total_listeners_warming"
	stats, err := e.admin.Gauges(ctx, "^"+warming+"$")
	if err != nil {
		return seenListeners{problem: err.Error()}
	}
	return seenListeners{active: active, told: e.want.told(), warming: stats[warming], serving: e.want.public(active)}
}

// wantedListeners are the listeners without which Envoy is not ready.
type wantedListeners struct {
	publicPort int
	// told lists the names of the listeners that Envoy was given.
	told func() []string
}

// public reports whether the listener for other sidecars is among the active ones.
func (w wantedListeners) public(active map[string]bool) bool {
	suffix := ":" + strconv.Itoa(w.publicPort)
	for name := range active {
		if strings.HasPrefix(name, "public_listener:") && strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

// met decides whether Envoy is ready, and names what is missing. since is when it
// first served its public listener; what else is missing is waited for until
// listenerGrace after that.
func (w wantedListeners) met(seen seenListeners, now, since time.Time) (ok bool, missing string) {
	if seen.problem != "" {
		return false, seen.problem
	}
	if !seen.serving {
		return false, fmt.Sprintf("the public listener on port %d", w.publicPort)
	}
	var absent []string
	for _, name := range seen.told {
		if !seen.active[name] {
			absent = append(absent, name)
		}
	}
	if len(absent) == 0 && seen.warming == 0 {
		return true, ""
	}
	missing = strings.Join(absent, ", ")
	if seen.warming > 0 {
		missing = strings.TrimPrefix(fmt.Sprintf("%s, %d listeners still warming", missing, seen.warming), ", ")
	}
	return now.Sub(since) >= listenerGrace, missing
}

func tail(lines []string, n int) []string { return lines[max(0, len(lines)-n):] }
