package outages

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/sidecar"
)

// on is the number of the server that a sidecar is connected to.
func (in *instance) on() int {
	in.w.t.Helper()
	n := -1
	in.until("connected", func(st sidecar.Status) bool {
		n = slices.Index(in.w.grpcAddr, st.XDS.Server)
		return st.XDS.Connected && n >= 0
	})
	return n
}

// A server that is stopped and keeps its connections is given up within 40 s by those who are
// on it, and what changed meanwhile reaches them then.
func TestServerStopped(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	w.add("catalog", "catalog-1")
	w.add("catalog", "catalog-2")
	web := w.add("web", "web-1", "catalog")
	tr := web.load("catalog", 50)

	stopped := web.on()
	w.servers[stopped].signal(syscall.SIGSTOP)
	began := time.Now()
	w.add("catalog", "catalog-3") // web does not hear of it now
	moved := 0
	for _, in := range w.sidecars {
		in.within(40*time.Second-time.Since(began), "on another server", func(st sidecar.Status) bool {
			return st.XDS.Connected && st.XDS.Server != w.grpcAddr[stopped]
		})
		moved++
	}
	t.Logf("all %d sidecars are on servers that run after %s", moved, time.Since(began).Round(time.Millisecond))
	tr.answersFrom("catalog-3")
	w.servers[stopped].signal(syscall.SIGCONT)
	tr.nothingFailed()
}

// gaps measures for how long each sidecar has no stream to a server.
type gaps struct {
	mu      sync.Mutex
	longest map[string]time.Duration
	stop    func()
}

func (w *world) gaps() *gaps {
	g := &gaps{longest: map[string]time.Duration{}}
	end := make(chan struct{})
	var wg sync.WaitGroup
	for id, in := range w.sidecars {
		wg.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			var since time.Time
			for {
				select {
				case <-end:
					return
				case now := <-tick.C:
					st, err := in.status()
					switch {
					case err == nil && st.XDS.Connected:
						since = time.Time{}
					case since.IsZero():
						since = now
					default:
						g.mu.Lock()
						g.longest[id] = max(g.longest[id], now.Sub(since))
						g.mu.Unlock()
					}
				}
			}
		})
	}
	g.stop = sync.OnceFunc(func() { close(end); wg.Wait() })
	w.t.Cleanup(g.stop)
	return g
}

// Servers die and come back one after the other, then all at once and with the registry: nobody's
// requests fail, and whoever starts meanwhile starts from what it kept.
func TestServersDie(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	w.add("catalog", "catalog-1")
	w.add("catalog", "catalog-2")
	web := w.add("web", "web-1", "catalog")
	tr := web.load("catalog", 100)

	t.Log("one of three servers is killed, and comes back")
	g := w.gaps()
	for i := range w.servers {
		on := 0
		for _, in := range w.sidecars {
			if in.on() == i {
				on++
			}
		}
		w.servers[i].end(syscall.SIGKILL)
		for _, in := range w.sidecars {
			in.until("connected", func(st sidecar.Status) bool { return st.XDS.Connected && st.XDS.Server != w.grpcAddr[i] })
		}
		w.startServer(i, 0)
		t.Logf("server %d had %d of %d sidecars", i, on, len(w.sidecars))
	}
	g.stop()
	for id, longest := range g.longest {
		t.Logf("%s had no stream for %s at most", id, longest.Round(time.Millisecond))
		if longest > 5*time.Second {
			t.Errorf("%s had no stream for %s", id, longest)
		}
	}

	t.Log("all servers and the registry are killed")
	for _, s := range append(slices.Clone(w.servers), w.registry) {
		s.end(syscall.SIGKILL)
	}
	for _, in := range w.sidecars {
		in.until("alone", func(st sidecar.Status) bool { return !st.XDS.Connected })
	}
	for round := range 2 {
		for _, id := range []string{"catalog-1", "catalog-2"} {
			in := w.sidecars[id]
			in.end(syscall.SIGTERM)
			in.start()
			in.ready()
			if st, err := in.status(); err != nil || !st.XDS.FromLastGood || st.XDS.Connected {
				t.Fatalf("round %d: %s with no server: %+v, %v", round, id, st.XDS, err)
			}
			tr.answersFrom(id)
		}
	}
	tr.nothingFailed()
	w.reboot(web)

	t.Log("they come back")
	tr = web.load("catalog", 100)
	began := time.Now()
	w.registry = w.startRegistry(portOf(t, w.httpAddr), 0)
	for i := range w.servers {
		w.startServer(i, 0)
	}
	for _, in := range w.sidecars {
		in.within(15*time.Second, "in sync", func(st sidecar.Status) bool { return st.XDS.Connected && !st.XDS.FromLastGood && st.Registered })
	}
	t.Logf("all are in sync after %s", time.Since(began).Round(time.Millisecond))
	tr.answersFrom("catalog-1")
	tr.answersFrom("catalog-2")
	tr.nothingFailed()
}

// reboot takes a host's power, and what it has not on its disk. There is no server.
func (w *world) reboot(in *instance) {
	t := w.t
	t.Helper()
	t.Log("a host reboots")
	st, err := in.status()
	if err != nil {
		t.Fatal(err)
	}
	in.end(syscall.SIGKILL)
	meshtest.Within(t, 5*time.Second, "Envoy has no power either", func() error {
		if syscall.Kill(st.Envoy.PID, 0) == nil {
			_ = syscall.Kill(st.Envoy.PID, syscall.SIGKILL)
			return errors.New("it runs")
		}
		return nil
	})
	if code, out := w.check(in); code != 2 || !strings.Contains(out, "is gone") {
		t.Errorf("check of a host that is down: %d\n%s", code, out)
	}
	if err := os.RemoveAll(in.runtime()); err != nil {
		t.Fatal(err)
	}
	in.start()
	in.ready()
	now, err := in.status()
	if err != nil || !now.XDS.FromLastGood || now.Envoy.PID == st.Envoy.PID || now.Certificate == nil || now.Certificate.Serial != st.Certificate.Serial {
		t.Errorf("after the reboot: %+v, %v", now, err)
	}
	tr := in.load("catalog", 50)
	tr.answersFrom("catalog-1")
	tr.answersFrom("catalog-2")
	tr.nothingFailed()
	if code, out := w.check(in); code != 0 {
		t.Errorf("check right after the start: %d\n%s", code, out)
	}

	// The control: it is the state directory that does it.
	in.end(syscall.SIGTERM)
	kept := in.state() + ".kept"
	if err := os.Rename(in.state(), kept); err != nil {
		t.Fatal(err)
	}
	in.start()
	meshtest.Within(t, 20*time.Second, "the sidecar says what it lacks", func() error {
		b, err := os.ReadFile(in.log)
		if err == nil && !strings.Contains(string(b), "there is no last good configuration with a valid certificate to start from") {
			err = errors.New("it has not")
		}
		return err
	})
	if st, err := in.status(); err != nil || st.State != sidecar.Starting || st.Envoy.PID != 0 {
		t.Errorf("without its state: %+v, %v", st, err)
	}
	in.end(syscall.SIGKILL)
	if err := errors.Join(os.RemoveAll(in.state()), os.Rename(kept, in.state())); err != nil {
		t.Fatal(err)
	}
	in.start()
	in.ready()
}

// check is what crossfade check says of a sidecar, without a server.
func (w *world) check(in *instance) (code int, out string) {
	w.t.Helper()
	cmd := w.command("check", "--local", "--state-dir", in.state())
	b, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), string(b)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return 0, string(b)
}

func portOf(t *testing.T, addr string) (port int) {
	t.Helper()
	if _, err := fmt.Sscanf(addr[strings.LastIndexByte(addr, ':')+1:], "%d", &port); err != nil {
		t.Fatal(err)
	}
	return port
}
