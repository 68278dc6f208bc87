// Package consultest runs Consuls for tests.
//
// In: a test. Out: a [Fake], which is the embedded registry behind Consul's API in this process
// and can be told to answer wrongly or not at all, or a [Real] one in a process of its own.
//
// Test only: nothing outside of tests imports it. It leaves what is asked of them to the tests.
package consultest

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/consulapi"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// Fake is a Consul in this process.
type Fake struct {
	*httptest.Server
	api   http.Handler
	spoil atomic.Pointer[Spoiler]
}

// Spoiler sees a request first; true: it has answered.
type Spoiler func(w http.ResponseWriter, r *http.Request) bool

// NewFake runs one until the test ends.
func NewFake(t testing.TB) *Fake {
	t.Helper()
	s, err := store.Open(store.Options{NodeName: "n1", NodeAddress: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	f := &Fake{api: consulapi.New(consulapi.Options{Store: s})}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if spoil := f.spoil.Load(); spoil != nil && (*spoil)(w, r) {
			return
		}
		f.Serve(w, r)
	}))
	t.Cleanup(func() {
		s.Close()
		f.CloseClientConnections()
		f.Close()
	})
	return f
}

// Serve answers as a Consul should.
func (f *Fake) Serve(w http.ResponseWriter, r *http.Request) { f.api.ServeHTTP(w, r) }

// Spoil is what the Consul does from now on; nil: what it should.
func (f *Fake) Spoil(s Spoiler) {
	if s == nil {
		f.spoil.Store(nil)
		return
	}
	f.spoil.Store(&s)
	f.CloseClientConnections()
}

// Down lets it answer nothing.
func (f *Fake) Down() {
	f.Spoil(func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) })
}

// Real is a Consul in a process of its own, a server with a data directory.
type Real struct {
	t     testing.TB
	ports []int // HTTP, server RPC, gossip, gossip of the WAN, gRPC
	dir   string
	extra []string
	cmd   *exec.Cmd
}

// NewReal runs one until the test ends. config, JSON, is added to its configuration.
func NewReal(t testing.TB, config string) *Real {
	t.Helper()
	r := &Real{t: t, ports: meshtest.FreePorts(t, 5), dir: t.TempDir()}
	if config != "" {
		file := filepath.Join(r.dir, "extra.json")
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		r.extra = []string{"-config-file", file}
	}
	t.Cleanup(r.Kill)
	r.Start()
	return r
}

// URL is its HTTP API.
func (r *Real) URL() string { return "http://127.0.0.1:" + strconv.Itoa(r.ports[0]) }

// Start runs it again after [Real.Kill], with all that it had.
func (r *Real) Start() {
	r.t.Helper()
	here, err := root()
	if err != nil {
		r.t.Fatal(err)
	}
	binary := cmp.Or(os.Getenv("CROSSFADE_CONSUL"), filepath.Join(here, "bin", "consul"))
	port := func(i int) string { return strconv.Itoa(r.ports[i]) }
	r.cmd = exec.Command(binary, append([]string{"agent", "-server", "-bootstrap-expect", "1", "-data-dir", filepath.Join(r.dir, "data"), "-node", "n1", "-bind", "127.0.0.1",
		"-client", "127.0.0.1", "-log-level", "warn", "-http-port", port(0), "-server-port", port(1), "-serf-lan-port", port(2), "-serf-wan-port", port(3),
		"-grpc-port", port(4), "-dns-port", "-1", "-grpc-tls-port", "-1"}, r.extra...)...)
	log, err := os.OpenFile(filepath.Join(r.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	r.cmd.Stdout, r.cmd.Stderr = log, log
	if err := r.cmd.Start(); err != nil {
		r.t.Fatalf("consul %q: %v; build it with make bin/consul, or set CROSSFADE_CONSUL", binary, err)
	}
	deadline := time.Now().Add(time.Minute)
	for err = leads(r.URL()); err != nil; err = leads(r.URL()) {
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(filepath.Join(r.dir, "log"))
			r.t.Fatalf("Consul has no leader: %v\n%s", err, text)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// root is the folder of the module.
func root() (string, error) {
	dir, err := os.Getwd()
	for at := dir; err == nil; at = filepath.Dir(at) {
		if _, e := os.Stat(filepath.Join(at, "go.mod")); e == nil {
			return at, nil
		}
		if at == filepath.Dir(at) {
			err = fmt.Errorf("no go.mod above %q", dir)
		}
	}
	return "", err
}

// Kill ends it at once.
func (r *Real) Kill() {
	if r.cmd != nil {
		r.cmd.Process.Kill()
		_ = r.cmd.Wait() // killed
		r.cmd = nil
	}
}

// leads says why a Consul has no leader yet.
func leads(url string) error {
	resp, err := http.Get(url + "/v1/status/leader")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && !strings.Contains(string(text), ":") {
		err = fmt.Errorf("its leader is %q", text)
	}
	return err
}
