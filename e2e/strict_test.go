package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/demo/load"
	"github.com/crossfade-mesh/crossfade/internal/envoybin"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// A service whose app listens at all addresses becomes strict, seen from another host: while it
// is permissive that host reaches the app's own port and the sidecar's in plaintext, the
// servers see both and refuse; in the end it reaches neither. What goes by mtls works all the
// time, and the way back needs the app's port open again.
func TestStrictFromAnotherHost(t *testing.T) {
	if !meshtest.OwnHost(t) {
		return
	}
	s := newTwoHosts(t)
	s.callee("catalog")
	probe := s.caller("probe", "catalog") // all by mtls, from the beginning
	web := s.caller("web", "catalog")
	s.run("crossfade", "config", "write", s.file("mesh.hcl", "Kind = \"mesh\"\nAllowEnablingPermissiveMutualTLS = true\n"))
	s.run("crossfade", "shift", "web", "catalog", "--via", "direct=100")

	always := s.load(probe)
	shifted := s.load(web)
	app := net.JoinHostPort(meshtest.HostAddress, fmt.Sprint(appPort))
	side := net.JoinHostPort(meshtest.HostAddress, fmt.Sprint(sidePort))
	if err := s.reach(app); err != nil {
		t.Fatalf("before all that the app's own port is open: %v", err)
	}
	if err := s.reach(side); err == nil {
		t.Fatal("a sidecar's port takes plaintext though nobody said so")
	}

	s.run("crossfade", "shift", "web", "catalog", "--stage", "permissive")
	if err := s.reach(side); err != nil {
		t.Errorf("permissive: %v", err)
	}
	s.refused("web -> catalog goes by direct 100%")
	s.run("crossfade", "shift", "web", "catalog", "--via", "mtls=100")
	s.eventuallyRefused("plaintext came from "+s.other.Address+" (a host of probe, web) at 20", "port 8081 listens on ::, and is reached past the sidecar")
	if err := s.closed(app, side); err == nil {
		t.Error("a look from the other host finds nothing open while everything is")
	}

	// Rules for another port are none: the app's port is still open, and is still refused.
	s.run("crossfade", "protect", "8082")
	if err := s.closed(app); err == nil {
		t.Error("rules for another port close this one")
	}
	s.refused("port 8081 listens on ::")
	s.run("crossfade", "protect", "--remove", "8082")
	s.run("crossfade", "protect", "8081")
	if out := s.run("crossfade", "protect"); out != "8081\n" {
		t.Errorf("protected: %q", out)
	}
	if err := s.closed(app); err != nil {
		t.Error(err)
	}
	if err := s.reach(side); err != nil { // once more, and so the silence begins again
		t.Errorf("still permissive: %v", err)
	}
	began := time.Now()
	var out string
	meshtest.Eventually(t, "strict", func() (err error) {
		out, err = s.try("crossfade", "shift", "--service", "catalog", "--stage", "strict", "--window-of-silence", "3s")
		return err
	})
	if took := time.Since(began); took < 2*time.Second {
		t.Errorf("strict after %v, before three seconds of silence", took)
	}
	if !strings.Contains(out, "web -> catalog: stage strict; mtls 100%") || !strings.Contains(out, "applied on ") {
		t.Errorf("%s", out)
	}
	if err := s.closed(app, side); err != nil {
		t.Errorf("strict: %v", err)
	}
	if out := s.run("crossfade", "pairs", "-o", "json"); strings.Count(out, `"stage": "strict"`) != 2 {
		t.Errorf("%s", out)
	}

	// Rules that go away afterwards are missed.
	if out := s.run("crossfade", "pairs", "show", "web", "catalog"); strings.Contains(out, "Note:") {
		t.Errorf("%s", out)
	}
	s.run("crossfade", "protect", "--remove", "8081")
	meshtest.Eventually(t, "the rules are missed", func() error {
		if out := s.run("crossfade", "pairs", "show", "web", "catalog"); !strings.Contains(out, "strict, but of 1 instances it is not sure") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	s.run("crossfade", "protect", "8081")
	meshtest.Eventually(t, "the rules are seen", func() error {
		if out := s.run("crossfade", "pairs", "show", "web", "catalog"); strings.Contains(out, "Note:") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})

	// The way back is the app's port.
	if out, err := s.try("crossfade", "shift", "web", "catalog", "--stage", "client"); err == nil || !strings.Contains(out, "crossfade protect --remove 8081") {
		t.Errorf("back to a port that is closed: %v: %s", err, out)
	}
	s.run("crossfade", "protect", "--remove", "8081")
	meshtest.Eventually(t, "back to client", func() error {
		out, err := s.try("crossfade", "shift", "web", "catalog", "--stage", "client")
		if err == nil && !strings.Contains(out, "web -> catalog: stage client; direct 100%") {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	if err := s.reach(app); err != nil {
		t.Errorf("after the rules are gone: %v", err)
	}
	shifted.done(t, "web")
	always.done(t, "probe")
}

const appPort, sidePort = 8081, 21081

// twoHosts is a server, an operator and callees on the test's own host, and another one.
type twoHosts struct {
	t     *testing.T
	dir   string
	env   []string
	other *meshtest.Host
	ports int
}

func newTwoHosts(t *testing.T) *twoHosts {
	s := &twoHosts{t: t, dir: meshtest.RunDir(t), other: meshtest.NewHost(t), ports: 7100}
	data := filepath.Join(s.dir, "mesh")
	envoy, err := envoybin.Find()
	if err == nil {
		envoy, err = filepath.Abs(envoy)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.env = append(os.Environ(), "CROSSFADE_HTTP_ADDR="+meshtest.HostAddress+":8500", "CROSSFADE_CACERT="+filepath.Join(data, "ca.pem"),
		"CROSSFADE_HTTP_TOKEN_FILE="+filepath.Join(data, "operator.token"), "XDG_RUNTIME_DIR="+s.dir, "ENVOY="+envoy)
	s.start(false, "server", "--data-dir", data, "--bind", "0.0.0.0", "--advertise", meshtest.HostAddress, "--dns-port", "-1")
	meshtest.Eventually(t, "the server answers", func() error { _, err := s.try("crossfade", "catalog", "nodes"); return err })
	return s
}

// callee runs an app that listens at all addresses, and its sidecar.
func (s *twoHosts) callee(service string) {
	s.t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", appPort))
	if err != nil {
		s.t.Fatal(err)
	}
	app := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "the app") })}
	go app.Serve(l)
	s.t.Cleanup(func() { app.Close() })
	s.sidecar(false, service, meshtest.HostAddress, fmt.Sprintf(`
service {
  name = %q
  port = %d
  connect { sidecar_service { port = %d } }
}`, service, appPort, sidePort))
	s.run("crossfade", "config", "write", s.file("defaults.hcl", fmt.Sprintf("Kind = \"service-defaults\"\nName = %q\nProtocol = \"http\"\n", service)))
}

// caller runs a sidecar on the other host, and returns where it takes requests for the upstream.
func (s *twoHosts) caller(service, upstream string) (address string) {
	s.t.Helper()
	s.ports++
	s.sidecar(true, service, s.other.Address, fmt.Sprintf(`
service {
  name = %q
  port = %d
  connect { sidecar_service {
    port = %d
    proxy { upstreams = [{ destination_name = %q, local_bind_port = %d }] }
  } }
}`, service, s.ports+1000, s.ports+14000, upstream, s.ports))
	address = fmt.Sprintf("127.0.0.1:%d", s.ports)
	meshtest.Eventually(s.t, service+" reaches "+upstream, func() error { return s.reach(address) })
	return address
}

func (s *twoHosts) sidecar(elsewhere bool, service, address, definition string) {
	s.t.Helper()
	token := s.file(service+".token", s.run("crossfade", "token", "create", "--service", service))
	state := filepath.Join(s.dir, service)
	s.start(elsewhere, "sidecar", "--service", s.file(service+".hcl", definition), "--state-dir", state, "--join-token-file", token,
		"--node", service, "--node-address", address, "--concurrency", "1")
	meshtest.Eventually(s.t, "the sidecar of "+service, func() error {
		b, err := os.ReadFile(filepath.Join(state, "status.json"))
		if err == nil && !bytes.Contains(b, []byte(`"ready"`)) {
			err = fmt.Errorf("%s", b)
		}
		return err
	})
}

// start runs crossfade until the test ends.
func (s *twoHosts) start(elsewhere bool, args ...string) {
	s.t.Helper()
	cmd := exec.Command("crossfade", args...)
	var out bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.Dir = s.env, &out, &out, s.dir
	err := cmd.Start
	if elsewhere {
		err = func() error { return s.other.Do(cmd.Start) }
	}
	if err := err(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(10*time.Second, func() { cmd.Process.Signal(syscall.SIGTERM) }) // a second one hurries
		defer late.Stop()
		cmd.Wait()
		if s.t.Failed() {
			s.t.Logf("%v:\n%.20000s", args, out.String())
		}
	})
}

// file writes a file that only its owner may read.
func (s *twoHosts) file(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// try runs a command on the test's own host. What it writes to stderr is in the error.
func (s *twoHosts) try(args ...string) (string, error) {
	cmd := exec.Command(args[0], args[1:]...)
	var stderr bytes.Buffer
	cmd.Env, cmd.Dir, cmd.Stderr = s.env, s.dir, &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out) + stderr.String(), fmt.Errorf("%v: %w\n%s%s", args, err, out, stderr.String())
	}
	return string(out), nil
}

func (s *twoHosts) run(args ...string) string {
	s.t.Helper()
	out, err := s.try(args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// refused wants a reason why the catalog cannot be strict.
func (s *twoHosts) refused(reasons ...string) {
	s.t.Helper()
	if err := s.refuses(reasons); err != nil {
		s.t.Error(err)
	}
}

func (s *twoHosts) eventuallyRefused(reasons ...string) {
	s.t.Helper()
	meshtest.Eventually(s.t, "strict is refused", func() error { return s.refuses(reasons) })
}

func (s *twoHosts) refuses(reasons []string) error {
	out, err := s.try("crossfade", "shift", "--service", "catalog", "--stage", "strict")
	if err == nil {
		return fmt.Errorf("strict is not refused: %s", out)
	}
	for _, reason := range reasons {
		if !strings.Contains(out, reason) {
			return fmt.Errorf("refused without %q: %s", reason, out)
		}
	}
	return nil
}

// reach makes a plain request from the other host.
func (s *twoHosts) reach(address string) error {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: s.other.Dial, DisableKeepAlives: true}}
	r, err := client.Get("http://" + address + "/")
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if b, err := io.ReadAll(r.Body); err != nil || string(b) != "the app" {
		return fmt.Errorf("status %d: %.200s, %w", r.StatusCode, b, err)
	}
	return nil
}

// closed wants that a plain request from the other host comes to nothing.
func (s *twoHosts) closed(addresses ...string) error {
	for _, at := range addresses {
		if s.reach(at) == nil {
			return fmt.Errorf("%s answers a plain request from another host", at)
		}
	}
	return nil
}

// running is open-loop load from an app on the other host.
type running struct {
	record *load.Recorder
	end    func()
}

func (s *twoHosts) load(address string) *running {
	ctx, cancel := context.WithCancel(context.Background())
	tr := &http.Transport{DialContext: s.other.Dial, MaxIdleConnsPerHost: 64}
	client := http.Client{Transport: tr}
	out := &running{record: load.NewRecorder()}
	g := load.Generator{Rate: 50, Timeout: 5 * time.Second, Outstanding: 200, Record: out.record, Call: func(n uint64, deadline time.Time) (load.Answer, error) {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+"/", strings.NewReader("sent once"))
		if err != nil {
			return load.Answer{}, err
		}
		resp, err := client.Do(r)
		if err != nil {
			return load.Answer{}, err
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "the app" {
			return load.Answer{}, fmt.Errorf("status %d: %.200s, %w", resp.StatusCode, b, err)
		}
		return load.Answer{}, nil
	}}
	done := make(chan struct{})
	go func() { defer close(done); g.Run(ctx) }()
	out.end = sync.OnceFunc(func() { cancel(); <-done; tr.CloseIdleConnections() })
	s.t.Cleanup(out.end)
	return out
}

// done wants that nothing failed.
func (r *running) done(t *testing.T, who string) {
	t.Helper()
	r.end()
	got := r.record.Totals()
	t.Logf("%s: %d requests", who, got.Requests)
	if failed := r.record.Failures(); len(failed) > 0 || got.Requests < 100 {
		t.Errorf("%s: %d of %d requests failed, such as %+v", who, got.Failed, got.Requests, failed[:min(3, len(failed))])
	}
}
