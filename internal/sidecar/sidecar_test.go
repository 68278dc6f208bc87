package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
)

// lateCalls is how often the played app calls its upstream after SIGTERM.
const lateCalls = 20

// playApp answers on os.Args[1]. After SIGTERM it calls its upstream, writes what
// came of that into os.Args[2], and ends. GET /exit ends it with code 3.
func playApp() {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go http.ListenAndServe(os.Args[1], http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/exit" {
			os.Exit(3)
		}
		fmt.Fprintf(w, "caller %s", r.Header.Get("x-forwarded-client-cert"))
	}))
	<-term
	upstream := os.Getenv("NOMAD_UPSTREAM_ADDR_catalog")
	if upstream == "" {
		os.Exit(0)
	}
	good := 0
	for range lateCalls {
		if _, code, err := fetch("http://" + upstream + "/late"); err == nil && code == http.StatusOK {
			good++
		}
	}
	_ = os.WriteFile(os.Args[2], fmt.Append(nil, good), 0o600)
	os.Exit(0)
}

// fetch uses a connection of its own.
func fetch(url string) (body string, code int, err error) {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), resp.StatusCode, err
}

func freePort(t *testing.T) int {
	t.Helper()
	return meshtest.FreePorts(t, 1)[0]
}

// world is a control plane whose server can be stopped and started again.
type world struct {
	t    *testing.T
	dir  string
	http int
	grpc int
	log  *meshtest.Log
	stop func()

	server *servertest.Server
	tokens map[string]string // files of join tokens, by service
	silent []string          // gRPC addresses of servers that are stopped
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir(), http: freePort(t), grpc: freePort(t), log: &meshtest.Log{}, stop: func() {}, tokens: map[string]string{}}
	if err := os.Chmod(w.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.stop()
		if t.Failed() {
			t.Log(w.log.String())
		}
	})
	w.start()
	return w
}

func (w *world) start() {
	w.t.Helper()
	w.server = servertest.Start(w.t, server.Options{DataDir: w.dir, NodeName: "host", HTTPPort: w.http, GRPCPort: w.grpc, DefaultAllow: true})
	w.stop = w.server.Stop
}

// join makes a join token for the service, once, and returns the file that it is in.
func (w *world) join(service string) string {
	w.t.Helper()
	if w.tokens[service] == "" {
		_, secret := w.server.Token(`{"role":"join","services":["` + service + `"]}`)
		w.tokens[service] = filepath.Join(w.t.TempDir(), service+".token")
		if err := os.WriteFile(w.tokens[service], []byte(secret+"\n"), 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	return w.tokens[service]
}

// running is a sidecar that runs in this process.
type running struct {
	t       *testing.T
	state   string
	signals chan os.Signal
	done    chan struct{}
	err     error // after done
	stop    func()
}

// run starts the sidecar of a definition in the short form, with an app.
func (w *world) run(state, yaml string, app ...string) *running {
	w.t.Helper()
	defs, err := config.DecodeDefinitions("service.yaml", []byte(yaml))
	if err != nil {
		w.t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	roots, err := os.ReadFile(w.server.CAFile())
	if err != nil {
		w.t.Fatal(err)
	}
	token := w.join(defs[0].Service.Name)
	var servers []string
	if len(w.silent) > 0 {
		servers = append(servers, w.silent...)
		servers = append(servers, fmt.Sprintf("127.0.0.1:%d", w.grpc))
	}
	r := &running{t: w.t, state: state, signals: make(chan os.Signal, 4), done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(r.done)
		r.err = Run(ctx, Options{
			Definition: defs[0], HTTPAddrs: []string{fmt.Sprintf("127.0.0.1:%d", w.http)}, GRPCAddrs: servers, CARoots: roots, JoinTokenFile: token, Node: "host", StateDir: state, Concurrency: 1,
			DrainTime: 5 * time.Second, App: append([]string{exe}, app...), Stdout: w.log, Stderr: w.log, Signals: r.signals,
			Log: slog.New(slog.NewTextHandler(w.log, nil)).With("id", defs[0].Service.ID),
		})
	}()
	r.stop = func() {
		cancel()
		r.end()
	}
	w.t.Cleanup(r.stop)
	return r
}

func (r *running) status() (s Status) {
	b, err := os.ReadFile(filepath.Join(r.state, StatusFile))
	if err != nil {
		return s // not written yet
	}
	if err := json.Unmarshal(b, &s); err != nil {
		r.t.Errorf("%s: %v", StatusFile, err)
	}
	return s
}

// until polls the status until it is as wanted.
func (r *running) until(what string, want func(Status) bool) Status {
	r.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for {
		if s := r.status(); want(s) {
			return s
		}
		select {
		case <-tick.C:
		case <-r.done:
			r.t.Fatalf("sidecar ended before it was %s: %v", what, r.err)
		case <-deadline:
			r.t.Fatalf("sidecar is not %s: %+v", what, r.status())
		}
	}
}

func (r *running) untilReady() Status {
	r.t.Helper()
	return r.until("ready", func(s Status) bool { return s.State == Ready })
}

// end waits for Run to return.
func (r *running) end() error {
	select {
	case <-r.done:
	case <-time.After(30 * time.Second):
		r.t.Error("sidecar does not end")
	}
	return r.err
}

// One instance's life, with a real server, real Envoys and real apps.
func TestLife(t *testing.T) {
	t.Setenv(fakeEnv, "app")
	w := newWorld(t)
	dir := t.TempDir()
	appPort, webPort, upstream := freePort(t), freePort(t), freePort(t)
	appAddr, webAddr := fmt.Sprintf("127.0.0.1:%d", appPort), fmt.Sprintf("127.0.0.1:%d", webPort)
	callee := func() *running {
		return w.run(filepath.Join(dir, "catalog"), fmt.Sprintf(
			"service: catalog\nid: catalog-1\naddress: 127.0.0.1\nport: %d\nprotocol: http\nchecks: [{http: /healthz, interval: 1s}]\n", appPort), appAddr)
	}
	catalog := callee()
	late := filepath.Join(dir, "late")
	web := w.run(filepath.Join(dir, "web"), fmt.Sprintf("service: web\nport: %d\nprotocol: http\nupstreams: [\"catalog:%d\"]\n", webPort, upstream), webAddr, late)
	first := catalog.untilReady()
	web.untilReady()

	// The caller's app reaches the callee's, which sees who calls.
	url := fmt.Sprintf("http://127.0.0.1:%d/", upstream)
	reach := func() string {
		t.Helper()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		var body string
		for range 1000 {
			b, code, err := fetch(url)
			if err == nil && code == http.StatusOK {
				return b
			}
			body = fmt.Sprint(code, " ", b, err)
			<-tick.C
		}
		t.Fatalf("the callee is not reached: %s", body)
		return ""
	}
	if got := reach(); !strings.Contains(got, "/svc/web") {
		t.Errorf("the callee's app sees %q", got)
	}

	// SIGHUP renews.
	catalog.signals <- syscall.SIGHUP
	renewed := catalog.until("renewed", func(s Status) bool { return s.Certificate.Serial != first.Certificate.Serial })

	// The server goes; the callee stops and starts again from what it has on disk.
	w.stop()
	catalog.signals <- syscall.SIGTERM
	if err := catalog.end(); err != nil {
		t.Errorf("drained without a server: %v", err)
	}
	if s := catalog.status(); s.State != Stopped {
		t.Errorf("after its end: %+v", s)
	}
	catalog = callee()
	again := catalog.untilReady()
	if !again.XDS.FromLastGood || again.Certificate.Serial != renewed.Certificate.Serial || again.PublicAddress != first.PublicAddress {
		t.Errorf("started without a server: %+v", again)
	}
	reach()

	// The server is back.
	w.start()
	catalog.until("registered again", func(s Status) bool { return s.XDS.Connected && s.Registered && !s.XDS.FromLastGood })
	web.until("registered again", func(s Status) bool { return s.XDS.Connected && s.Registered })

	// The caller ends; while it does, its app still reaches the callee.
	web.signals <- syscall.SIGTERM
	if err := web.end(); err != nil {
		t.Errorf("caller drained: %v", err)
	}
	if got, _ := os.ReadFile(late); string(got) != fmt.Sprint(lateCalls) {
		t.Errorf("of %d calls while it ended, %s were answered", lateCalls, got)
	}
	if _, body := w.server.Call(http.MethodGet, "/v1/catalog/service/web", nil); strings.TrimSpace(string(body)) != "[]" {
		t.Errorf("the registry after it: %s", body)
	}

	// An app that ends takes its sidecar along, with its exit code.
	_, _, _ = fetch("http://" + appAddr + "/exit")
	var exit *ExitError
	if err := catalog.end(); !errors.As(err, &exit) || exit.Code != 3 {
		t.Errorf("after the app's end: %v", err)
	}
}

// Servers that accept connections and say nothing, as one that is stopped does, do not keep an
// instance from joining at another.
func TestJoinPastSilentServers(t *testing.T) {
	t.Setenv(fakeEnv, "app")
	w := newWorld(t)
	for range 12 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		w.silent = append(w.silent, l.Addr().String())
	}
	port := freePort(t)
	w.run(filepath.Join(t.TempDir(), "state"), fmt.Sprintf("service: web\nport: %d\n", port), fmt.Sprintf("127.0.0.1:%d", port)).untilReady()
}

// With nothing on disk a sidecar waits for a server, and ends when asked.
func TestFirstStartWithoutServer(t *testing.T) {
	t.Setenv(fakeEnv, "app")
	w := newWorld(t)
	w.join("lonely")
	w.stop()
	port := freePort(t)
	r := w.run(filepath.Join(t.TempDir(), "state"), fmt.Sprintf("service: lonely\nport: %d\n", port), fmt.Sprintf("127.0.0.1:%d", port))
	r.until("starting", func(s Status) bool { return s.State == Starting })
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for i := 0; !strings.Contains(w.log.String(), "waiting for a control-plane server"); i++ {
		if i == 1000 {
			t.Fatal("it does not say what it waits for")
		}
		<-tick.C
	}
	if s := r.status(); s.App != nil || s.Envoy.PID != 0 {
		t.Errorf("started something: %+v", s)
	}
	w.start()
	r.untilReady()
	r.stop()
	if r.err != nil || r.status().State != Stopped {
		t.Errorf("ended with %v as %q", r.err, r.status().State)
	}
}
