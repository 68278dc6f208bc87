package server

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consul"
)

// guardRun is an endpoint guard before a fake Consul. It judges each snapshot that is told.
type guardRun struct {
	*fakeConsul
	t     *testing.T
	guard *endpointGuard
	stop  func()

	mu   sync.Mutex
	last *catalog.Snapshot
	n    int
	log  bytes.Buffer
	// truth is the services and how many instances each has; nil: nothing is judged.
	truth map[string]int
	bad   []string // what was told that must not be
}

// Write implements [io.Writer] for the log.
func (r *guardRun) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(b)
}

func (r *guardRun) logged(words ...string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for line := range strings.Lines(r.log.String()) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			n++
		}
	}
	return n
}

// runGuard starts one; call it inside a bubble.
func runGuard(t *testing.T, f *fakeConsul, policy catalog.GuardPolicy, dir string) *guardRun {
	t.Helper()
	r := &guardRun{fakeConsul: f, t: t}
	log := slog.New(slog.NewTextHandler(r, nil))
	source, err := consul.New(consul.Options{Address: "consul.test:8500", HTTPClient: &http.Client{Transport: f}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	r.guard = newEndpointGuard(source, policy, dir, log)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.guard.Run(ctx, r.publish) }()
	ended := false
	r.stop = func() {
		if !ended {
			ended = true
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run returned %v", err)
			}
		}
	}
	t.Cleanup(r.stop)
	return r
}

// publish judges: a set never has fewer than half of its true instances, never an untrue one,
// and never nobody who is well.
func (r *guardRun) publish(s *catalog.Snapshot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = s
	r.n++
	for name, n := range r.truth {
		present, well := 0, 0
		if set := s.Set(name); set != nil {
			for _, in := range set.Instances {
				var node int
				if _, err := fmt.Sscanf(in.Service.ID, name+"-%d", &node); err != nil || in.Node.Name != fmt.Sprintf("n%d", node) || !strings.HasPrefix(in.Address(), "10.0.0.") || in.Service.Port/100 != 80 {
					r.bad = append(r.bad, fmt.Sprintf("%s on %s at %s:%d", in.Service.ID, in.Node.Name, in.Address(), in.Service.Port))
				}
				present++
				if in.Status() != catalog.Critical {
					well++
				}
			}
		}
		if 2*present < n || well == 0 {
			r.bad = append(r.bad, fmt.Sprintf("%s: %d of %d, %d of them well", name, present, n, well))
		}
	}
}

// judge begins to judge what is told.
func (r *guardRun) judge(services []string, instances int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.truth = map[string]int{}
	for _, name := range services {
		r.truth[name] = instances
	}
}

// told is "id id …" of a service's instances, those that are ill in brackets.
func (r *guardRun) told(name string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil || r.last.Set(name) == nil {
		return ""
	}
	var out []string
	for _, in := range r.last.Set(name).Instances {
		id := in.Service.ID
		if in.Status() == catalog.Critical {
			id = "(" + id + ")"
		}
		out = append(out, id)
	}
	return strings.Join(out, " ")
}

// decide decides about what is held, as if it were kept nowhere.
func (r *guardRun) decide(service string, d catalog.Decision, by catalog.Decided) (catalog.Held, bool) {
	ruling, was, ok := r.guard.rule(service, d, by)
	if ok {
		r.guard.ruled(map[string]catalog.Ruling{service: ruling})
	}
	return was, ok
}

func (r *guardRun) snapshots() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.n
}

// after lets time pass.
func after(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func (r *guardRun) want(name, want string) {
	r.t.Helper()
	if got := r.told(name); got != want {
		r.t.Errorf("%s: told %q, want %q", name, got, want)
	}
}

// held are the names of services of which something is held.
func (r *guardRun) held() string {
	held, _, _ := r.guard.held()
	var out []string
	for _, h := range held {
		out = append(out, h.Service)
	}
	return strings.Join(out, " ")
}

// whole checks that all is told as it is.
func (r *guardRun) whole(services []string, instances int) {
	r.t.Helper()
	for _, name := range services {
		if got := r.told(name); len(strings.Fields(got)) != instances || strings.Contains(got, "(") {
			r.t.Errorf("%s: told %q, want all %d and well", name, got, instances)
		}
	}
	if held := r.held(); held != "" {
		r.t.Errorf("held: %s", held)
	}
}

// What really goes, goes at once, and comes back as fast.
func TestEndpointGuardScaleToZero(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeConsul()
		f.fleet(2, 3)
		r := runGuard(t, f, catalog.GuardPolicy{}, "")
		after(time.Second)
		f.change(func() {
			for n := range 3 {
				f.deregister(fmt.Sprintf("n%d", n), fmt.Sprintf("s0-%d", n))
			}
		})
		after(time.Second)
		r.want("s0", "")
		r.want("s1", "s1-0 s1-1 s1-2")
		if r.held() != "" || r.logged("holds instances") > 0 {
			t.Errorf("held %q; the log:\n%s", r.held(), r.log.String())
		}
		f.change(func() { f.register("n1", "s0", "s0-1", 8000) })
		after(time.Second)
		r.want("s0", "s0-1")
	})
}

// Held is said once, within 5 s, and that it is over; an operator's word decides.
func TestEndpointGuardDecisions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeConsul()
		services := f.fleet(2, 2)
		r := runGuard(t, f, catalog.GuardPolicy{}, "")
		after(time.Second)
		restore := f.save()
		f.change(func() { f.nodes = map[string]*fakeNode{} })
		after(5 * time.Second)
		if r.held() != "s0 s1" || r.logged("level=WARN", "holds instances", "service=s0", "gone=2", "nothing explains it") != 1 {
			t.Fatalf("held %q; the log:\n%s", r.held(), r.log.String())
		}
		by := catalog.Decided{Who: "operator 7", Time: time.Now()}
		if _, ok := r.decide("s9", catalog.Release, by); ok {
			t.Error("released what is not held")
		}
		if was, ok := r.decide("s0", catalog.Release, by); !ok || len(was.Instances) != 2 {
			t.Errorf("released %v, %v", was, ok)
		}
		r.want("s0", "")
		r.want("s1", "s1-0 s1-1")
		if _, ok := r.decide("s1", catalog.Keep, by); !ok {
			t.Error("cannot be kept")
		}
		after(time.Hour)
		held, _, alarms := r.guard.held()
		if len(held) != 1 || held[0].Kept != by || alarms != 2 || r.logged("holds instances") != 2 || r.logged("was told", "operator 7") != 2 {
			t.Errorf("held %v after %d alarms; the log:\n%s", held, alarms, r.log.String())
		}
		restore()
		f.change(func() {})
		after(5 * time.Second)
		r.whole(services, 2)
		if r.logged("level=INFO", "nothing of a service any more") != 2 {
			t.Errorf("the end is not said; the log:\n%s", r.log.String())
		}
	})
}

// A server that starts again goes on from what was told last, whatever the registry says
// first; what was kept stays kept. Without the file the first answer passes.
func TestEndpointGuardRestart(t *testing.T) {
	for _, kept := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			f := newFakeConsul()
			services := f.fleet(3, 3)
			r := runGuard(t, f, catalog.GuardPolicy{}, dir)
			after(time.Second)
			blank := func() {
				f.change(func() { f.nodes = map[string]*fakeNode{} })
			}
			restore := f.save()
			blank()
			after(5 * time.Second)
			by := catalog.Decided{Who: "operator 7", Time: time.Now().UTC()}
			r.decide("s0", catalog.Keep, by)
			r.decide("s2", catalog.Release, by)
			r.stop()

			if !kept {
				if err := os.Remove(filepath.Join(dir, guardFileName)); err != nil {
					t.Fatal(err)
				}
			}
			f.bending(func(_ string, a *fakeAnswer) { a.err = errRefused })
			r = runGuard(t, f, catalog.GuardPolicy{}, dir)
			after(time.Second)
			if !kept {
				f.bending(nil)
				after(10 * time.Second)
				r.want("s1", "")
				return
			}
			r.want("s1", "s1-0 s1-1 s1-2")
			f.bending(nil)
			after(time.Hour)
			r.want("s0", "s0-0 s0-1 s0-2")
			r.want("s1", "s1-0 s1-1 s1-2")
			r.want("s2", "")
			if held, _, _ := r.guard.held(); len(held) != 2 || held[0].Kept != by || !held[1].Kept.Time.IsZero() {
				t.Errorf("held %v", held)
			}
			restore()
			f.change(func() {})
			after(5 * time.Second)
			r.whole(services, 3)
		})
	}
}

// A file that breaks off, or is somebody else's, is named and left alone.
func TestEndpointGuardFileThatCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		f := newFakeConsul()
		services := f.fleet(2, 2)
		r := runGuard(t, f, catalog.GuardPolicy{}, dir)
		after(time.Second)
		r.stop()
		path := filepath.Join(dir, guardFileName)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for cut := range len(whole) - 1 {
			if cut%7 != 0 {
				continue
			}
			if s, _, err := catalog.ReadSaved(bytes.NewReader(whole[:cut]), nil); err == nil {
				t.Fatalf("the first %d of %d bytes are read as %v", cut, len(whole), s.Services())
			}
		}
		if err := os.WriteFile(path, whole[:len(whole)/2], 0o600); err != nil {
			t.Fatal(err)
		}
		r = runGuard(t, f, catalog.GuardPolicy{}, dir)
		after(time.Second)
		r.whole(services, 2)
		if r.logged("level=ERROR", "last good catalog cannot be read") != 1 {
			t.Errorf("the log:\n%s", r.log.String())
		}
	})
}
